"""The command line: parses, calls, prints. No logic. A module of commands is imported here, and that is all."""

from u2s_datasets.cli import anonymizing, evaluating, publishing, reporting, system, training, utility
from u2s_datasets.cli.main import app

__all__ = ["anonymizing", "app", "evaluating", "publishing", "reporting", "system", "training", "utility"]

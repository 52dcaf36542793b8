"""u2s-datasets: image datasets that expose people, turned into datasets that are safe to publish.

The public names load on first use, so `import u2s_datasets` costs milliseconds and no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Anonymizer": "u2s_datasets.transforms.anonymize",
    "Caption": "u2s_datasets.transforms.caption",
    "Edit": "u2s_datasets.transforms.edit",
    "Inspect": "u2s_datasets.transforms.inspect",
    "Instruct": "u2s_datasets.transforms.instruct",
    "Photo": "u2s_datasets.image_io",
    "Score": "u2s_datasets.transforms.score",
    "Transform": "u2s_datasets.transforms.base",
    "Verify": "u2s_datasets.transforms.verify",
    "anonymize": "u2s_datasets.transforms.anonymize",
    "load_preset": "u2s_datasets.transforms.anonymize",
}
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

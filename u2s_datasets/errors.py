"""The errors a user can meet. Their messages carry no image content, caption or file name."""

from __future__ import annotations


class U2SError(Exception):
    """Base of the toolkit's errors.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code = 2


class UsageError(U2SError):
    """The request can't be carried out as given; the message says what to do. The CLI exits with 2."""


class UnreadableImage(U2SError):
    """A row's image could not be read. `str(error)` is one of a few fixed reasons, safe to publish."""


class SetupError(U2SError):
    """The environment or the settings are wrong for every row, so the run stops instead of withholding all."""


class MissingExtra(SetupError):
    """A package that only some need is not installed."""

    def __init__(self, what: str, install: str):
        super().__init__(f"{what} is not installed. Install it with:\n  {install}")
        self.install = install


class RanksDied(U2SError):
    """Some processes of a run died. What is finished is valid, and the same command continues."""

    exit_code = 1

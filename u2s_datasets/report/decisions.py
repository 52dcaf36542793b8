"""What people decided about rows of a run: accept, redo or withhold.

`decisions.jsonl` in the run's folder: a first line that binds it to the run's settings, then a line for each
decided row. It is rewritten as a whole for each decision (temporary name, sync, rename).

- **withhold**: the row stays out of a release, whatever its status.
- **redo**: a release is refused. Nothing is done again by itself, and `u2s anonymize` on the same folder keeps
  its finished rows: anonymize into a new folder with other settings, or decide otherwise.
- **accept**: noted. It holds for the very bytes that were looked at, and lapses when the row has others.
"""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.report.folder import RunFolder

DECISIONS_FILE = "decisions.jsonl"
DAMAGED = f"{DECISIONS_FILE} is damaged; repair it, or remove it and review again"


class Decision(str, Enum):
    """What a person decided about a row."""

    ACCEPT = "accept"
    REDO = "redo"
    WITHHOLD = "withhold"


Decisions = dict[tuple[str, int], Decision]


def read_decisions(run: Path) -> Decisions:
    """The decisions about a run by split and row (from 0, as in the run); empty where nobody reviewed it.

    An accept whose row has other bytes by now is left out; a withhold or a redo stays.

    Args:
        run: the folder of a finished run.

    Raises:
        UsageError: no finished run, or the decisions are damaged or those of other settings.
    """
    return decisions_of(RunFolder(run))


def decisions_of(run: RunFolder) -> Decisions:
    """`read_decisions` of a run that is open already."""
    return {
        place: Decision(value["decision"])
        for place, value in _read(run).items()
        if value["decision"] != Decision.ACCEPT.value or value["image"] == run.digest(run.number(*place))
    }


def decide(run: RunFolder, number: int, decision: Decision | None) -> None:
    """Writes a decision about a row; None takes an earlier one back.

    The file is read again first, so that what another process wrote meanwhile is kept.

    Raises:
        UsageError: as `read_decisions`, or the folder can't be written.
    """
    found = _read(run)
    place = run.place(number)
    if decision is None:
        found.pop(place, None)
    else:
        found[place] = {"decision": decision.value, "image": run.digest(number)}
    head = {"about": "decisions of `u2s review`; private, like the whole folder", "run": run.fingerprint}
    rows = [{"split": split, "row": row, **found[split, row]} for split, row in sorted(found)]
    text = "".join(json.dumps(line) + "\n" for line in (head, *rows))
    final = run.path / DECISIONS_FILE
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise UsageError(f"{DECISIONS_FILE} can't be written ({error.strerror})") from error


def _read(run: RunFolder) -> dict[tuple[str, int], dict[str, Any]]:
    file = run.path / DECISIONS_FILE
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(DAMAGED) from error
    try:
        head, *rows = lines
        if head["run"] != run.fingerprint:
            raise UsageError(
                f"{DECISIONS_FILE} is of a run with other settings; remove it and review this run again"
            )
        found = {(row["split"], row["row"]): _checked(run, row) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(DAMAGED) from error
    if len(found) != len(rows):
        raise UsageError(DAMAGED)
    return found


def _checked(run: RunFolder, row: dict[str, Any]) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError for what `decide` does not write."""
    run.number(row["split"], row["row"])
    return {"decision": Decision(row["decision"]).value, "image": row["image"]}

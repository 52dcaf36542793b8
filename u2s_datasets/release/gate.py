"""Whether a release is good enough to leave: numbers against limits.

The audit's numbers are always read, and the texts that would leave are compared with what each row hides.
Where the originals are given, the images that would leave are scored against them afresh. A limit that is
not kept stops the release and names rows by number; `--accept name=value` sets another, which the card says.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.baselines import NAMES as BASELINES
from u2s_datasets.evaluation.runs import RUN, Report, evaluate_run
from u2s_datasets.release import secrets
from u2s_datasets.release.finished import Audits, Finished, Row, listed
from u2s_datasets.release.secrets import Secrets
from u2s_datasets.release.view import CAPTIONS, View, mask
from u2s_datasets.run.source import Source
from u2s_datasets.schema import Status
from u2s_datasets.transforms.answers import content_words
from u2s_datasets.transforms.inspect import evidence_of
from u2s_datasets.transforms.score import Score

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Limits:
    """What a release must keep to.

    Attributes:
        min_rows: least rows that leave; rates over fewer say little.
        min_checked: least share of these rows that was checked: verified and, with the originals given,
            scored against them.
        share_withheld: largest share of the run's rows that were withheld.
        faces_left, words_left, codes_left: largest numbers in the audits.
        texts: most texts that would leave and say what their row hides.
        faces_left_rate, words_left_rate, reidentification_rate, copy_rate: largest scores against originals.
    """

    min_rows: float = 10
    min_checked: float = 1.0
    share_withheld: float = 0.2
    faces_left: float = 0
    words_left: float = 0
    codes_left: float = 0
    texts: float = 0
    faces_left_rate: float = 0.01
    words_left_rate: float = 0.01
    reidentification_rate: float = 0.02
    copy_rate: float = 0.0


LEAST = ("min_rows", "min_checked")
SCORED = ("faces_left_rate", "words_left_rate", "reidentification_rate", "copy_rate")


@dataclass(frozen=True)
class Check:
    """A limit, what was found, and the rows that count against it. A value of NaN was not measured."""

    name: str
    limit: float
    value: float
    rows: list[Row] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether the limit is kept; what is undefined (no faces, say) can't break one."""
        if math.isnan(self.value):
            return True
        return self.value >= self.limit if self.name in LEAST else self.value <= self.limit


class Refused(UsageError):
    """A limit is not kept."""


def read_limits(accepted: Iterable[str]) -> Limits:
    """The default limits with "name=value" texts over them.

    Raises:
        UsageError: an unknown name, or no number.
    """
    known = [f.name for f in dataclasses.fields(Limits)]
    values = {}
    for text in accepted:
        name, equals, value = text.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"--accept {name!r}: no such limit{hint} There are: {', '.join(known)}")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = math.nan
        if not equals or math.isnan(values[name]):
            raise UsageError(
                f"--accept takes name=value with a number, such as share_withheld=0.3; given: {text!r}"
            )
    return Limits(**values)


def audit_checks(audits: Audits, limits: Limits, private: list[Row], unscored: list[Row]) -> list[Check]:
    """The limits on what the run itself knows.

    Args:
        audits: of every row.
        limits: to be kept.
        private: rows with a text that says what they hide.
        unscored: rows that leave and could not be scored although the originals are given.
    """
    leaving = [(split, index) for split in audits.status for index in audits.published(split)]
    withheld = audits.withheld
    total = len(leaving) + len(withheld)
    checked = 1 - len(unscored) / len(leaving) if leaving else 0.0
    checks = [
        Check("min_rows", limits.min_rows, len(leaving)),
        Check("min_checked", limits.min_checked, checked, unscored),
        Check("share_withheld", limits.share_withheld, len(withheld) / total if total else 1.0, withheld),
        Check("texts", limits.texts, len(private), private),
    ]
    chosen = set(leaving)
    for name in ("faces_left", "words_left", "codes_left"):
        found = {row: audits.checks[row].get(name) or 0 for row in audits.checks if row in chosen}
        rows = [row for row, count in found.items() if count]
        checks.append(Check(name, getattr(limits, name), sum(found.values()), rows))
    return checks


@dataclass
class Scored:
    """The scores of the images that leave, against their originals and beside baselines.

    Attributes:
        report: as `evaluate_run` gives it.
        failing: rows that count against each score.
        unscored: rows without a readable pair.
    """

    report: Report
    failing: dict[str, list[Row]] = field(default_factory=dict)
    unscored: list[Row] = field(default_factory=list)

    def checks(self, limits: Limits) -> list[Check]:
        """The limits on the scores."""
        values = {name: value for some in self.report[RUN].values() for name, value in some.items()}
        return [
            Check(name, getattr(limits, name), float(values.get(name, math.nan)), self.failing.get(name, []))
            for name in SCORED
        ]


def score_run(
    run: Path,
    originals: Source,
    audits: Audits,
    score: Score,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Scored:
    """Scores the very images that would leave against the originals, cut to the rows of the run.

    Raises:
        UsageError: a pair has two sizes.
    """
    places = ((split, index) for split, data in originals.splits.items() for index in range(len(data)))
    scored = Scored({})

    def note(columns: dict[str, list[Any]]) -> None:
        for cheating, privacy in zip(
            columns[schema.CHEATING_SCORES], columns[schema.PRIVACY_SCORES], strict=True
        ):
            row = split, index = next(places)
            leaves = audits.status[split][index] != Status.WITHHELD.value
            if leaves and (cheating is None or privacy is None):
                scored.unscored.append(row)
            elif leaves:
                bad = {
                    "copy_rate": cheating["copied"],
                    "faces_left_rate": privacy["faces_left"],
                    "words_left_rate": privacy["words_left"],
                }
                for name in (name for name, value in bad.items() if value):
                    scored.failing.setdefault(name, []).append(row)

    scored.report = evaluate_run(
        run,
        originals,
        score,
        BASELINES,
        CONFIDENCE,
        on_rows=on_rows,
        on_scored=note,
        left_out=set(audits.withheld),
    )
    return scored


def private_texts(run: Finished, audits: Audits, view: View, known: Secrets) -> list[Row]:
    """Rows that leave with a text that repeats a word read in them, or something else that is private.

    Ordinary words count here too, unlike in the scan: the text and what was read belong to one row.
    """
    texts = [*CAPTIONS, *(name for name in view.kept if name in view.own)]
    found = []
    for split in run.files:
        leaving = set(audits.published(split))
        for start, batch in run.batches(split, [*texts, schema.RISK]):
            for index, row in enumerate(batch.to_pylist(), start):
                if index in leaving and _says(row, texts, view, known):
                    found.append((split, index))
    return found


def _says(row: dict[str, Any], texts: list[str], view: View, known: Secrets) -> bool:
    evidence = evidence_of(row[schema.RISK] or {"evidence": ""})
    read = " ".join(map(str, (*evidence.get("text", []), *evidence.get("codes", []))))
    hidden = {word for word in content_words(read) if len(word) >= secrets.SHORTEST} - known.public
    for text in _strings([row[name] for name in texts]):
        shown = mask(text, view.classes) or ""
        if content_words(shown) & hidden or known.find(shown):
            return True
    return False


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def demand(checks: list[Check]) -> None:
    """Stops where a limit is not kept.

    Raises:
        Refused: with a table of what failed.
    """
    failed = [check for check in checks if not check.is_kept]
    if not failed:
        return
    lines = ["the release is refused; these limits are not kept:"]
    for check in failed:
        sign = "at least" if check.name in LEAST else "at most"
        where = f"  ({listed(check.rows)})" if check.rows else ""
        lines.append(f"  {check.name:22} {check.value:<8.3g} {sign} {check.limit:g}{where}")
    lines.append("Mend these rows, or take responsibility with --accept NAME=VALUE; the card will say so.")
    raise Refused("\n".join(lines))

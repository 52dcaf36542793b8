"""Adds `audit` and settles `edited_image`: nothing unverified leaves.

The published bytes themselves are inspected again and compared with the original: an identity found again,
a word read again, a code that decodes, an edit that changed nothing inside its regions, a pixel changed
outside, metadata. A row that fails is edited again with the next seed, then more strongly, then redacted,
then withheld. What the judges find and Inspect had not joins the row's regions and is edited with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyFaceEmbedder
from u2s_datasets.models.base import SETTINGS, parallel
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.models.faces import DlibFaceEmbedder
from u2s_datasets.schema import UNREADABLE, Status
from u2s_datasets.transforms.base import Batch, Transform
from u2s_datasets.transforms.checks import Case, Limits, judge
from u2s_datasets.transforms.edit import Edit
from u2s_datasets.transforms.inspect import Detectors, default_detectors, detect, evidence_of


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Verify(Transform):
    """Checks each edit, tries again, and gives every row its status.

    Attributes:
        detectors: the judges; inside an Anonymizer null means those of Inspect.
        face_embedder: tells whether two faces are one person; null trusts the detectors alone. Not asked about
            faces that a redactor reduced to a few cells.
        edit: makes further attempts; inside an Anonymizer null means its Edit.
        redactor: the last resort.
        retries: attempts with the editor after the first.
        redactions: attempts with the redactor, each stronger than the last; the first counts where it is
            also the editor.
        limits: what an edit must keep to.
    """

    detectors: Detectors | None = None
    face_embedder: AnyFaceEmbedder | None = Field(default_factory=DlibFaceEmbedder)
    edit: Edit | None = None
    redactor: Redactor = Field(default_factory=Redactor)
    retries: int = Field(default=2, ge=0)
    redactions: int = Field(default=4, ge=0)
    limits: Limits = Field(default_factory=Limits)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.RISK, schema.EDITED_IMAGE)
    adds: ClassVar[tuple[str, ...]] = (schema.RISK, schema.EDITED_IMAGE, schema.AUDIT)

    def run(self, batch: Batch) -> Batch:
        """The verified image and the audit of every row."""
        rows = len(batch[schema.IMAGE])
        cases: dict[int, Case] = {}
        out: Batch = {schema.EDITED_IMAGE: [None] * rows, schema.AUDIT: [None] * rows}
        out[schema.RISK] = list(batch[schema.RISK])
        for index in range(rows):
            risk, edited = batch[schema.RISK][index], batch[schema.EDITED_IMAGE][index]
            if UNREADABLE in risk["groups"]:
                reason = evidence_of(risk).get("reason", "the image could not be inspected")
                out[schema.AUDIT][index] = audit(Status.WITHHELD, reason=reason)
            elif risk["unsafe"]:
                photo = Photo.of(batch[schema.IMAGE][index], self.max_pixels)
                cases[index] = Case(
                    photo, risk, evidence_of(risk), None if edited is None else Photo.of(edited)
                )
            else:
                self._settle_safe(out, index, edited)
        if cases:
            self._settle_unsafe(out, cases, batch)
        return out

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """A row that could not be verified is withheld."""
        withheld = audit(Status.WITHHELD, reason=reason)
        return {schema.RISK: row[schema.RISK], schema.EDITED_IMAGE: None, schema.AUDIT: withheld}

    def _settle_safe(self, out: Batch, index: int, edited: Any) -> None:
        photo = None if edited is None else Photo.of(edited, self.max_pixels)
        if photo is None or photo.metadata:
            reason = "the image could not be written" if photo is None else "metadata left"
            out[schema.AUDIT][index] = audit(Status.WITHHELD, reason=reason)
        else:
            out[schema.EDITED_IMAGE][index] = photo
            out[schema.AUDIT][index] = audit(Status.UNTOUCHED)

    def _settle_unsafe(self, out: Batch, cases: dict[int, Case], batch: Batch) -> None:
        detectors = default_detectors() if self.detectors is None else self.detectors
        pending = dict(cases)
        ladder = self._ladder()
        for attempts, edit in enumerate(ladder, start=1):
            if attempts > 1:
                _edit_again(edit, pending, batch)
            self._judge(detectors, edit, [case for case in pending.values() if case.edited is not None])
            redacted = isinstance(edit.editor, Redactor)
            for index, case in list(pending.items()):
                done = case.edited is not None and case.reason is None
                if done or attempts == len(ladder):
                    status = Status.WITHHELD if not done else Status.REDACTED if redacted else Status.EDITED
                    out[schema.EDITED_IMAGE][index] = case.edited if done else None
                    out[schema.RISK][index] = case.risk
                    out[schema.AUDIT][index] = audit(
                        status,
                        attempts,
                        case.photo.seed(edit.seed) ^ edit.attempt,
                        edit.editor.kind,
                        case.checks,
                        case.reason if case.edited is not None else "the editor failed",
                    )
                    del pending[index]
            if not pending:
                return

    def _judge(self, detectors: Detectors, edit: Edit, cases: list[Case]) -> None:
        """Writes the checks and the reason into each case.

        Where only regions were edited it is enough to look around them: `judge` proves that all other pixels
        are the original's, which have been inspected.
        """
        masks = [edit.mask(case.risk, case.photo) for case in cases]
        redacted = isinstance(edit.editor, Redactor)
        # A few noisy cells can't be recognised, so a redacted face need not be compared, only not be found.
        skip = isinstance(edit.editor, Redactor) and not edit.editor.keeps_identity
        embedder = None if skip else self.face_embedder
        for whole in (True, False):
            chosen = [i for i, mask in enumerate(masks) if bool(mask.all()) == whole]
            photos = [case.edited for case in (cases[i] for i in chosen) if case.edited is not None]
            areas = (
                None
                if whole
                else [[r.box for r in edit.dilated(cases[i].risk, cases[i].photo)] for i in chosen]
            )
            found = dict(zip(chosen, detect(detectors, photos, areas), strict=True))
            parallel(
                lambda i, found=found: judge(cases[i], found[i], masks[i], embedder, self.limits, redacted),
                chosen,
            )

    def _ladder(self) -> list[Edit]:
        """The edits in the order in which they are tried, the one that Edit already made first."""
        first = self.edit or Edit(seed=self.seed, max_pixels=self.max_pixels)
        # The last resort touches the regions only, whatever the editor was allowed.
        last = replace(first, editor=self.redactor, composite="regions")
        if first.editor == self.redactor:
            return [first, *(replace(last, attempt=attempt) for attempt in range(1, self.redactions))]
        tries = [replace(first, attempt=attempt) for attempt in range(self.retries + 1)]
        return tries + [replace(last, attempt=attempt) for attempt in range(self.redactions)]


def _edit_again(edit: Edit, pending: dict[int, Case], batch: Batch) -> None:
    again = {name: [batch[name][index] for index in pending] for name in Edit.texts if name in batch}
    again[schema.IMAGE] = [case.photo for case in pending.values()]
    again[schema.RISK] = [case.risk for case in pending.values()]
    edited = edit.process(again)[schema.EDITED_IMAGE]
    for case, photo in zip(pending.values(), edited, strict=True):
        case.edited = photo


def audit(
    status: Status,
    attempts: int = 0,
    seed: int | None = None,
    editor: str | None = None,
    checks: dict[str, Any] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """A value of the `audit` column."""
    return {
        "status": status.value,
        "attempts": attempts,
        "seed": seed,
        "editor": editor,
        "checks": {**dict.fromkeys(schema.CHECKS), **(checks or {})},
        "reason": reason,
    }

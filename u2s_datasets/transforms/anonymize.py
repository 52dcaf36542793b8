"""The whole path as one transform: inspect, caption, instruct, edit, verify.

`anonymize` is the ready instance of the `local` preset; `load_preset` gives others. The steps share their
settings here (seed, columns, detectors) so that they can't drift apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from u2s_datasets import config, schema
from u2s_datasets.models.base import SETTINGS
from u2s_datasets.schema import Status
from u2s_datasets.transforms.base import Batch, Transform, clock, photos_of
from u2s_datasets.transforms.caption import Caption
from u2s_datasets.transforms.edit import Edit
from u2s_datasets.transforms.inspect import Inspect, unreadable
from u2s_datasets.transforms.instruct import Instruct
from u2s_datasets.transforms.verify import Verify, audit

# Fields of a step that are not its own to set: the Anonymizer's hold for all, and Verify counts attempts.
NOT_OF_A_STEP = ("image_column", "label_column", "max_pixels", "seed", "attempt")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Anonymizer(Transform):
    """Five transforms in a row. Only unsafe rows reach captions, instructions and edits.

    `seed`, `max_pixels` and the column names given here hold for every step.
    """

    inspect: Inspect = Field(default_factory=Inspect)
    caption: Caption = Field(default_factory=Caption)
    instruct: Instruct = Field(default_factory=Instruct)
    edit: Edit = Field(default_factory=Edit)
    verify: Verify = Field(default_factory=Verify)

    adds: ClassVar[tuple[str, ...]] = schema.ADDED_COLUMNS
    tells: ClassVar[str] = schema.AUDIT
    told: ClassVar[tuple[str, ...]] = ("status", "reason")
    statuses: ClassVar[tuple[str, ...]] = tuple(status.value for status in Status)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of a source that are used beside image and class: none."""
        return ()

    @property
    def looks(self) -> bool:
        """Whether every row is decoded: only where nothing inspects it is none."""
        return self.inspect.looks

    @property
    def steps(self) -> tuple[Inspect, Caption, Instruct, Edit, Verify]:
        """The transforms in order, with the shared settings filled in."""
        shared: dict[str, Any] = {"seed": self.seed, "max_pixels": self.max_pixels}
        inspect, edit = replace(self.inspect, **shared), replace(self.edit, **shared)
        judges = inspect.detectors if self.verify.detectors is None else self.verify.detectors
        verify = replace(self.verify, **shared, detectors=judges, edit=self.verify.edit or edit)
        return inspect, replace(self.caption, **shared), replace(self.instruct, **shared), edit, verify

    @property
    def parts(self) -> tuple[Part, ...]:
        """The steps as jobs that can run one after the other over all rows, each with its own models alone.

        Edit and Verify are one: Verify needs the editor for further attempts, and no unverified image is ever
        stored.
        """
        inspect, caption, instruct, edit, verify = self.steps
        return tuple(Part(self, steps) for steps in ((inspect,), (caption,), (instruct,), (edit, verify)))

    def run(self, batch: Batch) -> Batch:
        """All added columns. Each step isolates its own bad rows."""
        return self.timed(batch, {})

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """`run`, adding the seconds of each step to `seconds`; opening and decoding count as "read"."""
        return _through(self.steps, batch, self.adds, seconds)

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """A row that failed outside every step is withheld."""
        values = {schema.RISK: unreadable(reason), schema.AUDIT: audit(Status.WITHHELD, reason=reason)}
        return {**dict.fromkeys(self.adds), **values}

    def outcome(self, told: dict[str, Any]) -> tuple[str, str | None]:
        """A row's status by its audit, with the reason if it was withheld."""
        return told["status"], told["reason"] if told["status"] == Status.WITHHELD.value else None

    def settings(self) -> dict[str, Any]:
        """Every setting, resolved, as plain values that YAML and JSON can hold."""
        settings = TypeAdapter(Anonymizer).dump_python(self, mode="json")
        for step in settings.values():
            if isinstance(step, dict):
                for name in NOT_OF_A_STEP:
                    step.pop(name, None)
        return settings


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive steps of an Anonymizer as a job of their own.

    Attributes:
        whole: the Anonymizer.
        steps: some of its steps.
    """

    whole: Anonymizer
    steps: tuple[Transform, ...]

    statuses: ClassVar[tuple[str, ...]] = Anonymizer.statuses
    told: ClassVar[tuple[str, ...]] = Anonymizer.told

    @property
    def name(self) -> str:
        """Of its first step, such as "inspect"."""
        return type(self.steps[0]).__name__.lower()

    @property
    def is_last(self) -> bool:
        """Whether it settles the rows."""
        return isinstance(self.steps[-1], Verify)

    @property
    def looks(self) -> bool:
        """Whether every row is decoded: only the first part looks at all of them."""
        return any(isinstance(step, Inspect) and step.looks for step in self.steps)

    @property
    def max_pixels(self) -> int:
        """That of the whole."""
        return self.whole.max_pixels

    @property
    def tells(self) -> str | None:
        """The column that says what became of a row: none before the last part."""
        return schema.AUDIT if self.is_last else None

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns it adds; the last part adds all, those of earlier parts as well."""
        return self.whole.adds if self.is_last else tuple(name for step in self.steps for name in step.adds)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of earlier parts that it needs."""
        if self.is_last:
            return tuple(name for part in self.whole.parts[:-1] for name in part.adds)
        return tuple(name for step in self.steps for name in step.needs if name != schema.IMAGE)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Itself."""
        return (self,)

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """The added columns of a batch, timed as by the whole."""
        return _through(self.steps, batch, self.adds, seconds)

    def outcome(self, told: dict[str, Any]) -> tuple[str, str | None]:
        """As the whole says."""
        return self.whole.outcome(told)

    def settings(self) -> dict[str, Any]:
        """Those of the whole."""
        return self.whole.settings()


def _through(
    steps: Sequence[Transform], batch: Batch, adds: tuple[str, ...], seconds: dict[str, float]
) -> Batch:
    """The columns `adds`, made by the steps in turn. Each step isolates its own bad rows."""
    columns: Batch = dict(batch)
    with clock(seconds, "read"):
        columns[schema.IMAGE] = photos_of(batch[schema.IMAGE], steps[0].max_pixels)
    for step in steps:
        with clock(seconds, type(step).__name__.lower()):
            columns |= step.process(columns)
    return {name: columns[name] for name in adds}


def build(settings: dict[str, Any]) -> Anonymizer:
    """The Anonymizer of plain settings; what they leave out keeps its default.

    Raises:
        SettingsError: an unknown key or a wrong value; the message names it.
    """
    for step, values in settings.items():
        for name in NOT_OF_A_STEP:
            if isinstance(values, dict) and name in values:
                raise config.SettingsError(f"setting '{step}.{name}': set {name!r} once, for all steps")
    try:
        return TypeAdapter(Anonymizer).validate_python(settings)
    except ValidationError as error:
        raise config.explain(error, Anonymizer().settings()) from None


def load_preset(
    name: str = "local", overrides: Iterable[str] = (), criteria: dict[str, str] | None = None
) -> Anonymizer:
    """The Anonymizer of a preset.

    Args:
        name: of a preset (`u2s presets` lists them) or the path of a YAML file of settings.
        overrides: settings such as "edit.dilate=0.3", as for `--set`; "edit.model" is short for
            "edit.editor.model".
        criteria: points to inspect for, with their descriptions, instead of the method's nine groups.

    Raises:
        SettingsError: unknown preset, unknown setting or wrong value.

    >>> load_preset("local", ["edit.dilate=0.3"]).edit.dilate
    0.3
    """
    changes = config.merge(config.read_preset(name), _spelt_out(config.read_overrides(overrides)))
    settings = config.merge(Anonymizer().settings(), changes)
    if criteria is not None:
        settings["inspect"]["criteria"] = criteria
    return build(settings)


def _spelt_out(changes: dict[str, Any]) -> dict[str, Any]:
    edit = changes.get("edit")
    if not isinstance(edit, dict) or "model" not in edit:
        return changes
    rest = {key: value for key, value in edit.items() if key != "model"}
    return {**changes, "edit": config.merge({"editor": {"model": edit["model"]}}, rest)}


anonymize = load_preset("local")

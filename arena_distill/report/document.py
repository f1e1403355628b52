"""What a report says: every number a ``Figure`` that names its place in a file. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from arena_distill.report.figures import Figure

SCHEMA_VERSION = 1

RowsKind = Literal["out of fold", "held out", "test"]


@dataclass(frozen=True)
class Caution:
    """Something that does not fit together, and the files concerned."""

    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A part that is not there, and the command that makes it."""

    section: str
    text: str
    command: str


@dataclass(frozen=True)
class Headline:
    """What a reader should know first."""

    title: str
    model: str
    how: str
    kind: str  # of the weights
    rows: str  # which rows the score is of; empty without votes
    scores: dict[str, Figure]  # by name, each {"value", "low", "high"}
    beside: dict[str, Figure]  # log losses to compare with
    size: Figure | None
    speed: Figure | None  # rows a second
    device: str
    sentence: str  # instead of a score, where there are no votes
    finished: str


@dataclass(frozen=True)
class RowSet:
    """Which rows a figure is of. Only figures of equal keys may be compared."""

    kind: RowsKind
    label: str
    key: str


@dataclass(frozen=True)
class ChainRow:
    """One model of the chain, or one way to use it."""

    step: str
    how: str
    rows: RowSet | None
    log_loss: Figure | None
    main: bool = True  # on the way to the final model; else beside it, for comparison
    folds: tuple[Figure, ...] = ()  # log losses that ``log_loss`` is the mean of
    interval: Figure | None = None  # {"value", "low", "high"}
    accuracy: Figure | None = None
    ece: Figure | None = None
    delta: Figure | None = None  # log loss minus that of the step before, on the same rows
    size: Figure | None = None  # weights that it takes to judge a row
    size_note: str = ""
    leak: bool = False  # the other folds' teachers saw these rows
    reference: bool = False  # a baseline, or the best possible


@dataclass(frozen=True)
class Proof:
    """One conversion held against the model before it."""

    step: str
    claim: str
    value: Figure
    unit: Literal["relative", "probability", "nats", "share", "head"]
    bound: Figure | float | None  # the largest value allowed (the smallest, of an agreement)
    holds: bool | None


@dataclass(frozen=True)
class Reliability:
    """Bins of the highest probability, and scores, of one set of probabilities."""

    title: str
    bins: Figure
    scores: dict[str, Figure]


@dataclass(frozen=True)
class Calibration:
    """The temperature and what it changed."""

    rows: str
    temperature: Figure | None
    parts: tuple[Reliability, ...]
    ece_if_calibrated: Figure | None


@dataclass(frozen=True)
class Curve:
    """One training run: ``[[step, value], …]``."""

    label: str
    loss: Figure
    evaluation: Figure  # log loss on rows that choose the checkpoint; may be empty


@dataclass(frozen=True)
class CurveSet:
    """The training runs of one model, one a fold."""

    title: str
    note: str
    curves: tuple[Curve, ...]

    @property
    def evaluated(self) -> list[tuple[str, Any]]:
        """The lines of the log loss, as a chart takes them."""
        return [(one.label, one.evaluation.value) for one in self.curves if one.evaluation.value]

    @property
    def trained(self) -> list[tuple[str, Any]]:
        """The lines of the training loss."""
        return [(one.label, one.loss.value) for one in self.curves if one.loss.value]


@dataclass(frozen=True)
class Classes:
    """What is said of A, B and tie."""

    names: tuple[str, ...]
    confusion: Figure
    per_class: Figure


@dataclass(frozen=True)
class Slices:
    """One way to divide the test rows."""

    name: str
    slices: Figure


@dataclass(frozen=True)
class Bias:
    """One figure of how much the verdict depends on the order of the answers."""

    title: str
    interval: Figure
    unbiased: Figure | float


@dataclass(frozen=True)
class Quantization:
    """What step 7 changed."""

    model: Figure
    rows: str
    size_before: Figure | None
    size_after: Figure | None
    layers: Figure


@dataclass(frozen=True)
class Cost:
    """Outputs of one stage, or of one model in it, together."""

    stage: str
    what: str
    outputs: int
    seconds: Figure
    share: Figure | None
    speed: Figure | None
    speed_unit: str
    disk: Figure | None


@dataclass(frozen=True)
class SettingsTable:
    """What a stage was told."""

    stage: str
    settings: tuple[tuple[str, Any, Any, bool], ...]  # name, value, default, whether they differ
    files: tuple[str, ...]
    differing: tuple[str, ...] = ()  # settings in which its outputs differ from each other


@dataclass(frozen=True)
class Version:
    """One version of a package, and the stages that ran with it."""

    package: str
    version: str
    stages: tuple[str, ...]  # empty: all


@dataclass(frozen=True)
class DataFile:
    """A file that the run read."""

    role: str
    path: str
    sha256: Figure
    state: Literal["unchanged", "changed", "not there", "not known"]
    rows: Figure | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file that the report reads, or that an output consists of."""

    name: str
    sha256: str
    size: int | None
    state: Literal["read", "checked", "size checked", "changed", "missing"]


@dataclass
class Report:
    """The whole page."""

    run: str
    headline: Headline
    warnings: list[Caution] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    chain: list[ChainRow] = field(default_factory=list)
    baselines: Figure | None = None
    own_scores: Figure | None = None
    truth: Figure | None = None
    proofs: list[Proof] = field(default_factory=list)
    calibration: Calibration | None = None
    curves: list[CurveSet] = field(default_factory=list)
    classes: Classes | None = None
    slices: list[Slices] = field(default_factory=list)
    position_bias: list[Bias] = field(default_factory=list)
    views: Figure | None = None
    quantization: Quantization | None = None
    costs: list[Cost] = field(default_factory=list)
    total_seconds: Figure | None = None
    settings: list[SettingsTable] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    revisions: list[Version] = field(default_factory=list)
    data: list[DataFile] = field(default_factory=list)
    commands: str = ""
    files: list[FileEntry] = field(default_factory=list)


def as_json(value: Any) -> Any:
    """Any part of a report ready for JSON; a figure as ``{"value", "from"}`` or ``{"value", "rule", "of"}``."""
    if isinstance(value, Figure):
        return {"value": value.value, **_described(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def _described(figure: Figure) -> dict[str, Any]:
    if figure.origin:
        return {"from": figure.origin}
    return {"rule": figure.rule, "of": [_described(part) for part in figure.of]}

"""What each stage of a run was told, by its manifests, beside the defaults of its settings class."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import PydanticUndefined

from arena_distill.report.document import SettingsTable, Version
from arena_distill.report.inventory import SMALL_STUDENT, Inventory, Output
from arena_distill.runtime.settings import StageSettings
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    STAGES,
    TRAIN_TEACHERS,
)

_CLASSES = {
    POST_PRETRAIN.name: "arena_distill.training.post_pretrain_settings:PostPretrainSettings",
    MAKE_FOLDS.name: "arena_distill.data.fold_settings:FoldSettings",
    TRAIN_TEACHERS.name: "arena_distill.training.teacher_settings:TeacherSettings",
    INFER_TEACHER_LOGITS.name: "arena_distill.inference.oof_settings:OofSettings",
    DISTILL_STUDENT.name: "arena_distill.training.distill_settings:DistillSettings",
    LORA_ENSEMBLE.name: "arena_distill.conversion.average_settings:AverageSettings",
    QUANTIZE.name: "arena_distill.conversion.quantize_settings:QuantizeSettings",
    INFER_TTA.name: "arena_distill.inference.predict_settings:PredictSettings",
    SMALL_STUDENT: "arena_distill.training.student_settings:StudentSettings",
}
HOW_IT_RAN = {
    "force", "report_to", "mode", "student_stats_only", "cv_fold_idx", "student_folds", "teacher_folds", "infer_folds",
    "student_overwrite", "resume_checkpoint", "infer_force_regen", "infer_train_shards", "infer_train_shard_id",
}  # fmt: skip
"""Settings that say how the work was shared out, or that it was to be done again: not what came of it."""

SHARED = (
    "output_dir", "run", "seed", "train_csv", "extra_data", "n_folds", "folds_json", "test_csv", "labels_csv",
)  # fmt: skip
"""Settings of several stages, of which all steps of a run are told the same."""

# Step 4 records what it resolved and not what it was told, under shorter names.
_STEP_4 = {"max_length": "infer_max_seq_len", "swap": "infer_swap", "save_lasttok": "infer_save_lasttok"}


@dataclass(frozen=True)
class Told:
    """What the outputs of one stage were told."""

    stage: str
    values: dict[str, Any]
    defaults: dict[str, Any]
    differing: tuple[str, ...]  # in which the outputs of the stage differ from each other
    files: tuple[str, ...]

    def differs(self, name: str) -> bool:
        """Whether a setting was given another value than its default."""
        return name in self.defaults and self.values[name] != self.defaults[name]


def settings_class(stage: str) -> type[StageSettings]:
    """The settings class of a stage; imports no torch."""
    module, _, name = _CLASSES[stage].partition(":")
    found: type[StageSettings] = getattr(importlib.import_module(module), name)
    return found


def told(found: Inventory) -> list[Told]:
    """For every stage that left outputs, what it was told; in the order in which stages run."""
    by_stage: dict[str, list[Output]] = {}
    for output in found.outputs():
        if output.stage in _CLASSES:
            by_stage.setdefault(output.stage, []).append(output)
    if found.submission is not None:
        by_stage[INFER_TTA.name] = [found.submission]
    order = [*STAGES, SMALL_STUDENT]
    known = [_told(stage, by_stage[stage]) for stage in sorted(by_stage, key=order.index)]
    return [_completed(one, known) for one in known]


def _completed(one: Told, known: Sequence[Told]) -> Told:
    """Steps 4 and 8 do not record run and data: the same as of the other steps, or they would have refused."""
    if "run" in one.values:
        return one
    others = [other for other in known if "run" in other.values]
    missing = [name for name in SHARED if name in one.defaults and name not in one.values]
    lent = {name: other.values[name] for other in reversed(others) for name in missing if name in other.values}
    return replace(one, values=one.values | lent)


def _told(stage: str, outputs: Sequence[Output]) -> Told:
    own = _not_of_an_encoder(outputs)
    records = [record for output in own if (record := _recorded(output))]
    defaults = {name: _plain(field.default) for name, field in settings_class(stage).model_fields.items()}
    values: dict[str, Any] = {}
    for record in reversed(records):
        values |= record
    differing = sorted(
        name
        for name in values
        if name not in HOW_IT_RAN and any(record.get(name, values[name]) != values[name] for record in records)
    )
    return Told(stage, values, defaults, tuple(differing), tuple(output.manifest.name for output in own))


def _not_of_an_encoder(teachers: Sequence[Output]) -> Sequence[Output]:
    """Step 3 records an encoder's settings under the names of the others': those count that are of no encoder."""
    return [
        output
        for output in teachers
        if not output.manifest.get("all_settings", "encoder_ft_base")
        or output.manifest.get("family") != output.manifest.get("all_settings", "encoder_name")
    ] or teachers


def _recorded(output: Output) -> dict[str, Any]:
    known = output.manifest.get("all_settings")
    if known:
        return dict(known)
    settings = dict(output.manifest.get("settings") or {})
    if output.stage == INFER_TEACHER_LOGITS.name:
        return {new: settings[old] for old, new in _STEP_4.items() if old in settings}
    if output.stage == INFER_TTA.name:
        lengths = ",".join(str(length) for length in settings.get("tta_lengths") or [])
        return settings | {"tta_lengths": lengths, "model_dir": output.manifest.get("model_dir") or ""}
    return settings


def _plain(value: Any) -> Any:
    return None if value is PydanticUndefined else value if isinstance(value, bool | int | float | None) else str(value)


def settings_tables(everything: Sequence[Told]) -> list[SettingsTable]:
    """The settings of each stage, those that were changed first."""
    return [
        SettingsTable(
            one.stage,
            tuple(
                (name, one.values[name], one.defaults.get(name), one.differs(name))
                for name in sorted(one.values, key=lambda name: not one.differs(name))
            ),
            one.files,
            one.differing,
        )
        for one in everything
    ]


def versions(found: Inventory) -> tuple[list[Version], list[Version]]:
    """Package versions and git revisions, with the stages that ran with them where these differ."""
    packages: dict[str, dict[str, list[str]]] = {}
    revisions: dict[str, list[str]] = {}
    for output in found.outputs():
        for package, version in (output.manifest.get("versions") or {}).items():
            packages.setdefault(package, {}).setdefault(str(version or "not installed"), []).append(output.stage)
        revisions.setdefault(str(output.manifest.get("git_revision") or "not known"), []).append(output.stage)
    return [v for package, seen in packages.items() for v in _versions(package, seen)], _versions("", revisions)


def _versions(package: str, seen: dict[str, list[str]]) -> list[Version]:
    return [
        Version(package, version, tuple(dict.fromkeys(stages)) if len(seen) > 1 else ())
        for version, stages in seen.items()
    ]

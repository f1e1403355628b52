"""What of a run's outputs is there, told quickly: by manifests, sizes of files, and hashes of small ones.

A look for people. Whether a stage has nothing left to do is decided by ``completeness``, which hashes every input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arena_distill.pipeline.run_environment import settings_of
from arena_distill.runtime.artifacts import (
    MANIFEST,
    fingerprint,
    partial_directory,
    read_manifest_file,
    sha256_file,
)
from arena_distill.runtime.errors import ArenaError, InputError
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)

if TYPE_CHECKING:
    from arena_distill.report.report_settings import ReportSettings

HASHED = 1 << 26
"""Input files of more bytes than this are not compared: a look should take no longer than a second."""

Condition = Literal["complete", "partial", "missing", "stale"]
Environment = Mapping[str, str]


@dataclass(frozen=True)
class ArtifactState:
    """What is there of what a task, or a stage, writes."""

    state: Condition  # partial: some of it, or a checkpoint; stale: of other settings or inputs, or damaged
    detail: str = ""  # checkpoint 120; 1 of 2; made with another teacher_lr ...
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """One output as it should be. What is not known, or not quickly, is left out of ``settings`` and ``inputs``."""

    path: Path  # directory, or file with its manifest beside it
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    copy_of: Path | None = None  # a merged copy of this adapter
    made_by: str = ""  # key of what the manifest of a merged copy says of its adapter
    said: Mapping[str, str | None] = field(default_factory=dict)  # other entries of the manifest
    optional: bool = False
    work: tuple[Path, ...] = ()  # where else than beside it unfinished work may be

    @property
    def manifest(self) -> Path:
        """Where its manifest is."""
        return self.path.with_suffix(".manifest.json") if self.path.suffix else self.path / MANIFEST


Outputs = dict[int | None, list[Output]]


class Look:
    """One look at a run: every manifest is read, and every file hashed, once."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._manifests: dict[Path, dict[str, Any] | None] = {}
        self._digests: dict[Path, str | None] = {}

    def states(self, stage: str) -> dict[int | None, ArtifactState]:
        """By fold, and under None what belongs to no fold (of step 4 the table). Never raises.

        Settings of the run that are not valid any more make everything ``missing``, with the reason.
        """
        try:
            found = {task: self.together(outputs) for task, outputs in _EXPECTED[stage](self).items()}
            return {None: _with_report(self, found[None])} if stage == EVAL.name else found
        except (ArenaError, OSError) as error:
            return {None: ArtifactState("missing", str(error))}
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            return {None: ArtifactState("stale", f"a manifest is not as ours are ({error!r})")}

    def together(self, outputs: Sequence[Output]) -> ArtifactState:
        """Several outputs as one."""
        wanted = [output for output in outputs if not (output.optional and not output.path.exists())]
        found = [self.state(output) for output in wanted]
        paths = tuple(str(output.path) for output in wanted)
        for state in ("stale", "partial"):
            if first := next((one for one in found if one.state == state), None):
                return ArtifactState(first.state, first.detail, paths)
        missing = [one for one in found if one.state == "missing"]
        if not missing and found:
            return ArtifactState("complete", "", paths)
        if len(missing) == len(found):
            return ArtifactState("missing", "", paths)
        return ArtifactState("partial", f"{len(found) - len(missing)} of {len(found)}", paths)

    def state(self, output: Output) -> ArtifactState:
        """One output."""
        try:
            manifest = self.manifest(output.manifest)
        except InputError:
            return ArtifactState("stale", f"{output.manifest} is broken")
        if manifest is None or not output.path.exists():
            begun = self._begun(output)
            return ArtifactState("partial", begun) if begun else ArtifactState("missing")
        wrong = self._wrong(output, manifest)
        return ArtifactState("stale", wrong) if wrong else ArtifactState("complete")

    def manifest(self, path: Path) -> dict[str, Any] | None:
        """A manifest, or None where there is none.

        Raises:
            InputError: it is broken.
        """
        if path not in self._manifests:
            self._manifests[path] = read_manifest_file(path)
        return self._manifests[path]

    def digest(self, path: Path | None) -> str | None:
        """SHA-256 of a file, or None where there is none or it is large."""
        if path is None:
            return None
        if path not in self._digests:
            small = path.is_file() and path.stat().st_size <= HASHED
            self._digests[path] = sha256_file(path) if small else None
        return self._digests[path]

    def identity(self, directory: Path) -> str | None:
        """What tells a finished output from another, as later stages record it; None where there is none."""
        with suppress(InputError):
            if (manifest := self.manifest(directory / MANIFEST)) is not None:
                return fingerprint({}, manifest["outputs"])
        return None

    def _begun(self, output: Output) -> str:
        """What unfinished work there is that its stage would go on from; empty for none."""
        hidden = partial_directory(output.path)
        places = [path for place in (hidden.parent, *output.work) for path in place.glob(f"{hidden.name}*")]
        steps = [int(path.name.rpartition("-")[2]) for path in _checkpoints(places)]
        if steps:
            return f"checkpoint {max(steps)}"
        parts = sum(1 for place in places for _ in place.glob("shard_*_of_*.npy"))
        return f"{parts} part{'s' * (parts != 1)} begun" if parts else ""

    def _wrong(self, output: Output, manifest: Mapping[str, Any]) -> str:
        """Why a finished output is not what it should be; empty if it is."""
        directory = output.path if output.path.is_dir() else output.path.parent
        if not manifest["outputs"]:
            return f"{output.manifest} names no files"
        sizes = manifest.get("output_bytes") or {}
        for name in manifest["outputs"]:
            file = directory / name
            if not file.is_file() or (name in sizes and file.stat().st_size != sizes[name]):
                return f"{file} is missing or cut off"
        had = manifest.get("settings") or {}
        told = json.loads(json.dumps(dict(output.settings), default=str))
        if other := [name for name in sorted(told.keys() & had.keys()) if told[name] != had[name]]:
            return f"made with {', '.join(f'{name} {had[name]!r}, now {told[name]!r}' for name in other[:3])}"
        inputs = manifest.get("inputs") or {}
        for name, digest in output.inputs.items():
            if digest is not None and name in inputs and inputs[name] != digest:
                return f"made from another {name}"
        for name, value in output.said.items():
            if value is not None and name in manifest and manifest[name] != value:
                return f"made from another {name}"
        if output.copy_of is not None:
            return self._not_of(output, manifest)
        return ""

    def _not_of(self, output: Output, manifest: Mapping[str, Any]) -> str:
        assert output.copy_of is not None
        verified = manifest.get("verified") or {}
        recorded = (verified.get(output.made_by) or {} if output.made_by else verified).get("adapter_outputs")
        now = self.identity(output.copy_of)
        return f"merged from an earlier {output.copy_of.name}" if now is not None and recorded != now else ""


def _checkpoints(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        for path in place.glob("training/checkpoint-*"):
            if re.fullmatch(r"checkpoint-\d+", path.name):
                yield path


def _data_file(given: str, name: str) -> Path | None:
    from arena_distill.data.find_file import find_file

    with suppress(InputError):
        return find_file(given, name, "")
    return None


def _extras(look: Look, paths: Sequence[Path], name: str) -> dict[str, str | None]:
    return {f"{name}_{number}": look.digest(path) for number, path in enumerate(paths)}


def _post_pretrained(look: Look) -> Outputs:
    from arena_distill.training.post_pretrain_settings import PostPretrainSettings

    settings = settings_of(PostPretrainSettings, look.environment)
    inputs = _extras(look, settings.data_paths, "ut_data")
    inputs["train_csv"] = look.digest(_data_file(settings.train_csv, "train"))
    scratch = (Path(settings.scratch_base),) if settings.scratch_base else ()
    outputs = []
    for plan in settings.plans:
        outputs.append(Output(plan.adapter, settings.dump(), inputs, work=scratch))
        if plan.merged is not None:
            outputs.append(Output(plan.merged, copy_of=plan.adapter, made_by=POST_PRETRAIN.name))
    return {None: outputs}


def _folds(look: Look) -> Outputs:
    from arena_distill.data.fold_settings import FoldSettings

    settings = settings_of(FoldSettings, look.environment)
    inputs = _extras(look, settings.extra_paths, "extra_data")
    inputs["train_csv"] = look.digest(_data_file(settings.train_csv, "train"))
    file = look.digest(settings.folds_path) or "none"
    return {None: [Output(settings.fold_data, settings.dump(), inputs, said={"folds_json_sha256": file})]}


def _teachers(look: Look) -> Outputs:
    from arena_distill.training.teacher_settings import TeacherSettings

    settings = settings_of(TeacherSettings, look.environment)
    inputs = _extras(look, settings.extra_paths, "extra_data")
    inputs["train_csv"] = look.digest(_data_file(settings.train_csv, "train"))
    inputs["folds_json"] = look.digest(settings.folds_path)
    found: Outputs = {}
    for fold in settings.fold_numbers:
        outputs = []
        for name in settings.families:
            own = settings.of_family(name)
            adapter, merged = settings.adapter_dir(name, fold), settings.merged_dir(name, fold)
            outputs.append(Output(adapter if own.teacher_lora_r else merged, own.dump(), inputs))
            if own.teacher_lora_r and settings.teacher_merge != "0":
                outputs.append(Output(merged, copy_of=adapter, optional=settings.teacher_merge == "auto"))
        found[fold] = outputs
    return found


def _teacher_names(look: Look, wanted: Sequence[str]) -> list[str]:
    """Whose logits there should be: those asked for, else those that step 3 trains."""
    from arena_distill.training.teacher_settings import TeacherSettings

    return list(wanted) or list(settings_of(TeacherSettings, look.environment).families)


def _logits(look: Look) -> Outputs:
    from arena_distill.inference.oof_settings import OofSettings

    settings = settings_of(OofSettings, dict(look.environment) | {"INFER_TRAIN_SHARDS": "1"})  # outputs are of folds
    names = _teacher_names(look, settings.wanted_models)
    told: dict[str, Any] = {"swap": settings.infer_swap, "save_lasttok": settings.infer_save_lasttok}
    told |= {"max_length": settings.infer_max_seq_len} if settings.infer_max_seq_len else {}
    told |= {"quant": settings.infer_quant} if settings.infer_quant != "auto" else {}
    inputs = {
        "train_csv": look.digest(_data_file(settings.train_csv, "train")),
        "folds_json": look.digest(settings.folds_path),
    }
    found: Outputs = {}
    made: dict[str, str | None] = {}
    for fold in settings.wanted_folds:
        found[fold] = []
        for name in names:
            path = settings.logits_dir / f"{name}_fold_{fold}"
            made[path.name] = look.identity(path)
            found[fold].append(Output(path, told, inputs | {"teacher": _teacher(look, settings.model_save, path.name)}))
    return found | {None: [Output(settings.table_path, inputs=inputs | made)]}


def _teacher(look: Look, models: Path, name: str) -> str | None:
    """Identity of a teacher, as step 4 records it: that of its adapter, or of the model where there is none."""
    adapter = models / f"{name}_lora"
    return look.identity(adapter if adapter.is_dir() else models / name)


def _students(look: Look) -> Outputs:
    from arena_distill.training.distill_settings import DistillSettings

    settings = settings_of(DistillSettings, look.environment)
    table = settings.table_path
    recorded = look.manifest(table.with_suffix(".manifest.json")) if settings.distills else None
    files = (look.manifest(settings.fold_data / MANIFEST) or {"outputs": {}})["outputs"]
    inputs = {
        "train_csv": look.digest(_data_file(settings.train_csv, "train")),
        "folds_json": look.digest(settings.folds_path),
        "oof_table": recorded["outputs"].get(table.name) if recorded else None,
    }
    told = settings.dump()
    return {
        fold: [
            Output(
                settings.student_dir(fold),
                told,
                inputs | {f"fold_{part}_csv": files.get(f"fold_{fold}_{part}.csv") for part in ("train", "val")},
            )
        ]
        for fold in settings.fold_numbers
    }


def _average(look: Look) -> Outputs:
    from arena_distill.conversion.average_settings import AverageSettings

    settings = settings_of(AverageSettings, look.environment)
    told = settings.dump() | {"folds": settings.fold_numbers}
    inputs = {f"fold_{fold}": look.identity(settings.student_dir(fold)) for fold in settings.fold_numbers}
    rows = {"test_csv": look.digest(_data_file(settings.test_csv, "test"))}
    lora = Output(settings.lora_dir, told, inputs)
    merged = {"adapter_outputs": look.identity(settings.lora_dir)}
    return {None: [lora, Output(settings.merged_dir, told, inputs | rows, said=merged)]}


def _quantized(look: Look) -> Outputs:
    from arena_distill.conversion.quantize_settings import QuantizeSettings

    settings = settings_of(QuantizeSettings, look.environment)
    told = settings.dump() | ({"max_length": settings.quant_max_length} if settings.quant_max_length else {})
    inputs: dict[str, str | None] = {"test_csv": look.digest(_data_file(settings.test_csv, "test"))}
    if settings.out_path.is_dir() and (settings.model_path / MANIFEST).is_file():
        from arena_distill.inference.predict_job import student_identity

        inputs["model"] = student_identity(settings.model_path)  # of large files pieces only
    return {None: [Output(settings.out_path, told, inputs)]}


def _predicted(look: Look) -> Outputs:
    from arena_distill.inference.predict_settings import PredictSettings

    settings = settings_of(PredictSettings, look.environment)
    told: dict[str, Any] = {"tta_swap": settings.tta_swap, "predict_bf16": settings.predict_bf16}
    if settings.tta_lengths:
        told["tta_lengths"] = settings.lengths(None, Path())
    weights = None
    with suppress(InputError):
        outputs = (look.manifest(settings.model / MANIFEST) or {"outputs": {}})["outputs"]
        weights = "+".join(outputs[name] for name in sorted(outputs) if name.endswith(".safetensors")) or None
    inputs = {"test_csv": look.digest(_data_file(settings.test_csv, "test"))}
    return {None: [Output(settings.submission, told, inputs, said={"weights_sha256": weights})]}


def _evaluated(look: Look) -> Outputs:
    from arena_distill.evaluation.evaluation_settings import EvaluationSettings

    settings = settings_of(EvaluationSettings, look.environment)
    ensemble = settings.in_sub("final_ensemble.csv")
    made = (look.manifest(ensemble.with_suffix(".manifest.json")) or {}).get("inputs") or {}
    of_ensemble = {name: look.digest(Path(name)) for name in made}
    evaluation = settings.out_file
    judged = (look.manifest(evaluation.with_suffix(".manifest.json")) or {}).get("inputs") or {}
    of_evaluation = {name: look.digest(settings.output_dir / name) for name in judged}
    return {
        None: [
            Output(ensemble, inputs=of_ensemble),
            Output(evaluation, inputs=of_evaluation, optional=True),  # without votes there is none
        ]
    }


def _with_report(look: Look, state: ArtifactState) -> ArtifactState:
    """Step 9 with its report: not complete without one, stale with one of earlier outputs."""
    from arena_distill.report.report_settings import ReportSettings

    if state.state != "complete":
        return state
    settings = settings_of(ReportSettings, look.environment)
    outputs = (*state.outputs, str(settings.page))
    if not settings.page.is_file():
        return ArtifactState("partial", f"no {settings.page.name}", outputs)
    current = report_is_current(settings)
    return ArtifactState(
        "complete" if current else "stale", "" if current else f"{settings.page.name} is of earlier outputs", outputs
    )


def report_is_current(settings: ReportSettings) -> bool:
    """Whether the report was made of every manifest of the run as it is now, by what it says itself."""
    data = settings.page.with_suffix(".json")
    try:
        recorded = {entry["name"]: entry["sha256"] for entry in json.loads(data.read_text("utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    models, root = settings.model_save, settings.output_dir.resolve()
    own = [*models.glob(f"*/{MANIFEST}"), *models.glob(f"teacher_logits/*/{MANIFEST}")]
    files = [path for path in own if not path.parent.name.startswith(".")]
    files += [settings.in_sub(f"{name}.manifest.json") for name in ("final_submission", "final_ensemble", "evaluation")]
    for path in (file.resolve() for file in files if file.is_file()):
        name = path.relative_to(root) if path.is_relative_to(root) else path
        if recorded.get(name.as_posix()) != sha256_file(path):
            return False
    return True


_EXPECTED: dict[str, Callable[[Look], Outputs]] = {
    POST_PRETRAIN.name: _post_pretrained,
    MAKE_FOLDS.name: _folds,
    TRAIN_TEACHERS.name: _teachers,
    INFER_TEACHER_LOGITS.name: _logits,
    DISTILL_STUDENT.name: _students,
    LORA_ENSEMBLE.name: _average,
    QUANTIZE.name: _quantized,
    INFER_TTA.name: _predicted,
    EVAL.name: _evaluated,
}

"""The commands that make a run again: an environment and a stage script each, from what the manifests recorded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from arena_distill.report.document import DataFile
from arena_distill.report.inventory import TINY_MODELS, Inventory, Output
from arena_distill.report.recorded_settings import HOW_IT_RAN, SHARED, Told
from arena_distill.report.run_files import JsonFile, RunFiles
from arena_distill.runtime.artifacts import MANIFEST
from arena_distill.runtime.stages import DISTILL_STUDENT, EVAL, INFER_TEACHER_LOGITS, INFER_TTA, STAGES, TRAIN_TEACHERS

_FOLDS = {TRAIN_TEACHERS.name: "teacher_folds", DISTILL_STUDENT.name: "student_folds"}


def commands(found: Inventory, everything: Sequence[Told], data: Sequence[DataFile], files: RunFiles) -> str:
    """A shell script, to be run in the repository; empty where no stage says what it was told.

    Args:
        found: what is there.
        everything: what its stages were told.
        data: the files that they read.
        files: reads manifests.
    """
    if not everything:
        return ""
    shared = _shared(everything, found)
    lines = ["unset PROFILE # what it would set is said here", *_tiny_models(found, data, files)]
    if found.labels_elsewhere and found.oof_table is not None:
        lines.append(f"# The teachers' labels are those of another run: {files.name(found.oof_table.path)}")
    if shared:
        lines.append(_wrapped(["export", *_assignments(shared)]))
    rows = _rows(everything, shared, found)
    lines += [_command(one, shared, rows, found) for one in everything]
    lines += _last_step(rows, found)
    return "\n\n".join(lines) + "\n"


def _shared(everything: Sequence[Told], found: Inventory) -> dict[str, Any]:
    """Settings of several stages that all of these were given the same value of, other than the default."""
    shared = {}
    for name in SHARED:
        having = [one for one in everything if name in one.values]
        values = {repr(one.values[name]) for one in having}
        if len(values) == 1 and all(one.differs(name) for one in having):
            shared[name] = having[0].values[name]
    return shared


def _rows(everything: Sequence[Told], shared: Mapping[str, Any], found: Inventory) -> dict[str, Any]:
    """Test rows and votes for the last steps, as the evaluation names them, and the votes of its baselines."""
    evaluation = found.evaluation
    if evaluation is None:
        return {}
    values = [one.values for one in everything]
    root = next((str(some["output_dir"]) for some in values if "output_dir" in some), ".")
    test, labels = (PurePath(root, str(evaluation.get(name))) for name in ("test", "labels"))
    rows = {"test_csv": str(test), "labels_csv": str(labels)}
    if labels == test.with_name(f"{test.stem}_labels{test.suffix}"):  # found by itself
        del rows["labels_csv"]
    trained_on = next((str(some["train_csv"]) for some in values if some.get("train_csv")), "")
    if evaluation.get("baselines") and trained_on:
        rows["train_csv"] = trained_on
    return {name: path for name, path in rows.items() if PurePath(path) != PurePath(str(shared.get(name)))}


def _command(one: Told, shared: Mapping[str, Any], rows: Mapping[str, Any], found: Inventory) -> str:
    own = {
        name: value
        for name, value in one.values.items()
        if one.differs(name) and name not in HOW_IT_RAN and not (name in shared and shared[name] == value)
    }
    own |= _folds(one, found)
    if one.stage == INFER_TEACHER_LOGITS.name:
        own |= _families(found)
        if _own_lengths(found):
            own.pop("infer_max_seq_len", None)
    if one.stage == INFER_TTA.name:
        own |= {name: path for name, path in rows.items() if name != "train_csv"}
        if _is_default_model(found):
            own.pop("model_dir", None)
    script = STAGES[one.stage].script if one.stage in STAGES else _small_script(found)
    return _wrapped([*_assignments(own), f"bash {script}"])


def _own_lengths(found: Inventory) -> bool:
    """Whether teachers scored at the lengths that they were trained with, which step 4 records like any other."""
    trained = {(one.manifest.get("family"), one.fold): one for one in found.teachers}
    return all(
        teacher is None or one.manifest.get("settings", "max_length") == _length(teacher)
        for one in found.teacher_logits
        for teacher in [trained.get((one.manifest.get("family"), one.fold))]
    )


def _length(teacher: Output) -> Any:
    return teacher.manifest.get("all_settings", "teacher_maxlen")


def _is_default_model(found: Inventory) -> bool:
    """Whether step 8 would find the model that predicted by itself."""
    default = found.quantized or found.merged
    named = found.submission.manifest.get("model_dir") if found.submission is not None else None
    return default is not None and PurePath(str(named)).parts[-2:] == default.path.parts[-2:]


def _families(found: Inventory) -> dict[str, Any]:
    families = found.oof_table.manifest.get("settings", "families") if found.oof_table else None
    trained = {one.manifest.get("family") for one in found.teachers}
    return {"infer_models": ",".join(families)} if families and set(families) != trained else {}


def _folds(one: Told, found: Inventory) -> dict[str, Any]:
    """Which folds, where not all of them are there."""
    setting = _FOLDS.get(one.stage)
    outputs = found.teachers if one.stage == TRAIN_TEACHERS.name else found.final_students
    folds = sorted({output.fold for output in outputs if output.fold is not None})
    whole = len(folds) == one.values.get("n_folds")
    return {} if setting is None or whole or not folds else {setting: ",".join(map(str, folds))}


def _small_script(found: Inventory) -> str:
    folds = [one for some in found.small_students.values() for one in some if one.fold is not None]
    return "job_distill_all_in_one.sh" if folds else "job.sh"


def _last_step(rows: Mapping[str, Any], found: Inventory) -> Iterator[str]:
    if found.ensemble is None and found.evaluation is None:
        return
    weighted = found.ensemble is not None and found.ensemble.manifest.get("settings", "method") == "auto"
    own = dict(rows) | ({"use_weighted": True} if weighted else {})
    evaluated = found.evaluated.manifest if found.evaluated is not None else None
    resamples = evaluated.get("settings", "evaluation_resamples") if evaluated is not None else None
    if resamples not in (None, 1000):
        own["evaluation_resamples"] = resamples
    yield _wrapped([*_assignments(own), f"bash {EVAL.script}"])


def _tiny_models(found: Inventory, data: Sequence[DataFile], files: RunFiles) -> Iterator[str]:
    """Bases that were made and not downloaded; one command for all that were made alike."""
    families: dict[str, list[str]] = {}
    for base in dict.fromkeys(str(one.manifest.get("base_model") or "") for one in found.outputs()):
        path = files.path(base)
        manifest = files.manifest(path / MANIFEST) if base and path.is_dir() else None
        if manifest is not None and manifest.get("stage") == TINY_MODELS:
            flags = _flags_of_tiny_model(files.name(path.parent), manifest, data)
            families.setdefault(flags, []).append(str(manifest.get("settings", "family")))
    for flags, names in families.items():
        words = ["python scripts/make_tiny_models.py", f"--families {','.join(dict.fromkeys(names))}"]
        yield _wrapped([*words, *flags.split("\n")])


def _flags_of_tiny_model(directory: str, manifest: JsonFile, data: Sequence[DataFile]) -> str:
    """All flags but the families, one a line."""
    texts = (one.path for one in data if one.sha256.value == manifest.get("inputs", "texts") and one.path)
    flags: dict[str, Any] = {
        "texts": next(texts, None),
        "out-dir": directory,
        **(manifest.get("settings", "size") or {}),
        "pretrain-epochs": manifest.get("settings", "pretrain_epochs"),
        "seed": manifest.get("settings", "seed"),
    }
    return "\n".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items() if value is not None)


def _assignments(values: Mapping[str, Any]) -> list[str]:
    """``NAME=value``, quoted; an empty value is no value in an environment, as in a settings class."""
    return [f"{name.upper()}={shlex.quote(_text(value))}" for name, value in values.items() if value not in ("", None)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _wrapped(words: Sequence[str], width: int = 100) -> str:
    """Words over lines that a shell reads as one."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)

"""Whether the parts of a run belong together: what each recorded of the one before it, against what is there now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arena_distill.evaluation.calibration_file import CALIBRATION_FILE
from arena_distill.report.document import Caution, DataFile, FileEntry
from arena_distill.report.inventory import Inventory, Output, weights_sha256
from arena_distill.report.recorded_settings import Told
from arena_distill.report.run_files import RunFiles
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.stages import EVAL, INFER_TTA, LORA_ENSEMBLE, QUANTIZE, STAGES

HASHED_WHOLE = 1 << 26
"""Outputs of more bytes than this are checked by their size alone: a report isn't to read 140 GB."""


def cautions(found: Inventory, files: RunFiles, told: list[Told], data: list[DataFile]) -> list[Caution]:
    """Everything that does not fit together, each with the files concerned."""
    return [
        *_labels(found),
        *_students(found),
        *_averaged(found),
        *_quantized(found),
        *_predicted(found, files),
        *_ensembled(found, files),
        *_evaluated(found, files),
        *_other_tests(found),
        *_mixed_settings(told),
        *_data(data),
    ]


def _made_from_another(made: Output, source: str, recorded: object, now: object, remedy: str) -> Caution:
    return Caution(
        f"{made.path.name} was made from another {source} than the one that is there now "
        f"(it records {_short(recorded)}, now it is {_short(now)}) -> {remedy}",
        (made.manifest.name,),
    )


def _short(digest: object) -> str:
    return str(digest)[:12]


def _again(output: Output) -> str:
    return f"bash {STAGES[output.stage].script}" if output.stage in STAGES else "make it again"


def _labels(found: Inventory) -> Iterator[Caution]:
    """Out-of-fold logits against teachers, and the table against the logits."""
    teachers = {(one.manifest.get("family"), one.fold): one for one in found.teachers}
    for logits in found.teacher_logits:
        teacher = teachers.get((logits.manifest.get("family"), logits.fold))
        recorded = logits.manifest.get("inputs", "teacher")
        if teacher is not None and recorded != teacher.identity:
            yield _made_from_another(logits, f"teacher {teacher.path.name}", recorded, teacher.identity, _again(logits))
    if found.oof_table is not None:
        recorded_inputs = found.oof_table.manifest.get("inputs") or {}
        for logits in found.teacher_logits:
            recorded = recorded_inputs.get(logits.path.name)
            if recorded not in (None, logits.identity):
                yield _made_from_another(
                    found.oof_table, f"teacher_logits/{logits.path.name}", recorded, logits.identity, _again(logits)
                )


def _students(found: Inventory) -> Iterator[Caution]:
    table = found.oof_table
    now = (table.manifest.get("outputs") or {}).get(table.path.name) if table is not None else None
    for students in found.students.values():
        for student in students:
            recorded = student.manifest.get("inputs", "oof_table")
            if table is not None and recorded not in (None, now):
                yield _made_from_another(student, table.path.name, recorded, now, _again(student))


def _averaged(found: Inventory) -> Iterator[Caution]:
    students = {f"fold_{one.fold}": one for one in found.final_students}
    for output in (found.averaged, found.merged):
        for name, student in students.items() if output is not None else ():
            recorded = output.manifest.get("inputs", name) if output is not None else None
            if output is not None and recorded not in (None, student.identity):
                yield _made_from_another(output, student.path.name, recorded, student.identity, _again(output))
    if found.merged is not None and found.averaged is not None:
        recorded = found.merged.manifest.get("adapter_outputs")
        if recorded not in (None, found.averaged.identity):
            yield _made_from_another(
                found.merged,
                found.averaged.path.name,
                recorded,
                found.averaged.identity,
                f"bash {LORA_ENSEMBLE.script}",
            )


def _quantized(found: Inventory) -> Iterator[Caution]:
    quantized, merged = found.quantized, found.merged
    if quantized is None or merged is None or quantized.manifest.get("all_settings", "model_dir"):
        return
    from arena_distill.inference.predict_job import student_identity

    recorded, now = quantized.manifest.get("inputs", "model"), student_identity(merged.path)
    if recorded not in (None, now):
        yield _made_from_another(quantized, merged.path.name, recorded, now, f"bash {QUANTIZE.script}")


def _predicted(found: Inventory, files: RunFiles) -> Iterator[Caution]:
    submission = found.submission
    if submission is None:
        return
    named = str(submission.manifest.get("model_dir") or "")
    recorded = submission.manifest.get("weights_sha256")
    model = next((one for one in _models(found) if named and _same(one.path, files.path(named))), None)
    if model is not None and recorded not in (None, weights_sha256(model.manifest)):
        now = weights_sha256(model.manifest)
        yield _made_from_another(submission, model.path.name, recorded, now, f"bash {INFER_TTA.script}")
    if model is not None and model is not found.quantized and found.quantized is not None:
        yield Caution(
            f"{submission.path.name} was predicted by {model.path.name}, although {found.quantized.path.name} is there "
            f"-> bash {INFER_TTA.script}",
            (submission.manifest.name, found.quantized.manifest.name),
        )
    yield from _calibrated(submission, model)


def _calibrated(submission: Output, model: Output | None) -> Iterator[Caution]:
    file = model.file(CALIBRATION_FILE) if model is not None else None
    recorded = submission.manifest.get("inputs", "calibration")
    if file is not None and file.is_file() and recorded not in (None, "none", sha256_file(file)):
        yield Caution(
            f"{submission.path.name} was calibrated by another {CALIBRATION_FILE} than that of {file.parent.name} "
            f"-> bash {INFER_TTA.script}, unless CALIB_JSON named another on purpose",
            (submission.manifest.name,),
        )


def _models(found: Inventory) -> Iterator[Output]:
    for output in (found.quantized, found.merged, found.averaged, *found.final_students):
        if output is not None:
            yield output


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _ensembled(found: Inventory, files: RunFiles) -> Iterator[Caution]:
    if found.ensemble is None:
        return
    for name, recorded in (found.ensemble.manifest.get("inputs") or {}).items():
        path = files.path(str(name))
        if path.is_file() and sha256_file(path) != recorded:
            yield _made_from_another(found.ensemble, str(name), recorded, sha256_file(path), f"bash {EVAL.script}")


def _evaluated(found: Inventory, files: RunFiles) -> Iterator[Caution]:
    """Manifests say when they were written, so that they change without anything else; they do not count."""
    if found.evaluation is None:
        return
    for name, recorded in (found.evaluation.get("files") or {}).items():
        path = files.path(str(name))
        if name.endswith(".manifest.json") or (path.is_file() and sha256_file(path) == recorded):
            continue
        state = "has changed since" if path.is_file() else "is not there any more"
        yield Caution(
            f"{found.evaluation.path.name} is of another {name}, which {state} -> bash {EVAL.script}",
            (found.evaluation.name,),
        )


def _other_tests(found: Inventory) -> Iterator[Caution]:
    """Figures of different test files stand side by side, and must not be compared."""
    digests: dict[str, list[Output]] = {}
    for output in (found.merged, found.quantized, found.submission):
        digest = output.manifest.get("inputs", "test_csv") if output is not None else None
        if output is not None and digest:
            digests.setdefault(str(digest), []).append(output)
    if len(digests) > 1:
        names = "; ".join(f"{_short(d)}: {', '.join(o.path.name for o in some)}" for d, some in digests.items())
        yield Caution(
            f"the steps were scored on different test files ({names}) -> give all of them the same TEST_CSV",
            tuple(output.manifest.name for some in digests.values() for output in some),
        )


def _mixed_settings(told: list[Told]) -> Iterator[Caution]:
    for one in told:
        if one.differing:
            names = ", ".join(name.upper() for name in one.differing)
            yield Caution(f"the outputs of {one.stage} were made with different settings: {names}", one.files)


def _data(data: list[DataFile]) -> Iterator[Caution]:
    for one in data:
        if one.state == "changed":
            yield Caution(
                f"{one.path} ({one.role}) is not the file that the run read, whose hash was {_short(one.sha256.value)}",
                one.sha256.files,
            )
    roles: dict[str, set[str]] = {}
    for one in data:
        roles.setdefault(one.role, set()).add(one.sha256.value)
    for digest in roles.get("test rows", set()) & (
        roles.get("training votes", set()) | roles.get("more training votes", set())
    ):
        yield Caution(f"the test rows are a training file ({_short(digest)}): no score on them means anything")


def file_entries(found: Inventory, files: RunFiles) -> tuple[list[FileEntry], list[Caution]]:
    """Every file that was read, every file that a manifest lists, and a caution for those that are not as it says."""
    entries = [
        FileEntry(name, digest, files.path(name).stat().st_size, "read") for name, digest in sorted(files.read.items())
    ]
    concerns = []
    for output in found.outputs():
        wrong = []
        for name, digest in (output.manifest.get("outputs") or {}).items():
            path = output.path / name if output.path.is_dir() else output.path.with_name(name)
            if files.name(path) in files.read and files.read[files.name(path)] == digest:
                continue
            entry = _entry(path, files.name(path), str(digest), output)
            entries.append(entry)
            if entry.state in ("changed", "missing"):
                wrong.append(f"{name} {'is gone' if entry.state == 'missing' else 'has changed'}")
        if wrong:
            text = f"of {output.path.name}: {', '.join(wrong)} since its manifest was written -> {_again(output)}"
            concerns.append(Caution(text, (output.manifest.name,)))
    return entries, concerns


def _entry(path: Path, name: str, digest: str, output: Output) -> FileEntry:
    if not path.is_file():
        return FileEntry(name, digest, None, "missing")
    size, expected = path.stat().st_size, (output.manifest.get("output_bytes") or {}).get(path.name)
    if expected not in (None, size):
        return FileEntry(name, digest, size, "changed")
    if size > HASHED_WHOLE:
        return FileEntry(name, digest, size, "size checked")
    return FileEntry(name, digest, size, "checked" if sha256_file(path) == digest else "changed")

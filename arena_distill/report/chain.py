"""The chain of models, from the teachers to the submission: what each scores, on which rows, and what it weighs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from arena_distill.evaluation.scoreboard import TRUTH_NAME
from arena_distill.report.document import ChainRow, RowSet
from arena_distill.report.figures import Figure, derive
from arena_distill.report.inventory import Inventory, Output
from arena_distill.report.run_files import JsonFile, RunFiles
from arena_distill.runtime.artifacts import MANIFEST
from arena_distill.runtime.stages import ENSEMBLE

BEST_BASELINE = "TF-IDF"
LIMITS = {"average_eval_rows": "step 6", "quant_eval_rows": "step 7"}


def chain(found: Inventory, files: RunFiles) -> list[ChainRow]:
    """The rows of the table, with differences between steps that were scored on the same rows."""
    rows = [*_teachers(found, files), *_held_out(found), *_converted(found, files), *_predicted(found)]
    return _with_differences(rows)


UNCALIBRATED = "TTA"
"""Several views at T = 1: what stands before it is calibrated, so that the difference would be of two things."""


def _with_differences(rows: Iterable[ChainRow]) -> list[ChainRow]:
    finished = []
    before: ChainRow | None = None
    for row in rows:
        comparable = row.main and row.log_loss is not None and row.rows is not None and not row.reference
        if comparable and before is not None and before.rows is not None and row.rows is not None:
            assert row.log_loss is not None and before.log_loss is not None
            same = before.rows.key == row.rows.key and row.rows.kind == "test" and row.step != UNCALIBRATED
            row = replace(row, delta=derive("difference", row.log_loss, before.log_loss)) if same else row
        before = row if comparable else before
        finished.append(row)
    return finished


def _scores(file: JsonFile, *keys: str | int) -> dict[str, Any]:
    """Log loss, accuracy and ECE under these keys, as a row of the chain takes them."""
    return {
        "log_loss": file.needed_number(*keys, "log_loss"),
        "accuracy": file.number(*keys, "accuracy"),
        "ece": file.number(*keys, "ece"),
    }


# Teachers


def _teachers(found: Inventory, files: RunFiles) -> Iterator[ChainRow]:
    table = found.oof_table
    if table is None or not table.manifest.get("metrics"):
        return
    manifest = table.manifest
    count = manifest.needed_number("rows").value
    whose = " of another run" if found.labels_elsewhere else ""
    rows = RowSet("out of fold", f"{count:,} training rows, each judged by the teacher{whose} that never saw it", "oof")
    families = [str(name) for name in manifest.get("settings", "families") or []]
    weights = {name: _teacher_weights(found, files, name) for name in families}
    for name in families:
        size, note = weights[name]
        yield ChainRow(
            f"Teacher {name}",
            _lengths(found, name),
            rows,
            **_scores(manifest, "metrics", name),
            size=size,
            size_note=note,
        )
    if ENSEMBLE in manifest.needed("metrics").value:
        known = [size for size, _ in weights.values() if size is not None]
        whole = derive("sum", *known) if known and len(known) == len(weights) else None
        how = "mean of their probabilities"
        yield ChainRow("Teachers together", how, rows, **_scores(manifest, "metrics", ENSEMBLE), size=whole)
    yield from _references(manifest, rows)


def _references(manifest: JsonFile, rows: RowSet) -> Iterator[ChainRow]:
    metrics = manifest.get("metrics") or {}
    for name, how in (
        (BEST_BASELINE, "baseline, fitted on the votes"),
        (TRUTH_NAME, "the best possible on these rows"),
    ):
        if name in metrics:
            yield ChainRow(name, how, rows, **_scores(manifest, "metrics", name), main=False, reference=True)


def _lengths(found: Inventory, family: str) -> str:
    parts = [one for one in found.teacher_logits if one.manifest.get("family") == family]
    limits = sorted({one.manifest.get("settings", "max_length") for one in parts} - {None})
    orders = {one.manifest.get("settings", "swap") for one in parts}
    how = "both orders" if orders == {True} else "one order" if orders == {False} else ""
    return ", ".join(filter(None, (how, f"{' and '.join(f'{n:,}' for n in limits)} tokens" if limits else "")))


def _teacher_weights(found: Inventory, files: RunFiles, family: str) -> tuple[Figure | None, str]:
    """Weights of one fold's teacher: as one model where it was merged, else adapter and base."""
    teacher = next((one for one in found.teachers if one.manifest.get("family") == family), None)
    if teacher is None:
        return None, ""
    copy = found.merged_copy(teacher)
    if copy is not None:
        return copy.weights(), "merged"
    return _with_base(teacher, files)


def _with_base(adapter: Output, files: RunFiles) -> tuple[Figure | None, str]:
    own = adapter.weights()
    if own is None or "adapter_model.safetensors" not in (adapter.manifest.get("output_bytes") or {}):
        return own, ""
    base = files.path(str(adapter.manifest.get("base_model") or ""))
    manifest = files.manifest(base / MANIFEST) if base.is_dir() else None
    of_base = Output(base, manifest).weights() if manifest is not None else None
    return (own, "and its base") if of_base is None else (derive("sum", own, of_base), "adapter and base")


# Students on the rows that their fold holds out


def _held_out(found: Inventory) -> Iterator[ChainRow]:
    for name, students in found.students.items():
        losses = [_manifest_held_out(one) for one in students]
        yield from _held_out_row(found, name, students, [pair for pair in losses if pair])
    for name, students in found.small_students.items():
        losses = [_file_held_out(one, found) for one in students]
        yield from _held_out_row(found, name, students, [pair for pair in losses if pair])


def _manifest_held_out(student: Output) -> tuple[Figure, Figure] | None:
    loss = student.manifest.number("metrics", "held_out", "log_loss")
    return None if loss is None else (loss, student.manifest.needed_number("metrics", "held_out", "rows"))


def _file_held_out(student: Output, found: Inventory) -> tuple[Figure, Figure] | None:
    file = found.calibrations.get(student.path)
    if file is None:
        return None
    loss, rows = file.number("logloss_holdout_after"), file.number("rows_holdout")
    return None if loss is None or rows is None else (loss, rows)


def _held_out_row(
    found: Inventory, name: str, students: list[Output], pairs: list[tuple[Figure, Figure]]
) -> Iterator[ChainRow]:
    if not pairs:
        return
    leak = any(one.manifest.get("teachers") for one in students)
    total = sum(rows.value for _, rows in pairs)
    several = len(pairs) > 1
    whose = "each fold's rows that steered nothing" if several else "held-out rows that steered nothing"
    size, note = _student_weights(found, students[0])
    yield ChainRow(
        f"{'Students' if several else 'Student'} {name.removeprefix('distilled_')}",
        f"{f'{len(pairs)} folds, each on its own' if several else 'its own held-out part'}, calibrated",
        RowSet("held out", f"{total:,} training rows: {whose}", f"held out {name}"),
        derive("mean weighted by rows", *(part for pair in pairs for part in pair)) if several else pairs[0][0],
        folds=tuple(loss for loss, _ in pairs) if several else (),
        leak=leak,
        size=size,
        size_note=note,
    )


def _student_weights(found: Inventory, student: Output) -> tuple[Figure | None, str]:
    own = student.weights()
    if own is None or "adapter_model.safetensors" not in (student.manifest.get("output_bytes") or {}):
        return own, ""
    base = found.merged.manifest.number("conversion", "size_bytes", "base") if found.merged else None
    return (own, "and its base") if base is None else (derive("sum", own, base), "adapter and base")


# Conversions, scored on test rows


def _converted(found: Inventory, files: RunFiles) -> Iterator[ChainRow]:
    merged = found.merged
    if merged is not None and merged.manifest.get("evaluation"):
        yield from _of_step_6(found, merged)
    elif merged is not None:
        yield ChainRow("Merged", "not scored: no votes on test rows", None, None, size=merged.weights())
    yield from _of_step_7(found)


def _test_rows(found: Inventory, digest: Any, count: int, limited_by: str, limit: Any) -> RowSet:
    """The key of all test rows is their file's hash; a part of them, drawn by a stage, is comparable to itself only."""
    whole = _whole_test(found, digest)
    is_part = count != whole if whole is not None else bool(limit) and count >= limit
    name = _test_name(found, digest)
    label = f"{count:,} {f'of {whole:,} ' if is_part and whole else ''}test rows{name}"
    return RowSet("test", label, f"{digest}{f' {LIMITS[limited_by]} {count}' if is_part else ''}")


def _whole_test(found: Inventory, digest: Any) -> int | None:
    for output in (found.submission, *found.student_submissions):
        if output is not None and output.manifest.get("inputs", "test_csv") == digest:
            rows = output.manifest.get("rows")
            return rows if isinstance(rows, int) else None
    return None


def _test_name(found: Inventory, digest: Any) -> str:
    for output in (found.merged, found.quantized):
        named = output.manifest.get("all_settings", "test_csv") if output is not None else None
        if output is not None and named and output.manifest.get("inputs", "test_csv") == digest:
            return f" of {PurePath(str(named)).name}"
    evaluation = found.evaluation
    if evaluation is not None and digest == (evaluation.get("files") or {}).get(evaluation.get("test")):
        return f" of {PurePath(str(evaluation.get('test'))).name}"
    return ""


def _of_step_6(found: Inventory, merged: Output) -> Iterator[ChainRow]:
    manifest = merged.manifest
    digest = manifest.get("evaluation", "test_csv") or manifest.get("inputs", "test_csv")
    limit = manifest.get("all_settings", "average_eval_rows")
    count = manifest.needed_number("evaluation", "rows").value
    rows = _test_rows(found, digest, count, "average_eval_rows", limit)
    how = f"calibrated, both orders{_tokens(manifest.get('max_length'))}"
    folds = manifest.get("evaluation", "folds") or []
    losses = [manifest.needed_number("evaluation", "folds", k, "log_loss") for k in range(len(folds))]
    student = found.final_students[0] if found.final_students else None
    size, note = _student_weights(found, student) if student else (None, "")
    if losses:
        yield ChainRow(
            "Students" if len(losses) > 1 else "Student",
            f"mean of {len(losses)} folds; {how}" if len(losses) > 1 else how,
            rows,
            derive("mean", *losses) if len(losses) > 1 else losses[0],
            folds=tuple(losses) if len(losses) > 1 else (),
            size=size,
            size_note=note,
        )
    if len(losses) > 1 and manifest.get("evaluation", "probability_ensemble"):
        beside = _scores(manifest, "evaluation", "probability_ensemble")
        yield ChainRow(
            "Students' probabilities averaged", f"all {len(losses)} at once; {how}", rows, **beside, main=False
        )
    yield from _averages(found, merged, rows, how)
    yield ChainRow(
        "Merged", f"one model; {how}", rows, **_scores(manifest, "evaluation", "merged"), size=merged.weights()
    )


def _averages(found: Inventory, merged: Output, rows: RowSet, how: str) -> Iterator[ChainRow]:
    manifest = merged.manifest
    method = manifest.get("conversion", "method") or "exact"
    other = "mean" if method == "exact" else "exact"
    names = {"exact": "mean of the weight changes", "mean": "mean of the factors"}
    own = found.averaged.weights() if found.averaged is not None else None
    base = manifest.number("conversion", "size_bytes", "base")
    size = derive("sum", own, base) if own is not None and base is not None else own
    for name, main in ((method, True), (other, False)):
        if manifest.get("evaluation", f"averaged_{name}"):
            scores = _scores(manifest, "evaluation", f"averaged_{name}")
            note = "adapter and base" if base is not None else "and its base"
            step = f"Averaged, {name}"
            yield ChainRow(
                step, f"{names[name]}; {how}", rows, **scores, main=main, size=size if main else None,
                size_note=note if main and size else "",
            )  # fmt: skip


def _of_step_7(found: Inventory) -> Iterator[ChainRow]:
    report, quantized = found.quantization, found.quantized
    if quantized is None:
        return
    size, name = quantized.weights(), quantization_name(quantized)
    if report is None or not report.get("scores"):
        yield ChainRow(name, "not scored: no votes on test rows", None, None, size=size)
        return
    manifest = quantized.manifest
    limit = manifest.get("all_settings", "quant_eval_rows")
    count = report.needed_number("rows").value
    rows = _test_rows(found, manifest.get("inputs", "test_csv"), count, "quant_eval_rows", limit)
    how = f"calibrated, both orders{_tokens(manifest.get('max_length'))}"
    merged = found.merged.manifest if found.merged is not None else None
    if merged is None or merged.get("evaluation", "rows") != report.get("rows"):  # else step 6 has said so already
        yield ChainRow("Merged, before quantization", how, rows, **_scores(report, "scores", "before"))
    yield ChainRow(name, how, rows, **_scores(report, "scores", "after"), size=size)


def quantization_name(quantized: Output) -> str:
    """Such as ``8-bit (GPTQ)``."""
    method = str(quantized.manifest.get("quantization", "method") or "")
    shown = method.upper() if method == "gptq" else method
    return f"{quantized.manifest.get('quantization', 'bits') or 8}-bit{f' ({shown})' if shown else ''}"


def _tokens(limit: Any) -> str:
    return f", {limit:,} tokens" if isinstance(limit, int) else ""


# Predictions, scored by the evaluation


def _predicted(found: Inventory) -> Iterator[ChainRow]:
    evaluation = found.evaluation
    if evaluation is None:
        return
    digest = (evaluation.get("files") or {}).get(evaluation.get("test"))
    count = evaluation.needed_number("rows").value
    rows = RowSet("test", f"{count:,} test rows{_test_name(found, digest)}", str(digest))
    yield from _members(evaluation, rows)
    yield from _views(found, evaluation, rows)
    members = len(evaluation.get("members") or [])
    interval = evaluation.needed("scores", "log_loss")
    yield ChainRow(
        "Submission" if members < 2 else "Ensemble",
        "as scored in full below" if members < 2 else f"of {members} submissions",
        rows,
        evaluation.needed_number("scores", "log_loss", "value"),
        interval=interval,
        accuracy=evaluation.number("scores", "accuracy", "value"),
        ece=evaluation.number("scores", "ece", "value"),
    )
    for title, how, keys in (
        (BEST_BASELINE, "baseline, fitted on the votes", ("baselines", BEST_BASELINE)),
        (TRUTH_NAME, "the best possible on these rows", ("truth",)),
    ):
        if evaluation.get(*keys):
            yield ChainRow(title, how, rows, **_scores(evaluation, *keys), main=False, reference=True)


def _members(evaluation: JsonFile, rows: RowSet) -> Iterator[ChainRow]:
    members = evaluation.get("members") or []
    if len(members) < 2:
        return
    losses = [evaluation.needed_number("members", k, "log_loss") for k in range(len(members))]
    how = f"mean of {len(members)} submissions"
    yield ChainRow("Members", how, rows, derive("mean", *losses), folds=tuple(losses))


def _views(found: Inventory, evaluation: JsonFile, rows: RowSet) -> Iterator[ChainRow]:
    if not evaluation.get("calibration"):
        return
    views = max((entry.get("views") or [] for entry in evaluation.get("tta") or []), key=len, default=[])
    several = f"mean of {len(views)} views ({', '.join(views)})" if len(views) > 1 else "one view"
    temperature = evaluation.needed_number("calibration", "temperature").value
    for step, part, how in (
        (UNCALIBRATED if len(views) > 1 else "Predicted", "before", f"{several}; not calibrated (T = 1)"),
        ("Calibrated", "after", f"the same, T = {temperature:.4f}"),
    ):
        yield ChainRow(
            step,
            how,
            rows,
            evaluation.needed_number("calibration", part, "log_loss"),
            ece=evaluation.number("calibration", part, "ece"),
        )

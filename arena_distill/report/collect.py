"""Everything that a report says of a run, from the files that the stages left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from arena_distill.evaluation.scoreboard import TRUTH_NAME
from arena_distill.report.chain import chain, quantization_name
from arena_distill.report.commands import commands
from arena_distill.report.costs import costs
from arena_distill.report.curves import curves
from arena_distill.report.data_files import data_files
from arena_distill.report.document import Headline, Missing, Quantization, Report
from arena_distill.report.figures import Figure, derive
from arena_distill.report.from_evaluation import calibration, classes, position_bias, slices
from arena_distill.report.inventory import Inventory, Output, take_inventory
from arena_distill.report.proofs import proofs
from arena_distill.report.recorded_settings import settings_tables, told, versions
from arena_distill.report.report_settings import ReportSettings
from arena_distill.report.run_files import RunFiles
from arena_distill.report.staleness import cautions, file_entries
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    QUANTIZE,
)


def collect(settings: ReportSettings, files: RunFiles) -> Report:
    """Read the run.

    Args:
        settings: which.
        files: reads its files, and remembers them.

    Raises:
        InputError: a file is broken, or there is nothing of this run.
    """
    found = take_inventory(settings, files)
    everything = told(found)
    report = Report(settings.run, _headline(settings, found))
    report.chain = chain(found, files)
    report.proofs = proofs(found, files)
    report.curves = curves(found, files)
    report.costs, report.total_seconds = costs(found, files)
    report.quantization = _quantization(found)
    _add_evaluation(report, found)
    report.settings = settings_tables(everything)
    report.versions, report.revisions = versions(found)
    report.data = data_files(found, files)
    report.commands = commands(found, everything, report.data, files)
    report.missing = list(_missing(settings, found))
    report.files, concerns = file_entries(found, files)
    report.warnings = [*cautions(found, files, everything, report.data), *concerns]
    return report


def _add_evaluation(report: Report, found: Inventory) -> None:
    evaluation = found.evaluation
    if evaluation is None:
        return
    report.notes = [str(note).removeprefix("note: ") for note in evaluation.get("notes") or []]
    report.baselines = evaluation.figure("baselines") if evaluation.get("baselines") else None
    report.own_scores = evaluation.needed("scores")
    report.truth = evaluation.figure("truth")
    report.calibration = calibration(evaluation)
    report.classes = classes(evaluation)
    report.slices = slices(evaluation)
    report.position_bias = position_bias(evaluation)
    report.views = evaluation.figure("tta") if evaluation.get("tta") else None


def _quantization(found: Inventory) -> Quantization | None:
    report, quantized = found.quantization, found.quantized
    if report is None or quantized is None:
        return None
    return Quantization(
        quantized.manifest.needed("quantization"),
        str(report.get("rows_are") or ""),
        report.number("size_bytes", "before"),
        report.number("size_bytes", "after"),
        report.needed("layers"),
    )


# What a reader should know first


def _headline(settings: ReportSettings, found: Inventory) -> Headline:
    evaluation = found.evaluation
    model, how, kind, size = _final_model(found)
    scores: dict[str, Figure] = {}
    beside: dict[str, Figure] = {}
    rows = ""
    if evaluation is not None:
        scores = {name: evaluation.needed("scores", name) for name in ("log_loss", "accuracy", "ece", "brier")}
        count, test = evaluation.needed_number("rows").value, PurePath(str(evaluation.get("test"))).name
        rows = f"{count:,} test rows of {test} that nothing saw"
        for name in evaluation.get("baselines") or {}:
            beside[name] = evaluation.needed_number("baselines", name, "log_loss")
        if evaluation.get("truth"):
            beside[TRUTH_NAME] = evaluation.needed_number("truth", "log_loss")
    submission = found.submission.manifest if found.submission is not None else None
    return Headline(
        title=settings.run or "arena-distill",
        model=model,
        how=how,
        kind=kind,
        rows=rows,
        scores=scores,
        beside=beside,
        size=size,
        speed=submission.number("speed", "rows_per_second") if submission is not None else None,
        device=str(submission.get("device") or "") if submission is not None else "",
        sentence="" if evaluation is not None else _without_votes(found),
        finished=max((str(one.manifest.get("finished") or "") for one in found.outputs()), default=""),
    )


def _final_model(found: Inventory) -> tuple[str, str, str, Figure | None]:
    """Name, description, kind of weights and their size: of what predicted, or of the last model that is there."""
    named = str(found.submission.manifest.get("model_dir") or "") if found.submission is not None else ""
    last = [one for one in (found.quantized, found.merged, found.averaged) if one is not None]
    chosen = next((one for one in last if PurePath(named).name == one.path.name), None) or (last[0] if last else None)
    if chosen is not None:
        kind = (
            quantization_name(chosen)
            if chosen is found.quantized
            else "merged"
            if chosen is found.merged
            else "adapter"
        )
        return chosen.path.name, _description(chosen), kind, chosen.weights()
    small = max(found.small_students.values(), key=len, default=[])
    students = found.final_students or small
    if students:
        weights = [size for one in students if (size := one.weights()) is not None]
        several = f"{len(students)} students" if len(students) > 1 else "one student"
        return students[0].group, several, "together", derive("sum", *weights) if weights else None
    families = dict.fromkeys(str(one.manifest.get("family")) for one in found.teachers)
    return ", ".join(families) or "no model yet", "teachers" if families else "", "", None


def _description(chosen: Output) -> str:
    parts = [PurePath(str(chosen.manifest.get("base_model") or "")).name]
    if folds := chosen.manifest.get("folds"):
        parts.append(f"average of {len(folds)} folds' students")
    if teachers := chosen.manifest.get("teachers"):
        parts.append(f"taught by {' and '.join(teachers)}")
    return ", ".join(filter(None, parts))


def _without_votes(found: Inventory) -> str:
    known = []
    if found.oof_table is not None and found.oof_table.manifest.get("metrics"):
        known.append("the teachers' log loss on training rows that they did not see (out of fold)")
    if found.students or found.small_students:
        known.append("each student's on the rows of its fold that steered nothing")
    if found.quantization is not None:
        known.append("how far the quantized model is from the one before")
    figures = f" What there is: {'; '.join(known)}." if known else ""
    return f"No votes on test rows have been scored, so nothing here says how good the final model is.{figures}"


# What is not there


def _missing(settings: ReportSettings, found: Inventory) -> Iterator[Missing]:
    run = f"RUN={settings.run} " if settings.run else ""

    def missing(section: str, text: str, script: str, setting: str = "") -> Missing:
        return Missing(section, text, f"{run}{setting}bash {script}")

    if found.oof_table is None:
        yield missing("chain", "No out-of-fold table of teachers.", INFER_TEACHER_LOGITS.script)
    if not found.students and not found.small_students:
        yield missing("chain", "No students.", DISTILL_STUDENT.script)
    if found.students and found.merged is None:
        yield missing("proofs", "The students have not been averaged and merged.", LORA_ENSEMBLE.script)
    if found.merged is not None and found.quantized is None:
        yield missing("quantization", "The merged model has not been quantized.", QUANTIZE.script)
    if (found.merged or found.quantized) and found.submission is None:
        yield missing("headline", "The test rows have not been predicted.", INFER_TTA.script)
    if found.evaluation is None:
        text = "Nothing has been scored by votes on test rows."
        yield missing("headline", text, EVAL.script, "TEST_CSV=pairs.csv LABELS_CSV=votes.csv ")
    elif not found.evaluation.get("calibration"):
        text = (
            "The evaluation has no logits of single views: no position bias, no views, no calibration before and after."
        )
        yield missing("calibration", text, INFER_TTA.script)

"""Step 4 as a whole: every fold scored by its own teacher, then the out-of-fold table of all that is complete."""

from __future__ import annotations

import shutil
from pathlib import Path

from arena_distill.data.folds import Folds, load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows
from arena_distill.inference.oof_assembly import make_table, truth_file
from arena_distill.inference.oof_job import STAGE, OofJob, OofPlan, plan_oof
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.oof_table import manifest_path
from arena_distill.runtime.artifacts import partial_directory, read_manifest, read_manifest_file, require_writable
from arena_distill.runtime.errors import InputError


def infer_teachers(settings: OofSettings) -> None:
    """Score what is missing, and make the table once every fold is there.

    Raises:
        ArenaError: bad settings or input; folds finished before stay.
    """
    plan = plan_oof(settings)
    _check_before_hours_of_work(settings, plan)
    again = settings.force or settings.infer_force_regen
    waiting = []
    for job in plan.jobs:
        if job.is_wanted(again):
            waiting.append(job)
        else:
            print(f"{job.final}: up to date (INFER_FORCE_REGEN=1 scores it again)")
            shutil.rmtree(job.partial, ignore_errors=True)  # left by a kill between publishing and tidying
    folds, rows = load_folds(settings.folds_path), None
    if waiting:
        # Not before: importing torch takes longer than finding that there is nothing to do.
        from arena_distill.models.quiet import quiet_libraries

        quiet_libraries()
        rows = load_labelled(plan.train_file).rows
        folds.check(rows, settings.folds_path)
        for job in waiting:
            _score(settings, job, rows, folds, again)
    make_table(settings, plan, folds, rows)


def _check_before_hours_of_work(settings: OofSettings, plan: OofPlan) -> None:
    """Refuse now what would fail after the scoring."""
    table = settings.table_path
    require_writable(table)
    recorded = read_manifest_file(manifest_path(table)) if table.exists() else None
    if table.exists() and (recorded is None or recorded["stage"] != STAGE):
        raise InputError(f"{table}: holds something that {STAGE} did not make -> choose another INFER_OOF_TABLE")
    if settings.truth_parquet and not truth_file(settings, plan.train_file).is_file():
        raise InputError(f"{settings.truth_parquet}: no such file -> correct TRUTH_PARQUET or leave it out")


def _score(settings: OofSettings, job: OofJob, rows: Rows, folds: Folds, again: bool) -> None:
    from arena_distill.inference.oof import score_fold

    for other in job.final.parent.glob(f"{partial_directory(job.final).name}-*"):
        if other != job.partial:
            print(f"note: {other} is left from an interrupted run with other settings; delete it when not needed")
    print(f"{job.final}: scoring fold {job.fold} with {job.model}")
    try:
        whole = score_fold(settings, job, rows, folds, again)
    except KeyboardInterrupt:
        print(f"{job.final}: interrupted; the same command goes on where it stopped")
        raise
    if whole:
        print(f"{job.final}: {_figures(job.final)}")


def _figures(fold_logits: Path) -> str:
    manifest = read_manifest(fold_logits) or {}
    metrics = manifest["metrics"]
    gap = "" if metrics["swap_gap"] is None else f", swap gap {metrics['swap_gap']:.3f}"
    return (
        f"log loss {metrics['held_out']['log_loss']:.4f} on the {manifest['rows']['held_out']:,} rows of fold "
        f"{manifest['fold']}{gap}"
    )

"""Step 9's ensemble: of a run's folds, or without any of the one submission that there is."""

from __future__ import annotations

from pathlib import Path

from arena_distill.evaluation.cv_ensemble import ensemble_runs
from arena_distill.evaluation.ensemble_settings import EnsembleSettings
from arena_distill.evaluation.submission_ensemble import ensemble_files
from arena_distill.runtime.errors import InputError


def ensemble_of_run(settings: EnsembleSettings, *, started: float) -> None:
    """Write ``sub/[RUN_]final_ensemble.csv``.

    Args:
        settings: whose, and how.
        started: ``time.time()`` at the start, for the manifest.

    Raises:
        SettingsError: see ``ensemble_runs``.
        InputError: there is nothing to ensemble; a fold is missing, or a submission has other rows than the test file.
    """
    out, final = settings.in_sub("final_ensemble.csv"), settings.in_sub("final_submission.csv")
    folds = list(out.parent.glob(settings.in_sub("student_submission_fold_*.csv").name))
    if not folds and (one := _only(settings)):
        print(f"no folds; the submission is {one}")
        if settings.weights != "equal":
            print("note: USE_WEIGHTED weighs folds, and there are none")
        ensemble_files(
            out, [one], weights=None, space=settings.ensemble_space, test_csv=settings.test_file, started=started
        )
        return
    if folds and final.is_file():
        print(
            f"the folds' submissions are used, and {final} is not; the mean of both: "
            f"python scripts/ensemble_submissions.py OUT {out} {final}"
        )
    print("ensemble of the folds")
    try:
        ensemble_runs(
            out,
            [settings.run],
            output_dir=settings.output_dir,
            student=settings.ensemble_student,
            method=settings.weights,
            space=settings.ensemble_space,
            test_csv=settings.test_file,
            started=started,
        )
    except InputError as error:
        if folds:
            raise
        run = f"RUN={settings.run} " if settings.run else ""
        raise InputError(f"{error}; or without folds, by the steps' student: {run}sbatch step8_infer_tta.sh") from error


def _only(settings: EnsembleSettings) -> Path | None:
    """The submission of step 8, else that of a student of its own."""
    names = ("final_submission.csv", "student_submission.csv")
    return next((file for name in names if (file := settings.in_sub(name)).is_file()), None)

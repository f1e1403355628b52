"""Step 5 as a whole: every student that the settings ask for, trained where it is not there already."""

from __future__ import annotations

from arena_distill.training.distill_job import DistillJob, plan_students
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.processes import say


def distill_students(settings: DistillSettings) -> None:
    """Train what is missing.

    Raises:
        ArenaError: bad settings or input; students finished before stay.
    """
    jobs = plan_students(settings)
    waiting = []
    for job in jobs:
        if job.is_wanted(settings.student_overwrite or settings.force):
            waiting.append(job)
        else:
            say(f"{job.final}: up to date (STUDENT_OVERWRITE=1 trains it again)")
    if waiting:
        _train(settings, waiting)


def _train(settings: DistillSettings, jobs: list[DistillJob]) -> None:
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.training.distill_data import DistillData

    data = DistillData.load(settings, jobs[0])
    lessons = [data.of_fold(job) for job in jobs]  # a broken file of the last fold should show before hours of training
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries("training")
    from arena_distill.models.release import release_memory
    from arena_distill.training.distill import distill_student

    try:
        for job, rows in zip(jobs, lessons, strict=True):
            say(f"{job.final}: fold {job.fold}")
            if old := job.replaces():
                say(f"note: replaces the one that is there ({old})")
            distill_student(settings, job, rows, data.teachers)
            release_memory()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        raise

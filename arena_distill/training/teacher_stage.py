"""Step 3 as a whole: every teacher that the settings ask for, trained where it is not there already."""

from __future__ import annotations

from arena_distill.data.fold_rows import fold_rows
from arena_distill.data.folds import load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.training.processes import is_main_process, say, use_all_cores
from arena_distill.training.teacher_job import TeacherJob, plan_teachers
from arena_distill.training.teacher_settings import TeacherSettings


def train_teachers(settings: TeacherSettings) -> None:
    """Train and merge what is missing.

    Raises:
        ArenaError: bad settings or input; teachers finished before stay.
    """
    jobs = plan_teachers(settings)
    waiting = []
    for job in jobs:
        if job.is_wanted(settings.force):
            waiting.append(job)
        else:
            say(f"{job.final}: up to date (FORCE=1 trains it again)")
    if waiting:
        _train(settings, waiting)
    adapters = [job for job in jobs if job.merged is not None]
    if adapters and is_main_process():
        _merge(settings, adapters)


def _train(settings: TeacherSettings, jobs: list[TeacherJob]) -> None:
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries("training")
    from arena_distill.models.release import release_memory
    from arena_distill.training.teacher import TeacherData, train_teacher

    data = TeacherData.load(settings, jobs[0].train_file)
    for loaded in (data.base, *data.extras):
        say(loaded.summary)
    try:
        for job in jobs:
            say(f"{job.final}: fold {job.fold} of {job.name}")
            if old := job.replaces():
                say(f"note: replaces the one that is there ({old})")
            train_teacher(settings, job, data)
            release_memory()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        raise


def _merge(settings: TeacherSettings, jobs: list[TeacherJob]) -> None:
    from arena_distill.training.teacher_merge import is_merged, merge_teacher, wants_merged

    wanted, reason = wants_merged(settings, jobs)
    print(f"{'merging' if wanted else 'not merging'} ({reason})")
    if not wanted:
        return
    waiting = [job for job in jobs if not is_merged(job)]
    for job in jobs:
        if job not in waiting:
            print(f"{job.merged}: up to date")
    if waiting:
        from arena_distill.models.quiet import quiet_libraries

        quiet_libraries()
        use_all_cores()
        base, folds = load_labelled(jobs[0].train_file).rows, load_folds(settings.folds_path)
        for job in waiting:
            merge_teacher(settings, job, fold_rows(base, [], folds, job.fold).val)

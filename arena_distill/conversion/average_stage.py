"""Step 6 as a whole: one adapter out of all folds', and one model out of that; each published once it is proved."""

from __future__ import annotations

import shutil
from contextlib import suppress

from arena_distill.conversion.average_job import AveragePlan, plan_average
from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.runtime.artifacts import locked, partial_directory
from arena_distill.runtime.errors import ArenaError


def average_students(settings: AverageSettings) -> None:
    """Make what is missing.

    Raises:
        ArenaError: bad settings or input, or an output that is not what it should be; what stood there before stays,
            and an averaged adapter that was finished stays even if merging it fails.
    """
    plan = plan_average(settings)
    if not settings.force and plan.lora.is_up_to_date() and plan.merged.is_up_to_date():
        for job in (plan.lora, plan.merged):
            print(f"{job.final}: up to date")
        _tidy(plan)
        return
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()
    from arena_distill.conversion.average import convert

    convert(settings, plan)


def _tidy(plan: AveragePlan) -> None:
    """Remove what a kill between publishing and tidying left, unless another job is at work there."""
    lora, merged = plan.lora.final, plan.merged.final
    places = (partial_directory(lora), partial_directory(lora, "compared"), partial_directory(merged))
    if left := [path for path in places if path.is_dir()]:
        with suppress(ArenaError), locked(lora), locked(merged):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)

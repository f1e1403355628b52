"""``--dry-run``: the commands of a run, as a shell could run them, and what each would read and write. Does nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from arena_distill.pipeline.machine import cores
from arena_distill.pipeline.plan import Plan, StagePlan, make_plan
from arena_distill.pipeline.run_paths import run_paths
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.submit import Awaited, dependencies, log_pattern, sbatch_options, submission_environment
from arena_distill.pipeline.variables import own, repository, settled
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, ArenaError
from arena_distill.runtime.stages import SBATCH_VARIABLES


def dry_run(settings: PipelineSettings) -> int:
    """Show what ``start`` would do.

    Returns:
        0; 2 if sbatch would refuse a stage.

    Raises:
        SettingsError: see ``make_plan``.
    """
    return show_plan(settings, make_plan(settings, cores=None if settings.pipeline_slurm else cores()))


def show_plan(settings: PipelineSettings, plan: Plan, already: Mapping[str, Sequence[Awaited]] | None = None) -> int:
    """Print a plan as a shell script, with what is to be known of each stage in comments.

    Args:
        settings: of the run.
        plan: what would be done.
        already: jobs that are queued or running, to wait for.

    Returns:
        0; 2 if sbatch would refuse a stage.
    """
    environment, variables, paths = submission_environment(), settled(), run_paths(settings)
    for note in plan.notes:
        print(f"# note: {note}")
    if not plan.stages:
        print("# nothing left to do")
    print(f"cd {shlex.quote(str(repository()))}")
    given = own(environment) | {name: environment[name] for name in SBATCH_VARIABLES if name in environment}
    if given:
        print("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(given.items())))
    jobs: dict[str, list[Awaited]] = {stage: list(known) for stage, known in (already or {}).items()}
    refused = 0
    ask = settings.pipeline_slurm and slurm.available()
    if settings.pipeline_slurm and not ask:
        print("# no Slurm answers here: whether it would take these jobs is not known")
    for one in plan.stages:
        options = sbatch_options(one, settings.run, variables, dependencies(one, jobs))
        jobs.setdefault(one.stage.name, []).append(Awaited(f"$step{one.stage.number}", one.tasks, True))
        print()
        for line in _about(one, paths):
            print(f"# {line}")
        if settings.pipeline_slurm:
            print(f"#   log      {log_pattern(one, variables)}")
            if ask:
                said, taken = _test(one, settings, variables, environment)
                print(f"#   {'Slurm' if taken else 'REFUSED'}    {said}")
                refused += not taken
            print(f"step{one.stage.number}=$({_submission(one, options)})")
        else:
            print(f"#   Slurm    {_submission(one, options)}")
            for line in _local_commands(one):
                print(line)
    if refused:
        print(f"\n# sbatch would refuse {refused} of {len(plan.stages)}: see REFUSED above")
    return EXIT_BAD_SETTINGS if refused else 0


def _about(one: StagePlan, paths: Mapping[str, Sequence[str]]) -> Iterator[str]:
    tasks = f", {one.array}s {','.join(map(str, one.numbered))}" if one.array else ""
    yield f"step {one.stage.number}: {one.stage.does}"
    yield f"  tasks    {len(one.tasks)}{tasks}; {one.threads} thread{'s' * (one.threads > 1)} each"
    if one.depends:
        yield "  after    " + ", ".join(
            f"step {dependency.stage.removeprefix('step').partition('_')[0]}"
            + (f" of the same {one.array}" if dependency.paired else "")
            for dependency in one.depends
        )
    for word, names in (("reads", one.stage.reads), ("writes", one.stage.writes)):
        for path in dict.fromkeys(path for name in names for path in paths[name]):
            yield f"  {word:<8} {path}"


def _submission(one: StagePlan, options: Sequence[str]) -> str:
    """A line to paste; ``$stepN`` in it is the id that an earlier line has set."""
    words = [f'"{word}"' if "$step" in word else shlex.quote(word) for word in options]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in one.environment.items()]
    return " ".join([*assignments, "sbatch --parsable", *words, one.stage.script])


def _local_commands(one: StagePlan) -> Iterator[str]:
    for task in one.tasks:
        variables = one.environment_of_task(task) | {one.stage.cpus_variable: str(one.threads)}
        yield (
            " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()) + f" bash {one.stage.script}"
        )


def _test(
    one: StagePlan, settings: PipelineSettings, variables: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, bool]:
    """What sbatch says of a stage, and whether it would take it."""
    options = sbatch_options(one, settings.run, variables, [])
    try:
        whole = {**environment, **one.environment}
        return slurm.test_only(options, repository() / one.stage.script, environment=whole, cwd=repository()), True
    except ArenaError as error:
        return str(error), False

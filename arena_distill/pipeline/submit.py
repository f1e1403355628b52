"""The whole chain given to Slurm at once: one sbatch a stage, each waiting for those before it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from arena_distill.pipeline.headers import header
from arena_distill.pipeline.known_tasks import known_tasks
from arena_distill.pipeline.plan import Plan, StagePlan, asked_cpus, sbatch_words
from arena_distill.pipeline.run_record import RunRecord, SubmittedJob, now
from arena_distill.pipeline.variables import for_stages, repository, settled
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import ArenaError, SettingsError
from arena_distill.runtime.stages import SBATCH_VARIABLES

_DIGITS_FIRST = "run-"  # Slurm takes a job whose name begins with a digit for a number in some of its commands


@dataclass(frozen=True)
class Awaited:
    """A job of a stage, or those of its tasks that may be waited for: one that failed would be waited for in vain."""

    job_id: str
    tasks: tuple[int | None, ...]
    whole: bool  # these are all that the job has

    def ids(self, tasks: Collection[int | None]) -> list[str]:
        """How ``--dependency`` names those of its tasks that are among ``tasks``."""
        wanted = [task for task in self.tasks if task in tasks]
        if self.whole and len(wanted) == len(self.tasks):
            return [self.job_id]
        return [self.job_id if task is None else f"{self.job_id}_{task}" for task in wanted]


def submit_plan(plan: Plan, record: RunRecord, *, already: Mapping[str, Sequence[Awaited]] | None = None) -> list[str]:
    """Submit every stage of a plan. To be called under the record's lock.

    Args:
        plan: what to submit.
        record: of the run; every job is noted as soon as Slurm has taken it.
        already: jobs of earlier commands that are still queued or running, by stage, to wait for.

    Returns:
        One line a job, for the user.

    Raises:
        SettingsError: sbatch refused one; those submitted before it by this call are cancelled again.
    """
    root = repository()
    (root / "logs").mkdir(exist_ok=True)  # without it Slurm starts the job, and loses it without a word
    environment, variables = submission_environment(), settled()
    jobs: dict[str, list[Awaited]] = {stage: list(known) for stage, known in (already or {}).items()}
    submitted: list[SubmittedJob] = []
    for one in plan.stages:
        depends = dependencies(one, jobs)
        options = sbatch_options(one, record.name, variables, depends)
        script = root / one.stage.script
        try:
            job_id = slurm.submit(options, script, environment=environment | dict(one.environment), cwd=root)
        except slurm.SubmissionError as error:
            _undo(one, submitted)
            raise _with_own_options(error, one, variables) from error
        except (ArenaError, KeyboardInterrupt):
            _undo(one, submitted)
            raise
        job = SubmittedJob(
            submitted=now(),
            stage=one.stage.name,
            job_id=job_id,
            tasks=one.numbered if one.array else None,
            array=one.array,
            depends=depends,
            command=["sbatch", "--parsable", *options, one.stage.script],
            log=log_pattern(one, variables),
        )
        record.add(job)
        submitted.append(job)
        jobs.setdefault(one.stage.name, []).append(Awaited(job_id, one.tasks, True))
    return [_line(job) for job in submitted]


def sbatch_options(one: StagePlan, run: str, variables: Mapping[str, str], depends: Sequence[str]) -> list[str]:
    """Options for one stage's sbatch; what the user gave comes last, and so counts."""
    options = [f"--job-name={job_name(one, run)}", "--export=ALL"]
    if one.array:
        options.append(f"--array={array_text(one.numbered)}")
    if depends:
        options += [f"--dependency={','.join(depends)}", "--kill-on-invalid-dep=yes"]
    if cpus := asked_cpus(one.stage, variables):
        options.append(f"--cpus-per-task={cpus}")
    return options + sbatch_words(one.stage, variables)


def job_name(one: StagePlan, run: str) -> str:
    """What the queue shows; with it the logs of two runs differ."""
    prefix = _DIGITS_FIRST * run[:1].isdigit() + run
    return f"{prefix}-{one.stage.job_name}" if run else one.stage.job_name


def array_text(tasks: Sequence[int]) -> str:
    """Numbers as sbatch has them: 0-2,4."""
    spans: list[list[int]] = []
    for task in sorted(tasks):
        if spans and task == spans[-1][-1] + 1:
            spans[-1].append(task)
        else:
            spans.append([task])
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def dependencies(one: StagePlan, jobs: Mapping[str, Sequence[Awaited]]) -> list[str]:
    """``afterok:12:13`` and ``aftercorr:14`` for one stage.

    ``aftercorr`` pairs tasks by number, and so only where both arrays hold the same ones.
    """
    ok: list[str] = []
    paired: list[str] = []
    for dependency in one.depends:
        for job in jobs.get(dependency.stage, ()):
            if dependency.paired and job.whole and set(job.tasks) == set(one.tasks):
                paired.append(job.job_id)
            else:
                ok += job.ids(one.tasks if dependency.paired else job.tasks)
    return [f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", ok), ("aftercorr", paired)) if ids]


def log_pattern(one: StagePlan, variables: Mapping[str, str]) -> str:
    """Where Slurm writes a stage's output."""
    words = sbatch_words(one.stage, variables)
    given = [word.partition("=")[2] for word in words if word.startswith("--output=")]
    given += [after for word, after in pairwise(words) if word in ("--output", "-o")]
    script = header(repository() / one.stage.script).get("output", "slurm-%j.out")
    return given[-1] if given else variables.get("SBATCH_OUTPUT") or script


def submission_environment() -> dict[str, str]:
    """What sbatch, and through it the job, gets: our environment, and the profile's SBATCH_… where that has none."""
    variables = settled()
    sbatch = {name: variables[name] for name in SBATCH_VARIABLES if name in variables}
    return for_stages(os.environ) | sbatch | {"REPO_ROOT": str(repository())}


def refuse_active(record: RunRecord) -> None:
    """Refuse to start what Slurm still has queued or running.

    Raises:
        SettingsError: names the jobs.
    """
    if active := [one for one in known_tasks(record) if one.is_active]:
        names = sorted({f"{one.job.job_id} ({one.job.stage})" for one in active})
        run = record.name
        raise SettingsError(
            f"run {run or 'without a name'} still has {len(active)} queued or running: job {', '.join(names)} -> "
            f"`./pipeline.sh status {run}` shows them, `./pipeline.sh cancel {run}` ends them, "
            f"`./pipeline.sh resume {run}` adds what is missing; or choose another RUN"
        )


def _with_own_options(error: SettingsError, at: StagePlan, variables: Mapping[str, str]) -> SettingsError:
    """The same error, with the options that the user gave: they beat the settings that it names."""
    names = ("PIPELINE_SBATCH", at.stage.sbatch_variable)
    given = [f"{name}={variables[name]}" for name in names if variables.get(name)]
    return slurm.SubmissionError(f"{error}; what beats that: {', '.join(given)}") if given else error


def _undo(at: StagePlan, submitted: Collection[SubmittedJob]) -> None:
    """Take back what was submitted: the chain would end where it broke, and once mended be there twice."""
    if not submitted:
        said = "nothing was submitted"
    else:
        names = ", ".join(f"{job.job_id} ({job.stage})" for job in submitted)
        try:
            slurm.cancel([job.job_id for job in submitted])
            said = f"those submitted before it are cancelled again: {names}"
        except ArenaError as further:
            said = f"those submitted before it could not be cancelled ({further}) and are still there: {names}"
    print(f"step {at.stage.number} ({at.stage.script}) was not taken; {said}")


def _line(job: SubmittedJob) -> str:
    tasks = f"  {job.array}s {array_text(job.tasks)}" if job.tasks is not None else ""
    after = f"  after {', '.join(job.depends)}" if job.depends else ""
    return f"{job.job_id:>10}  {job.stage}{tasks}{after}"


def unavailable() -> SettingsError:
    """There is no Slurm to submit to."""
    return SettingsError("no Slurm answers here (sbatch, scontrol ping) -> leave out --slurm, or go to a login node")

"""What is to be run: each stage with its tasks, its threads and what it waits for, read off the table of stages."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.variables import environment_of, settled, unread
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.settings import parse_settings
from arena_distill.runtime.stages import DISTILL_STUDENT, INFER_TEACHER_LOGITS, POST_PRETRAIN, STAGES, FanOut, Stage

_FOLD, _SHARD = "FOLD", "INFER_TRAIN_SHARD_ID"
_TOO_NARROW = {_FOLD: "--folds", "TEACHER_FOLDS": "--folds", "INFER_FOLDS": "--folds", "STUDENT_FOLDS": "--folds",
               _SHARD: "INFER_TRAIN_SHARDS"}  # fmt: skip


@dataclass(frozen=True)
class Dependency:
    """What has to be done before a stage."""

    stage: str
    paired: bool  # task K waits for task K alone, else every task for every one


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run."""

    stage: Stage
    tasks: tuple[int | None, ...]  # (None,): one task for all
    array: FanOut | None  # what a task takes
    threads: int
    depends: tuple[Dependency, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # of every task, beyond the run's

    @property
    def numbered(self) -> list[int]:
        """Tasks of the array; empty for a stage that is none."""
        return [task for task in self.tasks if task is not None]

    def environment_of_task(self, task: int | None) -> dict[str, str]:
        """Variables that make a script do one task where there is no Slurm array."""
        if task is None or self.array is None:
            return dict(self.environment)
        one = {_SHARD: str(task)} if self.array == "shard" else {self.stage.folds_variable: str(task), _FOLD: str(task)}
        return dict(self.environment) | one


@dataclass(frozen=True)
class Plan:
    """A run: its stages in order, and what its user should know before it starts."""

    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, stage: str) -> StagePlan:
        return next(one for one in self.stages if one.stage.name == stage)


def make_plan(settings: PipelineSettings, *, cores: int | None = None) -> Plan:
    """Read the table of stages with these settings; the environment must hold ``family_variables`` already.

    Args:
        settings: which steps, folds and families.
        cores: of this machine, for a local run: no task takes more threads than that unless told to.

    Raises:
        SettingsError: a setting of a stage is unknown or out of bounds, or names folds that --folds should.
    """
    variables = settled()
    for name, instead in _TOO_NARROW.items():
        if variables.get(name) not in (None, "all"):
            raise SettingsError(f"{name}={variables[name]}: every task takes its own -> say it by {instead}")
    chosen = [stage for stage in STAGES.values() if stage.number in settings.numbers]
    names = [stage.name for stage in chosen]
    plans = []
    for stage in chosen:
        array, tasks = _tasks(stage, settings)
        plans.append(
            StagePlan(
                stage=stage,
                tasks=tasks,
                array=array,
                threads=threads(stage, variables, cores),
                depends=_dependencies(stage, names, settings),
                environment=_environment(stage, settings),
            )
        )
    for plan in plans:
        check_settings(plan)
        sbatch_words(plan.stage, variables)
    return Plan(tuple(plans), tuple(_notes(settings)))


def family_variables(settings: PipelineSettings) -> dict[str, str]:
    """What ``--families`` means to steps 1, 3 and 4; empty without it."""
    if not settings.families:
        return {}
    chosen = {"RUN_STAGE": ",".join(settings.families)}
    chosen |= {f"SKIP_{name.upper()}": str(int(name not in settings.families)) for name in ("llama", "qwen", "gemma")}
    from arena_distill.training.teacher_settings import TeacherSettings

    with environment_of(chosen):
        teachers = parse_settings(TeacherSettings, [], program="pipeline.sh", description="")
    return chosen | {"INFER_MODELS": ",".join(teachers.families)}


def threads(stage: Stage, variables: Mapping[str, str], cores: int | None = None) -> int:
    """How many threads a task of a stage computes with: as it was told, else as many as its script asks Slurm for."""
    given = {name: variables.get(name, "") for name in ("OMP_NUM_THREADS", stage.cpus_variable, "CPUS_PER_TASK")}
    for name, value in given.items():
        if value and not (value.isascii() and value.isdecimal()):
            raise SettingsError(f"{name}={value}: no number of threads -> give 1 or more")
    told = [int(value) for value in given.values() if value and int(value)]
    return told[0] if told else min(stage.cpus, cores or stage.cpus)


def asked_cpus(stage: Stage, variables: Mapping[str, str]) -> int | None:
    """CPUs to ask Slurm for instead of what the script's header says, or None."""
    value = variables.get(stage.cpus_variable) or variables.get("CPUS_PER_TASK") or "0"
    return int(value) or None


def sbatch_words(stage: Stage, variables: Mapping[str, str]) -> list[str]:
    """Options for sbatch that the user gave for this stage, those for every stage first: the last one counts.

    Raises:
        SettingsError: they cannot be read, or are the pipeline's to give.
    """
    words = []
    for name in ("PIPELINE_SBATCH", stage.sbatch_variable):
        try:
            given = shlex.split(variables.get(name, ""))
        except ValueError as error:
            raise SettingsError(f"{name}={variables[name]}: {error} -> mind the quotes") from error
        for word in given:
            option = word.partition("=")[0]
            if option in ("--cpus-per-task", "-c"):
                raise SettingsError(f"{name}: {option} -> say it by {stage.cpus_variable} or CPUS_PER_TASK")
            if option in _OWN_OPTIONS:
                raise SettingsError(f"{name}: {option} is the pipeline's own to give -> leave it out")
        words += given
    return words


_OWN_OPTIONS = {
    *("--array", "-a", "--dependency", "-d", "--export", "--export-file", "--job-name", "-J", "--parsable", "--wait"),
    *("-W", "--test-only", "--wrap", "--kill-on-invalid-dep", "--chdir", "-D", "--hold", "-H"),
}


def check_settings(plan: StagePlan) -> None:
    """Read a stage's settings as it will: a misspelling is better found now than after the stage before.

    Raises:
        SettingsError: see ``parse_settings``.
    """
    with environment_of(plan.environment_of_task(plan.tasks[0])):
        for name in plan.stage.settings:
            module, _, cls = name.partition(":")
            try:
                parse_settings(
                    getattr(importlib.import_module(module), cls), [], program=plan.stage.script, description=""
                )
            except SettingsError as error:
                raise SettingsError(f"step {plan.stage.number}: {error}") from error


def _tasks(stage: Stage, settings: PipelineSettings) -> tuple[FanOut | None, tuple[int | None, ...]]:
    if "shard" in stage.fans_out and settings.infer_train_shards > 1:
        return "shard", tuple(range(settings.infer_train_shards))
    if "fold" in stage.fans_out:
        return "fold", tuple(settings.fold_numbers)
    return None, (None,)


def _environment(stage: Stage, settings: PipelineSettings) -> dict[str, str]:
    limited = len(settings.fold_numbers) < settings.n_folds
    if stage is INFER_TEACHER_LOGITS and settings.infer_train_shards > 1 and limited:
        return {stage.folds_variable: ",".join(map(str, settings.fold_numbers))}
    return {}


def _dependencies(stage: Stage, chosen: Sequence[str], settings: PipelineSettings) -> tuple[Dependency, ...]:
    """What a stage waits for: the stages of the table; instead of one that is left out, those that it waits for."""
    found: dict[str, bool] = {}
    for name in stage.depends_on:
        if name in chosen:
            alike = _tasks(stage, settings) == _tasks(STAGES[name], settings)
            found[name] = name == stage.pairs_with and alike
        else:
            for further in _dependencies(STAGES[name], chosen, settings):
                found[further.stage] = False
    return tuple(Dependency(name, paired) for name, paired in found.items())


def _notes(settings: PipelineSettings) -> list[str]:
    notes = []
    last = settings.numbers[-1]
    if len(settings.fold_numbers) < settings.n_folds:
        of_folds = [stage for stage in STAGES.values() if "fold" in stage.fans_out and stage.number in settings.numbers]
        folds = ",".join(map(str, settings.fold_numbers))
        if of_folds:
            notes.append(f"--folds {folds}: step {', '.join(str(stage.number) for stage in of_folds)} do these only")
        if last >= DISTILL_STUDENT.number:
            notes.append(
                f"step 5 wants step 4's table and step 6 the students of all {settings.n_folds} folds: those of the "
                f"others must be there already, or it will refuse (FOLDS={folds} averages these alone)"
            )
    if settings.families and POST_PRETRAIN.number not in settings.numbers:
        notes.append("--families without step 1: the models that step 3 starts from must be there already")
    if settings.pipeline_slurm and os.environ.get("SBATCH_EXPORT"):
        notes.append(
            f"SBATCH_EXPORT={os.environ['SBATCH_EXPORT']} is not used: the stages need the whole environment "
            "(--export=ALL)"
        )
    misspelt = [(name, near) for name, near in unread(os.environ) if near]
    notes += [f"{name} is nothing that we or sbatch know -> did you mean {near}?" for name, near in misspelt]
    return notes

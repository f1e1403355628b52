"""Settings of all stages, looked at before any of them starts: every mistake in them, and not the first alone."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from arena_distill.pipeline.preflight_chain import Chain, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic
from arena_distill.pipeline.variables import environment_of, unread
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, SECRET_VARIABLES, SettingsError
from arena_distill.runtime.settings import PROFILE_VARIABLE, StageSettings, known_variables, profile_entries
from arena_distill.runtime.stages import INFER_TEACHER_LOGITS, STAGES, Stage

SETTINGS = Topic("settings", EXIT_BAD_SETTINGS)

_NOT_IN_A_PROFILE = ("FOLD", "INFER_TRAIN_SHARD_ID")
_OF_THE_PIPELINE = ("SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_JOB_NAME", "SBATCH_WAIT")
_WHOLE_NUMBERS = ("TINY_PRETRAIN_EPOCHS", "PROCESSES_PER_NODE", "MAX_REQUEUES", "GRACE")


@dataclass(frozen=True)
class Settled:
    """Variables as the stages will see them."""

    variables: dict[str, str]  # the environment's, else the profile's; without those that nobody knows
    profile: str
    findings: tuple[Finding, ...]


def settle(environment: Mapping[str, str], profile: str = "") -> Settled:
    """Read the profile into the environment, and set aside what no stage would take.

    Args:
        environment: as given.
        profile: name or file; by default what the environment says.

    Raises:
        SettingsError: there is no such profile, or it cannot be read: nothing else can be said then.
    """
    profile = profile or environment.get(PROFILE_VARIABLE, "")
    entries = profile_entries(profile) if profile else {}
    known = known_variables()
    odd = {name for name in entries if name.upper() not in known}
    found = [_unknown(name, f"the profile {profile}", known) for name in sorted(odd)]
    prefixes = _owned_prefixes()
    ours = [name for name in sorted(environment) if name.upper().startswith(prefixes)]
    strange = {name for name in ours if environment[name] and name.upper() not in known}
    found += [_unknown(name, "the environment", known) for name in sorted(strange)]
    found += _odd_sbatch(environment)
    variables = {name: value for name, value in environment.items() if name not in strange and name != PROFILE_VARIABLE}
    for name, value in entries.items():
        if name not in odd and not variables.get(name.upper()) and not variables.get(name):
            variables[name.upper()] = value
    if profile and not found:
        found = [SETTINGS.ok(f"profile {profile}", f"{len(entries)} settings, all known")]
    return Settled(variables, profile, tuple(found))


def read_all(chain: Chain) -> tuple[dict[type[StageSettings], StageSettings], list[Finding]]:
    """Every stage's settings, and what is wrong with those of the stages that will run."""
    read: dict[type[StageSettings], StageSettings] = {}
    wrong: dict[str, list[int]] = {}
    findings: list[Finding] = []
    exported = {}
    if chain.settings.infer_train_shards > 1:
        exported["INFER_TRAIN_SHARD_ID"] = "0"  # each task has its own
    for stage in STAGES.values():
        for cls in settings_classes(stage):
            try:
                with environment_of(exported if stage is INFER_TEACHER_LOGITS else {}):
                    read[cls] = cls()
            except ValidationError as error:
                if chain.runs(stage):
                    for problem in error.errors():
                        wrong.setdefault(_in_words(problem), []).append(stage.number)
            except Exception as error:  # in a check of a setting, say
                if chain.runs(stage):
                    findings.append(SETTINGS.of_error(f"step {stage.number}", error))
    for words, numbers in wrong.items():
        name, _, said = words.partition("\0")
        findings.append(SETTINGS.fix(name or steps(numbers), said, f"set it right for {steps(numbers)}"))
    if not findings:
        findings.append(SETTINGS.ok(steps(chain.settings.numbers), "all settings are known, and within their bounds"))
    return read, findings


def read_script_settings(chain: Chain) -> Iterator[Finding]:
    """What the shell scripts read, and would refuse or stumble over only when they run."""
    for name in _WHOLE_NUMBERS:
        value = chain.variables.get(name, "")
        if value and not (value.isascii() and value.isdecimal()):
            yield SETTINGS.fix(name, f"{value!r} is no whole number", "give 0 or more, or leave it out")


def settings_classes(stage: Stage) -> list[type[StageSettings]]:
    """The classes that hold a stage's settings."""
    classes = []
    for name in stage.settings:
        module, _, cls = name.partition(":")
        classes.append(getattr(importlib.import_module(module), cls))
    return classes


def _owned_prefixes() -> tuple[str, ...]:
    classes = (cls for stage in STAGES.values() for cls in settings_classes(stage))
    return (*{prefix for cls in classes for prefix in cls.owned_prefixes}, "PIPELINE_")


def _unknown(name: str, where: str, known: Iterable[str]) -> Finding:
    if name.upper() in _NOT_IN_A_PROFILE:
        return SETTINGS.fix(name, f"{name} in {where} would hold for every task", "leave it out: tasks have their own")
    near = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else "remove it, or see --help of the stages for the names"
    return SETTINGS.fix(name, f"unknown variable in {where}", advice)


def _odd_sbatch(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, near in unread(environment):
        if not name.startswith("SBATCH_"):
            continue
        if name in _OF_THE_PIPELINE:
            yield SETTINGS.warning(
                name, "is not passed on: arrays, names and the environment of jobs are the pipeline's to say",
                "unset it, so that a stage submitted by hand is not changed by it either",
            )  # fmt: skip
        else:
            advice = f"did you mean {near}?" if near else "check its name in the manual of sbatch"
            yield SETTINGS.warning(name, "sbatch 22.05 knows no such variable, and would not tell", advice)


def _in_words(problem: Any) -> str:
    """Name of the setting, and what is wrong with it."""
    name = str(problem["loc"][0]).upper() if problem["loc"] else ""
    said = str(problem["msg"]).removeprefix("Value error, ")
    given = problem["input"]
    shown = f", not {given!r}" if name and name not in SECRET_VARIABLES and isinstance(given, str | int | float) else ""
    return f"{name}\0{said}{shown}"


def pipeline_error(error: SettingsError) -> Finding:
    """What the pipeline's own flags have wrong."""
    return SETTINGS.of_error("./pipeline.sh", error)

"""The chain as preflight looks at it: which stages are to run where, and what each of them is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

from arena_distill.pipeline.plan import Plan
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.runtime.settings import StageSettings
from arena_distill.runtime.stages import STAGES, Stage

TINY = "tiny"
TINY_DIRECTORY = Path("model_save/tiny")  # where step 1's script makes the models of the tiny profile

Read = TypeVar("Read", bound=StageSettings)


@dataclass(frozen=True)
class Chain:
    """What is to be run, and with what settings."""

    settings: PipelineSettings
    variables: Mapping[str, str]  # environment over profile
    profile: str
    on_slurm: bool  # else on this machine
    slurm_answers: bool = False  # there is a controller to ask
    read: Mapping[type[StageSettings], StageSettings] = field(default_factory=dict)  # of all stages that can be read
    plan: Plan | None = None  # None: it cannot be made, and a finding says why
    downgrades: Mapping[str, str] = field(default_factory=dict)  # base of step 1 -> what AUTO_DOWNGRADE will take

    def of(self, cls: type[Read]) -> Read | None:
        """A stage's settings; None where they cannot be read."""
        return cast("Read | None", self.read.get(cls))

    def runs(self, stage: Stage) -> bool:
        """Whether this stage is among those to run."""
        return stage.number in self.settings.numbers

    @property
    def stages(self) -> list[Stage]:
        """Those to run, in order."""
        return [stage for stage in STAGES.values() if self.runs(stage)]

    @property
    def folds(self) -> list[int]:
        """Folds to do."""
        return self.settings.fold_numbers

    @cached_property
    def tiny_models(self) -> frozenset[Path]:
        """Directories that step 1 will make models in, or make again; only of the tiny profile."""
        if self.profile != TINY or 1 not in self.settings.numbers:
            return frozenset()
        names = self.variables.get("TINY_FAMILIES", "").split(",")
        return frozenset(TINY_DIRECTORY / name.partition(":")[0].strip() for name in names if name.strip())

    def is_tiny(self, name: str) -> bool:
        """Whether step 1 makes this model itself."""
        return Path(name) in self.tiny_models

    def base(self, name: str) -> str:
        """The base that step 1 takes where this one is asked for."""
        return self.downgrades.get(name, name)

    def tasks(self, stage: Stage) -> int:
        """How many tasks a stage has."""
        return len(self.plan[stage.name].tasks) if self.plan is not None and self.runs(stage) else 1


def gigabytes(size: float) -> str:
    """Bytes in words, GB = 10^9."""
    if size < 1e8:
        return f"{max(size, 1e5) / 1e6:,.1f} MB"
    return f"{size / 1e9:,.1f} GB" if size < 99.95e9 else f"{size / 1e9:,.0f} GB"


def steps(numbers: list[int]) -> str:
    """``step 3`` or ``steps 1, 3-5``."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    text = ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
    return f"step{'s' * (len(set(numbers)) > 1)} {text}"


def hub_home(variables: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps its things."""
    caches = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(variables.get("HF_HOME") or f"{caches}/huggingface")).expanduser()


def hub_cache(variables: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models."""
    given = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(given)).expanduser() if given else hub_home(variables) / "hub"

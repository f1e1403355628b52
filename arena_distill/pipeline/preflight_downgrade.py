"""AUTO_DOWNGRADE: which smaller bases step 1 will take, foretold from the memory that its task will have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from arena_distill.models.architecture import KNOWN, LADDERS
from arena_distill.models.memory import choose_base
from arena_distill.pipeline.preflight_chain import Chain, gigabytes
from arena_distill.pipeline.preflight_finding import Finding, guarded
from arena_distill.pipeline.preflight_machines import Machine, Nodes, machine_of
from arena_distill.pipeline.preflight_memory import MEMORY, post_pretraining_shape
from arena_distill.runtime.stages import POST_PRETRAIN
from arena_distill.training.post_pretrain_settings import FamilyPlan, PostPretrainSettings

_LEFT_FREE = 5 * 10**8  # bytes of a GPU that are never free: its driver's


def find_downgrades(chain: Chain, nodes: Sequence[Nodes], found: dict[str, str]) -> Iterator[Finding]:
    """Put into ``found``, by the base that is asked for, the one that will be taken; and say so."""
    settings = chain.of(PostPretrainSettings)
    if settings is None or not settings.auto_downgrade or not chain.runs(POST_PRETRAIN):
        return
    machine = machine_of(chain, POST_PRETRAIN, nodes)
    available = _available(machine)
    if available is None:
        return  # the check of the memory says that nobody knows how much there is
    for plan in settings.plans:
        if _is_sized(plan.base) and not (plan.adapter / "manifest.json").is_file():
            subject = f"AUTO_DOWNGRADE, {plan.family}"
            yield from guarded(MEMORY, subject, partial(_choose, settings, plan, machine, available, found))


def _choose(
    settings: PostPretrainSettings, plan: FamilyPlan, machine: Machine, available: int, found: dict[str, str]
) -> Iterator[Finding]:
    ladder = [name for name in settings.ladder(plan.family) or LADDERS.get(plan.family, ()) if _is_sized(name)]
    choice = choose_base(plan.base, ladder, post_pretraining_shape(settings, machine), available)
    if choice.name != plan.base:
        found[plan.base] = choice.name
        need = choice.estimates[plan.base].total
        yield MEMORY.warning(
            f"AUTO_DOWNGRADE, {plan.family}",
            f"{plan.base} needs about {gigabytes(need)} of {gigabytes(available)}: step 1 takes {choice.name} instead",
            "AUTO_DOWNGRADE=0 with smaller batches, or more memory",
        )


def _available(machine: Machine) -> int | None:
    """Bytes of the smallest GPU that a task may get, or of RAM."""
    if not machine.gpus:
        return machine.ram
    sizes = [gpu.memory for gpu in machine.kinds if gpu.memory is not None]
    return min(sizes) - _LEFT_FREE if sizes else None


def _is_sized(name: str) -> bool:
    """Whether a model's dimensions are to be had without a network."""
    return name in KNOWN or (Path(name) / "config.json").is_file()

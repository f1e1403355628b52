"""What Slurm says of every stage's job, by ``sbatch --test-only``: partition, account, GPUs, memory and time."""

from __future__ import annotations

from collections.abc import Iterator

from arena_distill.pipeline.preflight_chain import Chain, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic
from arena_distill.pipeline.submit import sbatch_options, submission_environment
from arena_distill.pipeline.variables import repository
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, ArenaError

CLUSTER = Topic("cluster", EXIT_BAD_SETTINGS)

_PATIENCE_SECONDS = 5.0


def check_cluster(chain: Chain) -> Iterator[Finding]:
    """One line for all stages that Slurm takes, and one for every refusal."""
    if not chain.on_slurm:
        yield CLUSTER.ok("Slurm", "not looked at: the chain is to run on this machine")
        return
    if not chain.slurm_answers:
        yield CLUSTER.fix(
            "Slurm", "no controller answers here (sbatch, scontrol ping)",
            "go to a login node of the cluster, or leave out --slurm",
        )  # fmt: skip
        return
    if chain.plan is None:
        yield CLUSTER.warning("Slurm", "not asked: the settings have to be mended first", "mend them, and ask again")
        return
    refused: dict[tuple[str, str], list[int]] = {}
    taken: list[int] = []
    environment = submission_environment() | ({"PROFILE": chain.profile} if chain.profile else {})
    for one in chain.plan.stages:
        options = sbatch_options(one, chain.settings.run, chain.variables, ())
        script = repository() / one.stage.script
        try:
            slurm.test_only(
                options, script, environment=environment | dict(one.environment), cwd=repository(),
                patience_seconds=_PATIENCE_SECONDS,
            )  # fmt: skip
            taken.append(one.stage.number)
        except ArenaError as error:
            said, _, advice = str(error).partition(" -> ")
            refused.setdefault((said.replace(script.name, "").replace("sbatch :", "sbatch:"), advice), []).append(
                one.stage.number
            )
    if taken:
        where = chain.variables.get("SBATCH_PARTITION") or "the default partition"
        yield CLUSTER.ok(steps(taken), f"sbatch --test-only takes them ({where})")
    for (said, advice), numbers in refused.items():
        yield CLUSTER.fix(steps(numbers), said, advice or "see what sbatch is given")

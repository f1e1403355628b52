"""What Slurm refuses reaches the user with the name of the setting to change, and nothing is left in the queue."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import UNFINISHED, Cluster, Done
from tests.slurm.conftest import StartCluster
from tests.slurm.workplace import Workplace


def _assert_refused(done: Done, cluster: Cluster, place: Workplace, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    ended = {"COMPLETING"}  # cancelled after it had begun: Slurm still waits for its last process
    assert not (UNFINISHED - ended) & set(cluster.states()), cluster.shown()
    cluster.wait(seconds=60)
    assert not place.submission.parent.exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SBATCH_PARTITION": "nowhere"}, ["invalid partition", "SBATCH_PARTITION"]),
        ({"SBATCH_GRES": "gpu:9"}, ["SBATCH_GRES"]),
        ({"SBATCH_MEM_PER_NODE": "900G"}, ["SBATCH_MEM_PER_NODE"]),
        ({"SBATCH_TIMELIMIT": "30-00:00:00"}, ["SBATCH_TIMELIMIT"]),
        ({"CPUS_PER_TASK": "500"}, ["CPUS_PER_TASK"]),
        ({"PIPELINE_SBATCH": "--constraint=quantum"}, ["PIPELINE_SBATCH=--constraint=quantum"]),
        ({"STEP7_SBATCH": "--partition=elsewhere"}, ["step7", "STEP7_SBATCH=--partition=elsewhere"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refused_option_is_named(
    variables: dict[str, str], words: list[str], place: Workplace, cluster: Cluster
) -> None:
    _assert_refused(place.pipeline("--slurm", **variables), cluster, place, *words)


def test_what_the_site_says_counts(place: Workplace, cluster: Cluster) -> None:
    (place.root / "conf" / "cluster.sh").write_text("export SBATCH_PARTITION=ours\n", "utf-8")
    _assert_refused(place.pipeline("--slurm"), cluster, place, "SBATCH_PARTITION=ours")


def test_a_cluster_without_gres_is_told_to_ask_for_none(
    fresh: Workplace, start_cluster: StartCluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster = start_cluster(gres="")
    place = fresh.copy(tmp_path_factory.mktemp("no gres") / "repository", cluster)
    _assert_refused(place.pipeline("--slurm", SBATCH_GRES="gpu:1"), cluster, place, "SBATCH_GRES=none")


def test_an_account_that_may_not_is_named(
    fresh: Workplace, start_cluster: StartCluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    extra = "PartitionName=ours Nodes=n[1-2] MaxTime=1-0 AllowAccounts=physics"
    cluster = start_cluster(extra=extra)
    place = fresh.copy(tmp_path_factory.mktemp("account") / "repository", cluster)
    variables = {"SBATCH_PARTITION": "ours", "SBATCH_ACCOUNT": "chemistry"}
    _assert_refused(place.pipeline("--slurm", **variables), cluster, place, "SBATCH_ACCOUNT")


def test_a_dry_run_shows_every_sbatch_and_does_nothing(place: Workplace, cluster: Cluster) -> None:
    done = place.pipeline("--slurm", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sbatch ") >= 9
    assert not cluster.jobs() or cluster.idle()
    assert not place.models.exists() and not place.submission.parent.exists()

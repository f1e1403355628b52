"""The table of stages and the files it speaks of agree."""

from __future__ import annotations

import re
import stat

import pytest

from arena_distill.runtime.stages import STAGES, Stage
from tests.conftest import REPOSITORY

MOST_LINES = 60
by_name = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())


def _script(stage: Stage) -> str:
    return (REPOSITORY / stage.script).read_text("utf-8")


def _headers(stage: Stage) -> dict[str, str]:
    """Options of the ``#SBATCH`` lines that sbatch reads: those before the first command."""
    options: dict[str, str] = {}
    for line in _script(stage).splitlines():
        if found := re.match(r"#SBATCH --([\w-]+)=(\S+)", line):
            options[found[1]] = found[2]
        elif line.strip() and not line.startswith("#"):
            break
    return options


@by_name
def test_its_script_and_worker_exist_and_the_script_calls_the_worker(stage: Stage) -> None:
    assert (REPOSITORY / stage.worker).is_file()
    assert (REPOSITORY / stage.script).stat().st_mode & stat.S_IXUSR
    commands = [line for line in _script(stage).splitlines() if not line.lstrip().startswith("#")]
    assert any(re.search(rf"(^|\s){re.escape(stage.worker)}(\s|$)", line) for line in commands)


@by_name
def test_it_depends_on_earlier_stages_only(stage: Stage) -> None:
    earlier = list(STAGES)[: list(STAGES).index(stage.name)]
    assert set(stage.depends_on) <= set(earlier)
    assert STAGES[stage.name] is stage


@by_name
def test_its_script_asks_for_a_gpu_exactly_if_it_needs_one(stage: Stage) -> None:
    assert ("gres" in _headers(stage)) is stage.gpu
    assert _headers(stage).get("gres", "gpu:1").startswith("gpu:")


@by_name
def test_its_script_asks_for_the_memory_and_the_time_of_the_table(stage: Stage) -> None:
    headers = _headers(stage)
    hours, minutes, seconds = map(int, headers["time"].split(":"))
    assert hours + minutes / 60 + seconds / 3600 == stage.hours
    assert headers["mem"] == f"{stage.memory_gb}G"
    assert headers["output"].startswith("logs/")


@by_name
def test_its_script_is_short_and_knows_no_site(stage: Stage) -> None:
    assert len(_script(stage).splitlines()) < MOST_LINES
    assert not {"partition", "account", "qos", "nodelist"} & _headers(stage).keys()
    assert "module load" not in _script(stage) and "conda" not in _script(stage)


def test_every_numbered_script_is_in_the_table_or_belongs_to_a_stage_of_it() -> None:
    for script in REPOSITORY.glob("step*.sh"):
        number = script.name.partition("_")[0]
        assert any(name.startswith(f"{number}_") for name in STAGES), f"{script.name} is in no table"


def test_what_a_stage_reads_of_ours_an_earlier_one_writes() -> None:
    written: list[str] = []
    for stage in STAGES.values():
        for path in stage.reads:
            if path.startswith(("model_save/", "data/processed_data/")):
                stem = path.split("/")[1].split("_fold")[0].split("*")[0]
                assert any(stem in output for output in written), f"{stage.name} reads {path}, which nothing writes"
        written += stage.writes

"""What is planned: stages, tasks, threads, what waits for what; and what is refused before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arena_distill.pipeline.command_line import parse
from arena_distill.pipeline.headers import header
from arena_distill.pipeline.plan import Plan, make_plan
from arena_distill.pipeline.run_paths import run_paths
from arena_distill.pipeline.submit import array_text, sbatch_options, submission_environment
from arena_distill.pipeline.variables import own, settled
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.stages import STAGES, Stage
from tests.conftest import REPOSITORY

STEP = {stage.number: stage.name for stage in STAGES.values()}


def planned(*argv: str) -> Plan:
    return make_plan(parse(argv), cores=2)


def numbers(plan: Plan) -> list[int]:
    return [one.stage.number for one in plan.stages]


def waits_for(plan: Plan, number: int) -> dict[int, bool]:
    """Step -> whether task by task."""
    return {STAGES[one.stage].number: one.paired for one in plan[STEP[number]].depends}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_the_table_says_what_the_scripts_ask_slurm_for(stage: Stage) -> None:
    asked = header(REPOSITORY / stage.script)
    assert asked["job-name"] == stage.job_name
    assert asked["cpus-per-task"] == str(stage.cpus)
    assert asked["output"] == ("logs/%x_%A_%a.out" if stage.fans_out else "logs/%x_%j.out")


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_a_stage_pairs_only_with_one_that_fans_out_alike(stage: Stage) -> None:
    if stage.pairs_with:
        assert stage.pairs_with in stage.depends_on
        assert "fold" in stage.fans_out and "fold" in STAGES[stage.pairs_with].fans_out
    assert bool(stage.folds_variable) is ("fold" in stage.fans_out)


def test_the_whole_chain() -> None:
    plan = planned("--profile", "tiny")
    assert numbers(plan) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [number for number in range(1, 10) if plan[STEP[number]].tasks != (None,)] == [3, 4, 5]
    assert plan[STEP[3]].tasks == (0, 1, 2, 3, 4)
    waits = {number: waits_for(plan, number) for number in range(1, 10)}
    assert waits == {
        1: {},
        2: {},
        3: {1: False, 2: False},
        4: {3: True},
        5: {4: False},
        6: {5: False},
        7: {6: False},
        8: {7: False},
        9: {8: False},
    }


def test_what_is_left_out_hands_on_what_it_waits_for() -> None:
    plan = planned("--skip", "3,7", "--profile", "tiny")
    assert numbers(plan) == [1, 2, 4, 5, 6, 8, 9]
    assert waits_for(plan, 4) == {1: False, 2: False}
    assert waits_for(plan, 8) == {6: False}
    assert waits_for(planned("--from", "4", "--to", "5", "--profile", "tiny"), 4) == {}


def test_folds_limit_the_arrays_and_say_who_still_needs_all() -> None:
    plan = planned("--folds", "3,1", "--profile", "tiny")
    assert [plan[STEP[number]].tasks for number in (3, 4, 5, 6)] == [(1, 3), (1, 3), (1, 3), (None,)]
    assert any("step 6" in note and "others must be there already" in note for note in plan.notes)
    assert not planned("--profile", "tiny").notes


def test_shards_of_step_4_wait_for_every_teacher() -> None:
    plan = planned("--infer-train-shards", "3", "--folds", "0,1", "--profile", "tiny")
    step4 = plan[STEP[4]]
    assert (step4.array, step4.tasks) == ("shard", (0, 1, 2))
    assert waits_for(plan, 4) == {3: False}
    assert step4.environment_of_task(2) == {"INFER_FOLDS": "0,1", "INFER_TRAIN_SHARD_ID": "2"}
    assert settled()["INFER_TRAIN_SHARDS"] == "3"


def test_families_choose_for_steps_1_3_and_4() -> None:
    planned("--families", "qwen,gemma", "--profile", "tiny")
    told = settled()
    assert (told["RUN_STAGE"], told["INFER_MODELS"]) == ("qwen,gemma", "qwen2-72b,gemma2-9b,tiny-bert")
    assert [told[f"SKIP_{family}"] for family in ("LLAMA", "QWEN", "GEMMA")] == ["1", "0", "0"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--from", "0"), "PIPELINE_FROM"),
        (("--to", "10"), "PIPELINE_TO"),
        (("--from", "5", "--to", "4"), "--from 5 is after --to 4"),
        (("--skip", "11"), "no step '11'"),
        (("--skip", "seven"), "no step 'seven'"),
        (("--from", "8", "--skip", "8,9"), "leaves no step"),
        (("--folds", "5"), "the folds are 0 … 4, not 5"),
        (("--folds", "first"), "give all, or fold numbers"),
        (("--families", "llama,mistral"), "unknown family 'mistral'"),
        (("--frm", "2"), "did you mean --from?"),
        (("--profile", "tinny"), "no such profile"),
    ],
)
def test_what_there_is_not_is_refused(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        planned(*argv)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STUDENT_LEARNIN_RATE", "1", "STUDENT_LEARNIN_RATE"),
        ("TEACHER_LR", "-1", "step 3: --teacher-lr"),
        ("TEACHER_FOLDS", "0,1", "say it by --folds"),
        ("FOLD", "3", "say it by --folds"),
        ("STEP3_CPUS", "many", "STEP3_CPUS=many"),
        ("STEP5_SBATCH", "--array=0-9", "STEP5_SBATCH: --array is the pipeline's own"),
        ("PIPELINE_SBATCH", "--comment='a", "PIPELINE_SBATCH"),
        ("PIPELINE_FORM", "3", "did you mean PIPELINE_FROM?"),
    ],
)
def test_a_setting_of_any_stage_is_checked_before_the_first_starts(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        planned("--profile", "tiny")
    assert message in str(refused.value)


def test_threads_are_the_stages_own_then_the_runs_then_what_its_script_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def threads(*argv: str) -> list[int]:
        return [one.threads for one in make_plan(parse(argv), cores=6).stages]

    assert threads() == [6, 2, 6, 6, 6, 6, 6, 6, 1]
    monkeypatch.setenv("CPUS_PER_TASK", "3")
    monkeypatch.setenv("STEP4_CPUS", "9")
    assert threads() == [3, 3, 3, 9, 3, 3, 3, 3, 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads() == [1] * 9


def test_options_for_sbatch_come_from_the_run_and_the_users_count_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_SBATCH", "--nice=10 --mem=1G")
    monkeypatch.setenv("STEP3_SBATCH", "--mem=2G")
    plan = planned("--profile", "tiny", "--slurm", "--folds", "0,1,4")
    options = sbatch_options(plan[STEP[3]], "x", settled(), ["afterok:7:8"])
    assert options[:3] == ["--job-name=x-teachers", "--export=ALL", "--array=0-1,4"]
    assert options[3:6] == ["--dependency=afterok:7:8", "--kill-on-invalid-dep=yes", "--cpus-per-task=1"]
    assert options[6:] == ["--nice=10", "--mem=1G", "--mem=2G"]
    first = sbatch_options(plan[STEP[1]], "", settled(), [])
    assert first == ["--job-name=post-pretrain", "--export=ALL", "--cpus-per-task=2", "--nice=10", "--mem=1G"]


def test_numbers_of_an_array() -> None:
    assert array_text([4, 0, 1, 2, 7, 8]) == "0-2,4,7-8"


def test_every_path_of_the_table_is_known_for_a_run() -> None:
    known = run_paths(parse(["--profile", "tiny", "--run", "x", "--folds", "0,1", "--output-dir", "/o"]))
    for stage in STAGES.values():
        assert {*stage.reads, *stage.writes} <= known.keys()
    assert known["model_save/NAME_fold_K_lora"] == ["/o/model_save/x/{tiny-llama,tiny-bert}_fold_{0,1}_lora"]
    assert known["model_save/distilled_gemma2-9b_fold_K"] == ["/o/model_save/x/distilled_tiny-gemma2_fold_{0,1}"]
    assert known["sub/RUN_final_submission.csv"] == ["/o/sub/x_final_submission.csv"]


def test_a_misspelt_variable_for_sbatch_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMTI", "1")
    monkeypatch.setenv("STEP3_SBATHC", "--nice")
    monkeypatch.setenv("SBATCH_OF_THE_SITE", "1")
    said = [note for note in planned("--profile", "tiny").notes if "did you mean" in note]
    assert [re.findall(r"[A-Z0-9]+_[A-Z_]+", note) for note in said] == [
        ["SBATCH_TIMELIMTI", "SBATCH_TIMELIMIT"],
        ["STEP3_SBATHC", "STEP3_SBATCH"],
    ]


def test_jobs_get_the_whole_environment_whatever_sbatch_is_told_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SBATCH_EXPORT": "NONE",  # sbatch would hand over nothing
        "SBATCH_ARRAY_INX": "0-99",  # and make arrays of all
        "SLURM_JOB_ID": "7",  # of the job that we may be in
        "SLURM_CONF": "/etc/here",
        "SBATCH_QOS": "mine",
        "TEACHER_LABEL_WORDS": "1,2,3",  # a comma, which --export= would cut off
        "HF_TOKEN": "s3cret",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    plan = planned("--profile", "tiny", "--slurm")
    assert any("SBATCH_EXPORT=NONE is not used" in note for note in plan.notes)
    assert "--export=ALL" in sbatch_options(plan[STEP[3]], "x", settled(), [])
    handed_on = submission_environment()
    assert given.keys() & handed_on.keys() == {"SLURM_CONF", "SBATCH_QOS", "TEACHER_LABEL_WORDS", "HF_TOKEN"}
    assert handed_on["SBATCH_GRES"] == "none", "the profile's, as the environment says nothing else"
    monkeypatch.setenv("SBATCH_GRES", "gpu:a100:1")
    assert submission_environment()["SBATCH_GRES"] == "gpu:a100:1"


def test_threads_that_a_stage_script_chose_for_itself_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("STAGE_THREADS", "2")
    assert planned("--profile", "tiny")[STEP[3]].threads == 1
    assert "OMP_NUM_THREADS" not in submission_environment()
    monkeypatch.delenv("STAGE_THREADS")
    assert planned("--profile", "tiny")[STEP[3]].threads == 2


def test_secrets_are_no_settings_of_a_run() -> None:
    assert own({"HF_TOKEN": "s3cret", "RUN": "x", "TEACHER_LR": "1e-4", "HOME": "/root", "SEED": ""}) == {
        "RUN": "x",
        "TEACHER_LR": "1e-4",
    }


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "profiles").glob("*.env")), ids=lambda path: path.stem)
def test_every_profile_can_be_planned(path: Path) -> None:
    assert numbers(planned("--profile", path.stem)) == list(range(1, 10))

"""What is done and what is not, of a run that the stages themselves have finished: nothing of it is made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arena_distill.pipeline.artifact_states import Look
from arena_distill.pipeline.completeness import incomplete, is_complete
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.status import run_status
from arena_distill.runtime.stages import STAGES
from tests.pipeline.finished_chain import FinishedChain, changed, run_chain, run_step_9, without

POST, FOLDS, TEACHERS, LOGITS, STUDENTS, AVERAGE, QUANTIZE, PREDICT, EVAL = STAGES


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path, small_test_csv: Path
) -> FinishedChain:
    """A finished run, which every test leaves as it found it."""
    return run_chain(tmp_path_factory.mktemp("chain"), backbones, small_train_csv, small_test_csv)


def left(environment: dict[str, str] | FinishedChain) -> dict[str, list[int | None]]:
    """What is left to do, by stage."""
    told = dict(environment.environment) if isinstance(environment, FinishedChain) else environment
    tasks = {stage: [0, 1] if STAGES[stage].fans_out else [None] for stage in STAGES}
    found = {stage: incomplete(stage, tasks[stage], told) for stage in STAGES}
    return {stage: some for stage, some in found.items() if some}


def look(environment: dict[str, str] | FinishedChain) -> dict[tuple[str, int | None], tuple[str, str]]:
    """What the quick look says of everything that is not complete."""
    told = dict(environment.environment) if isinstance(environment, FinishedChain) else environment
    seen = Look(told)
    states = {(stage, task): state for stage in STAGES for task, state in seen.states(stage).items()}
    assert len(states) > len(STAGES)  # folds, and a table
    return {key: (state.state, state.detail) for key, state in states.items() if state.state != "complete"}


def test_nothing_is_left_to_do_of_a_finished_chain(chain: FinishedChain) -> None:
    assert left(chain) == {}
    assert look(chain) == {}
    assert is_complete(TEACHERS, 1, chain.environment) and is_complete(EVAL, None, chain.environment)


def test_what_this_shell_says_does_not_count_and_stays_as_it_is(
    chain: FinishedChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TEACHER_LR": "0.5", "RUN": "other", "STUDENT_EPOCHS": "many", "PROFILE": "tiny"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert left(chain) == {} and look(chain) == {}
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (POST, {"POSTPRE_LR": "0.5"}),
        (FOLDS, {"N_FOLDS": "3"}),
        (TEACHERS, {"TEACHER_LR": "0.5"}),
        (LOGITS, {"INFER_SWAP": "0"}),
        (STUDENTS, {"STUDENT_LR": "0.5"}),
        (AVERAGE, {"AVERAGE_METHOD": "mean"}),
        (QUANTIZE, {"QUANT_EVAL_ROWS": "7"}),
        (PREDICT, {"TTA_LENGTHS": "64,96"}),
    ],
)
def test_an_output_of_other_settings_is_stale_and_not_complete(
    chain: FinishedChain, stage: str, settings: dict[str, str]
) -> None:
    told = chain.told(**settings)
    tasks = [0, 1] if STAGES[stage].fans_out else [None]
    assert incomplete(stage, tasks, told) == tasks
    name, value = next(iter(settings.items()))
    states = [(state, detail) for (where, task), (state, detail) in look(told).items() if where == stage and task != 2]
    assert states and all(state == "stale" for state, _ in states)
    if stage not in (FOLDS, LOGITS):  # N_FOLDS is of many, and step 4 calls its settings otherwise
        assert all(name.lower() in detail and value.split(",")[-1] in detail for _, detail in states)


def test_another_training_file_leaves_all_that_was_made_of_the_old_one_to_do(
    chain: FinishedChain, tmp_path: Path, small_train_csv: Path
) -> None:
    header, first, *rest = small_train_csv.read_bytes().splitlines(keepends=True)
    other = tmp_path / "train.csv"
    other.write_bytes(b"".join([header, *rest, first]))
    told = chain.told(TRAIN_CSV=other)
    undone = left(told)
    assert {POST, FOLDS, TEACHERS, LOGITS, STUDENTS, QUANTIZE} <= undone.keys()
    assert undone[TEACHERS] == [0, 1]
    assert look(told)[TEACHERS, 0] == ("stale", "made from another train_csv")


@pytest.mark.parametrize(
    ("missing", "stage", "tasks", "state"),
    [
        ("post_pretrain_llama", POST, [None], "partial"),
        ("post_pretrain_llama_lora", POST, [None], "partial"),
        ("small_fold_1_lora", TEACHERS, [1], "partial"),
        ("small_fold_1", TEACHERS, [1], "partial"),
        ("teacher_logits/small_fold_0", LOGITS, [0], "missing"),
        ("distilled_student_fold_1", STUDENTS, [1], "missing"),
        ("final_merged_model", AVERAGE, [None], "partial"),
        ("final_quantized_model", QUANTIZE, [None], "missing"),
    ],
)
def test_a_missing_output_is_its_own_task_to_do(
    chain: FinishedChain, missing: str, stage: str, tasks: list[int | None], state: str
) -> None:
    with without(chain.models / missing):
        assert incomplete(stage, [0, 1] if STAGES[stage].fans_out else [None], chain.environment) == tasks
        assert look(chain)[stage, tasks[0]][0] == state


def test_a_table_that_is_missing_is_one_task_to_do(chain: FinishedChain) -> None:
    table = chain.models / "teacher_logits" / "oof_probs.parquet"
    with without(table):
        assert incomplete(LOGITS, [0, 1], chain.environment) == [1]
        assert look(chain)[LOGITS, None] == ("missing", "")
    with changed(table, table.read_bytes() + b" "):
        assert incomplete(LOGITS, [0, 1], chain.environment) == [1]
        assert look(chain)[LOGITS, None] == ("stale", f"{table} is missing or cut off")
    assert incomplete(LOGITS, [0, 1], chain.environment) == []


def test_a_table_of_earlier_logits_is_made_again(chain: FinishedChain) -> None:
    manifest = chain.models / "teacher_logits" / "oof_probs.manifest.json"
    recorded = json.loads(manifest.read_text("utf-8"))
    recorded["inputs"]["small_fold_0"] = "0" * 64
    with changed(manifest, json.dumps(recorded).encode()):
        assert incomplete(LOGITS, [0, 1], chain.environment) == [1]
        assert look(chain)[LOGITS, None] == ("stale", "made from another small_fold_0")


def test_weights_that_were_cut_off_are_made_again(chain: FinishedChain) -> None:
    for name, stage, tasks in (
        ("small_fold_0_lora/adapter_model.safetensors", TEACHERS, [0]),
        ("distilled_student_fold_0/adapter_model.safetensors", STUDENTS, [0]),
        ("final_quantized_model/model.safetensors", QUANTIZE, [None]),
    ):
        file = chain.models / name
        with changed(file, file.read_bytes()[:-100]):
            assert tasks[0] in incomplete(stage, tasks, chain.environment)
            assert look(chain)[stage, tasks[0]] == ("stale", f"{file} is missing or cut off")


def test_a_merged_teacher_of_an_earlier_adapter_is_merged_again_unless_none_is_wanted(chain: FinishedChain) -> None:
    manifest = chain.models / "small_fold_1" / "manifest.json"
    recorded = json.loads(manifest.read_text("utf-8"))
    recorded["verified"]["adapter_outputs"] = "0" * 64
    with changed(manifest, json.dumps(recorded).encode()):
        assert incomplete(TEACHERS, [0, 1], chain.environment) == [1]
        assert look(chain)[TEACHERS, 1] == ("stale", "merged from an earlier small_fold_1_lora")
    with without(chain.models / "small_fold_0", chain.models / "small_fold_1"):
        assert incomplete(TEACHERS, [0, 1], chain.told(TEACHER_MERGE="0")) == []
        assert incomplete(TEACHERS, [0, 1], chain.told(TEACHER_MERGE="1")) == [0, 1]
        # Three steps of a one-layer model: the disk has room for it, so step 3 would merge it.
        assert incomplete(TEACHERS, [0, 1], chain.told(TEACHER_MERGE="auto")) == [0, 1]


def test_a_base_model_chosen_from_the_ladder_counts(chain: FinishedChain, backbones: Path) -> None:
    asked = chain.told(LLAMA_BASE=backbones / "qwen2", LLAMA_LADDER=chain.environment["LLAMA_BASE"])
    assert incomplete(POST, [None], asked) == [None]
    assert incomplete(POST, [None], asked | {"AUTO_DOWNGRADE": "1"}) == []


def test_missing_inputs_and_impossible_settings_are_not_complete_and_no_error(
    chain: FinishedChain, tmp_path: Path
) -> None:
    nowhere = chain.told(OUTPUT_DIR=tmp_path / "nothing", TRAIN_CSV=tmp_path / "none.csv")
    assert left(nowhere) == {stage: [0, 1] if STAGES[stage].fans_out else [None] for stage in STAGES}
    assert {state for state, _ in look(nowhere).values()} == {"missing"}
    assert incomplete(STUDENTS, [0, 7], chain.environment) == [7]
    assert incomplete(TEACHERS, [0], chain.told(TEACHER_LR="fast")) == [0]
    state, detail = look(chain.told(TEACHER_LR="fast"))[TEACHERS, None]
    assert state == "missing" and "TEACHER_LR" in detail
    assert incomplete(TEACHERS, [0], {"PROFILE": "no-such-profile"}) == [0]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"schema_version": 1, "stage": "x", "fingerprint": 1, "outputs": []}']
)
def test_a_manifest_that_somebody_broke_is_no_error(chain: FinishedChain, content: bytes) -> None:
    places = {
        "post_pretrain_llama_lora": (POST, None), "small_fold_0_lora": (TEACHERS, 0), "avg_lora": (AVERAGE, None),
        "teacher_logits/small_fold_0": (LOGITS, 0), "distilled_student_fold_0": (STUDENTS, 0),
        "final_merged_model": (AVERAGE, None), "final_quantized_model": (QUANTIZE, None),
    }  # fmt: skip
    for name, (stage, task) in places.items():
        with changed(chain.models / name / "manifest.json", content):
            assert task in incomplete(stage, [task], chain.environment)
            assert any(where == stage for where, _ in look(chain))


def test_shards_are_done_when_the_folds_are(chain: FinishedChain) -> None:
    shards = chain.told(INFER_TRAIN_SHARDS="3")
    assert incomplete(LOGITS, [0, 1, 2], shards) == [] and look(shards) == {}
    with without(chain.models / "teacher_logits" / "small_fold_1"):
        assert incomplete(LOGITS, [0, 1, 2], shards) == [0, 1, 2]


def test_step_9_is_done_when_ensemble_evaluation_and_report_are_of_what_is_there(chain: FinishedChain) -> None:
    report = chain.models / "report.html"
    with without(report):
        assert left(chain) == {EVAL: [None]}
        assert look(chain) == {(EVAL, None): ("partial", "no report.html")}
    submission = chain.sub("final_submission.csv")
    with changed(submission, submission.read_bytes().replace(b"\n", b"\r\n")):
        assert left(chain) == {PREDICT: [None], EVAL: [None]}
        assert look(chain)[EVAL, None] == ("stale", f"made from another {submission}")
    with without(chain.sub("evaluation.json")):
        assert left(chain) == {EVAL: [None]}
    folds = chain.sub("student_submission_fold_0.csv")
    folds.write_bytes(submission.read_bytes())  # step 9 takes the folds' submissions where there are any
    try:
        assert left(chain) == {EVAL: [None]}
    finally:
        folds.unlink()
    manifest = chain.models / "avg_lora" / "manifest.json"  # as if step 6 had run again, with the same result
    with changed(manifest, manifest.read_bytes() + b"\n"):
        assert left(chain) == {EVAL: [None]}
        assert look(chain) == {(EVAL, None): ("stale", "report.html is of earlier outputs")}
        run_step_9(chain)
        assert left(chain) == {} and look(chain) == {}
    run_step_9(chain)
    assert left(chain) == {}


def test_a_checkpoint_shows_as_partial(chain: FinishedChain) -> None:
    student = chain.models / "distilled_student_fold_0"
    begun = chain.models / ".distilled_student_fold_0.partial-0123456789ab" / "training"
    for step in (8, 12):
        (begun / f"checkpoint-{step}").mkdir(parents=True)
    with without(student):
        assert look(chain)[STUDENTS, 0] == ("partial", "checkpoint 12")
    assert (STUDENTS, 0) not in look(chain)
    for step in (8, 12):
        (begun / f"checkpoint-{step}").rmdir()
    begun.rmdir()
    begun.parent.rmdir()


def test_the_status_of_a_finished_run_that_nobody_recorded_ends_at_its_report(
    chain: FinishedChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in chain.environment.items():
        monkeypatch.setenv(name, value)
    found = run_status(PipelineSettings())
    assert {line.state for line in found.tasks} == {"done"}
    assert found.next == f"complete: see {chain.models / 'report.html'}"
    with without(chain.models / "distilled_student_fold_1"):
        found = run_status(PipelineSettings())
        assert [line.name for line in found.tasks if line.state == "not run"] == ["step 5 fold 1"]
        assert found.next == "not complete (step 5 fold 1): `RUN=x ./pipeline.sh` goes on"


@pytest.mark.parametrize("what", ["completeness", "artifact_states", "status"])
def test_no_torch_is_needed_to_tell(chain: FinishedChain, what: str) -> None:
    questions = {
        "completeness": "from arena_distill.pipeline.completeness import incomplete\n"
        "done = [incomplete(s, [0, 1] if S[s].fans_out else [None], told) for s in S]\nassert not any(done), done",
        "artifact_states": "from arena_distill.pipeline.artifact_states import Look\n"
        "seen = Look(told)\nassert all(a.state == 'complete' for s in S for a in seen.states(s).values())",
        "status": "import os\nos.environ.update(told)\nfrom arena_distill.pipeline.command_line import parse\n"
        "from arena_distill.pipeline.status import show_status\nassert show_status(parse([])) == 0",
    }
    code = (
        f"import sys\nfrom arena_distill.runtime.stages import STAGES as S\ntold = {dict(chain.environment)!r}\n"
        f"{questions[what]}\nheavy = {{'torch', 'transformers', 'sklearn'}} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

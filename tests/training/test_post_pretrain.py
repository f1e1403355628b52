"""Step 1: what it trains on, what it leaves behind, and which base it takes when memory is short."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from arena_distill.data.identity import rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import shares_prompt
from arena_distill.models.architecture import architecture_of
from arena_distill.models.free_memory import available_memory
from arena_distill.models.memory import TrainingShape, estimate_memory
from arena_distill.models.tiny import TinySize, make_tiny_model
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, ArenaError, DataError, InputError, SettingsError
from tests.conftest import REPOSITORY, SAMPLE, is_json
from tests.training.teacher_runs import EXTRA, contents, flags, manifest_of, quick_step1, run_script, start, step1

ADAPTER = "adapter_model.safetensors"


def _adapter(output: Path) -> Path:
    return output / "model_save" / "post_pretrain_llama_lora"


def _merged(output: Path) -> Path:
    return output / "model_save" / "post_pretrain_llama"


@pytest.fixture(autouse=True)
def _no_files_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default base file is looked for there."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


# What is trained, and what it becomes


@pytest.mark.parametrize("objective", ["preference", "lm"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_the_merged_model_is_a_causal_lm_equal_to_base_and_adapter(
    family: str, objective: str, backbones: Path, tmp_path: Path
) -> None:
    step1(**quick_step1(EXTRA, backbones / family, tmp_path), postpre_objective=objective)
    merged, report = AutoModelForCausalLM.from_pretrained(_merged(tmp_path), output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    base: Any = AutoModelForCausalLM.from_pretrained(backbones / family).eval()
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.inference_mode():
        before = base(ids).logits
        adapted: Any = PeftModel.from_pretrained(base, str(_adapter(tmp_path))).eval()
        torch.testing.assert_close(merged.eval()(ids).logits, adapted(ids).logits, rtol=0, atol=2e-5)
        assert (before - merged(ids).logits).abs().max() > 1e-3, "nothing was learned"
    assert (_merged(tmp_path) / "tokenizer.json").is_file()
    found = manifest_of(_adapter(tmp_path))
    assert (found["family"], found["base_model"]) == ("llama", str(backbones / family))
    assert (found["rows"]["used"], found["metrics"]["steps"]) == (40, 3)
    assert found["settings"]["postpre_objective"] == objective


@pytest.mark.parametrize("objective", ["preference", "lm"])
def test_training_lowers_the_loss(objective: str, backbones: Path, tmp_path: Path) -> None:
    settings = quick_step1(EXTRA, backbones / "llama", tmp_path) | {"postpre_max_steps": 40, "postpre_subset_size": 8}
    # Steadily, so that it hangs on no draw: with half of the rank, dropout and three times the rate it takes luck.
    steady = {"postpre_lr": 3e-3, "postpre_lora_r": 16, "postpre_lora_dropout": 0.0}
    step1(**settings | steady, postpre_objective=objective)
    metrics = manifest_of(_adapter(tmp_path))["metrics"]
    assert metrics["last_loss"] < metrics["first_loss"] - 0.05


def test_step_3_goes_on_from_the_merged_model(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    from tests.training.teacher_runs import FOLDS, adapter_of, quick_step3, step2, step3

    step1(**quick_step1(EXTRA, backbones / "llama", tmp_path), train_csv=small_train_csv)
    step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=tmp_path)
    settings = quick_step3(small_train_csv, Path(), tmp_path)
    del settings["llama_ft_base"]
    step3(**settings)
    assert manifest_of(adapter_of(tmp_path))["base_model"] == str(_merged(tmp_path))
    # A teacher is no base for another: it has seen rows that the other holds out.
    step3(**settings | {"teacher_merge": "1"})
    teacher = next(path for path in (tmp_path / "model_save").glob("tiny_fold_?"))
    with pytest.raises(InputError, match="was trained on votes that teachers hold out"):
        step3(**settings | {"llama_ft_base": teacher, "llama_name": "second"})
    # The adapter was trained again, the merged copy is of the one before.
    again = quick_step1(EXTRA, backbones / "llama", tmp_path) | {"postpre_max_steps": 4, "postpre_merge": False}
    step1(**again, train_csv=small_train_csv)
    with pytest.raises(InputError, match="merged copy of an earlier post_pretrain_llama_lora"):
        step3(**settings)


def test_step_3_refuses_a_model_that_step_1_showed_the_prompts_of_its_rows(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    from tests.training.teacher_runs import FOLDS, quick_step3, step2, step3

    step1(**quick_step1(small_train_csv, backbones / "llama", tmp_path), train_csv=EXTRA)
    step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=tmp_path)
    settings = quick_step3(small_train_csv, Path(), tmp_path)
    del settings["llama_ft_base"]
    with pytest.raises(InputError, match="step 1 did not leave out the prompts of these rows"):
        step3(**settings)


def test_rows_whose_prompt_stands_in_the_base_file_are_left_out_and_counted(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    """The extra file here is the base file itself with other rows: all that it shares must go."""
    shared = shares_prompt(load_labelled(EXTRA).rows, load_labelled(SAMPLE / "train.csv").rows).sum()
    assert 0 < shared < 300
    settings = quick_step1(EXTRA, backbones / "llama", tmp_path) | {"postpre_subset_size": 0}
    step1(**settings, train_csv=SAMPLE / "train.csv")
    assert manifest_of(_adapter(tmp_path))["rows"] == {
        "read": 300,
        "prompt_in_base_file": int(shared),
        "left_out_prompts_of": rows_sha256(load_labelled(SAMPLE / "train.csv").rows),
        "used": 300 - int(shared),
    }


def test_votes_on_prompts_of_the_base_file_change_no_weight(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    """Extra rows with the base file's prompts and any vote: the model is the same as without them."""
    leak = tmp_path / "leak.csv"
    shutil.copy(small_train_csv, leak)
    weights = []
    for name, data in (("clean", f"{EXTRA}"), ("leaking", f"{EXTRA},{leak}")):
        settings = quick_step1(Path(data), backbones / "llama", tmp_path / name) | {"postpre_subset_size": 0}
        step1(**settings, train_csv=small_train_csv)
        weights.append((_adapter(tmp_path / name) / ADAPTER).read_bytes())
    assert weights[0] == weights[1]


def test_data_that_lies_in_the_base_file_alone_leaves_nothing_to_train_on(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    settings = quick_step1(small_train_csv, backbones / "llama", tmp_path)
    with pytest.raises(DataError, match="no rows are left"):
        step1(**settings, train_csv=small_train_csv)
    assert not _adapter(tmp_path).exists()


def test_a_given_base_file_that_is_missing_is_refused_and_not_passed_over(backbones: Path, tmp_path: Path) -> None:
    """Else its prompts would leak into every teacher without a word."""
    with pytest.raises(InputError, match=r"gone\.csv"):
        step1(**quick_step1(EXTRA, backbones / "llama", tmp_path), train_csv=tmp_path / "gone.csv")


# Up to date, interrupted, moved


def test_a_second_run_changes_nothing_and_imports_no_torch(backbones: Path, tmp_path: Path) -> None:
    settings = quick_step1(EXTRA, backbones / "llama", tmp_path)
    step1(**settings)
    before = contents(tmp_path / "model_save")
    script = f"""
import sys
sys.argv = ["post_pretrain.py", *{flags(**settings)!r}]
sys.path.insert(0, {str(REPOSITORY)!r})
import runpy
try:
    runpy.run_path({str(REPOSITORY / "scripts" / "post_pretrain.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules and "transformers" not in sys.modules, "imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{_adapter(tmp_path)}: up to date" in done.stdout and f"{_merged(tmp_path)}: up to date" in done.stdout
    assert contents(tmp_path / "model_save") == before


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["preference", "lm"])
def test_after_sigkill_the_same_command_goes_on_and_ends_with_the_same_weights(
    objective: str, backbones: Path, tmp_path: Path
) -> None:
    def settings(output: Path) -> dict[str, object]:
        long = {"postpre_max_steps": 40, "postpre_save_steps": 1, "postpre_lora_dropout": 0.3}
        return quick_step1(EXTRA, backbones / "llama", output) | long | {"postpre_objective": objective}

    step1(**settings(tmp_path / "whole"))
    process = start("post_pretrain.py", **settings(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    checkpoints = ".post_pretrain_llama_lora.partial-*/training/checkpoint-*/trainer_state.json"
    while not any(map(is_json, (tmp_path / "killed" / "model_save").glob(checkpoints))):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not _adapter(tmp_path / "killed").exists(), "the run ended before it was killed"
    code, output = run_script("post_pretrain.py", **settings(tmp_path / "killed"))
    assert code == 0, output
    assert "going on from checkpoint-" in output
    one, two = (load_file(_adapter(tmp_path / name) / ADAPTER) for name in ("whole", "killed"))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_checkpoints_on_scratch_are_gone_afterwards(backbones: Path, tmp_path: Path) -> None:
    step1(**quick_step1(EXTRA, backbones / "llama", tmp_path / "out"), scratch_base=tmp_path / "scratch")
    assert contents(tmp_path / "scratch") == {}
    assert _merged(tmp_path / "out").is_dir()


def test_two_runs_with_equal_settings_have_checkpoints_of_their_own_on_one_scratch_disk(
    backbones: Path, tmp_path: Path
) -> None:
    """Jobs of RUN=a and RUN=b may run at the same time on one node."""
    from arena_distill.training.post_pretrain_job import plan_post_pretraining
    from arena_distill.training.post_pretrain_settings import PostPretrainSettings

    places = []
    for run in ("a", "b"):
        settings = PostPretrainSettings(
            run=run,
            ut_data=str(EXTRA),
            llama_base=str(backbones / "llama"),
            run_stage="llama",
            scratch_base=str(tmp_path / "scratch"),
            output_dir=tmp_path,
        )
        (plan,) = settings.plans
        places.append(plan_post_pretraining(settings, plan, plan.base).work)
    assert places[0] != places[1]


# AUTO_DOWNGRADE


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, sample_texts: list[str]) -> list[Path]:
    """Three Llamas, from large to small; the smallest needs some twelve megabytes to be trained."""
    directory = tmp_path_factory.mktemp("ladder")
    for name, hidden in (("large", 256), ("middle", 128), ("small", 32)):
        make_tiny_model("llama", sample_texts, directory / name, TinySize(hidden, 1, 2, 1500, 512), seed=1)
    return [directory / name for name in ("large", "middle", "small")]


def _need(base: Path, settings: dict[str, Any]) -> int:
    """Bytes, by the estimator, whose own tests hold it against what PyTorch allocates."""
    shape = TrainingShape(
        rows=settings["postpre_per_device_bs"],
        max_length=settings["postpre_maxlen"],
        lora_r=settings["postpre_lora_r"],
        weight_bytes=4,
        on_gpu=False,
    )
    return estimate_memory(architecture_of(str(base)), shape).total


def test_the_largest_base_that_fits_is_taken_and_the_reason_printed(
    ladder: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if available_memory()[1].startswith("GPU"):
        pytest.skip("the memory of a GPU cannot be limited from outside")
    large, middle, small = ladder
    settings: dict[str, Any] = quick_step1(EXTRA, large, tmp_path)
    mebibytes = -(-_need(middle, settings) // (1 << 20))
    assert _need(small, settings) < mebibytes << 20 < _need(large, settings)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(mebibytes))
    step1(**settings, auto_downgrade=True, llama_ladder=f"{small},{middle}")
    out = capsys.readouterr().out
    assert "SLURM_MEM_PER_NODE" in out
    assert f"{large} needs" in out and f"chose {middle}, which needs" in out
    assert f"{middle}:\nmemory (GB" in out
    assert manifest_of(_adapter(tmp_path))["base_model"] == str(middle)
    merged = json.loads((_merged(tmp_path) / "config.json").read_text())
    assert merged["hidden_size"] == 128


def test_a_base_that_fits_is_kept(ladder: list[Path], tmp_path: Path) -> None:
    step1(**quick_step1(EXTRA, ladder[0], tmp_path), auto_downgrade=True, llama_ladder=ladder[2])
    assert manifest_of(_adapter(tmp_path))["base_model"] == str(ladder[0])


def test_if_nothing_fits_the_run_is_refused_with_what_would_help(
    ladder: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if available_memory()[1].startswith("GPU"):
        pytest.skip("the memory of a GPU cannot be limited from outside")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    settings = quick_step1(EXTRA, ladder[0], tmp_path) | {"postpre_gradient_checkpointing": False}
    with pytest.raises(SettingsError, match=r"needs .* free.*-> try .*gradient checkpointing") as caught:
        step1(**settings, auto_downgrade=True, llama_ladder=f"{ladder[1]},{ladder[2]}")
    assert caught.value.exit_code == EXIT_BAD_SETTINGS
    assert not _adapter(tmp_path).exists()


# Bad input


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"ut_data": "gone.csv"}, InputError, r"gone\.csv"),
        ({"ut_data": ""}, InputError, "UT_DATA|ultrafeedback"),
        ({"run_stage": "lama"}, SettingsError, "unknown family 'lama'"),
        ({"llama_base": "./gone"}, InputError, "LLAMA_BASE=./gone: no such model directory"),
        ({"llama_tok": "./gone"}, InputError, "LLAMA_TOK=./gone"),
        ({"postpre_label_words": "A,B,neither of them"}, InputError, "neither of them.*(postpre|POSTPRE)"),
        ({"postpre_maxlen": 16}, SettingsError, "POSTPRE_MAXLEN"),
        ({"postpre_lr": 1e30, "postpre_warmup_ratio": 0}, SettingsError, "diverged.*learning rate"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_nothing_appears(
    wrong: dict[str, object], error: type[ArenaError], match: str, backbones: Path, tmp_path: Path
) -> None:
    settings = quick_step1(EXTRA, backbones / "llama", tmp_path) | wrong
    with pytest.raises(error, match=match) as caught:
        step1(**settings)
    assert "\n" not in str(caught.value)
    assert not _adapter(tmp_path).exists() and not _merged(tmp_path).exists()


def test_a_misspelt_variable_is_refused_by_name(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTPRE_EPOCH", "3")
    with pytest.raises(SettingsError, match=r"POSTPRE_EPOCH .*did you mean POSTPRE_EPOCHS"):
        step1(**quick_step1(EXTRA, backbones / "llama", tmp_path))


@pytest.mark.parametrize("place", [_adapter, _merged])
def test_what_a_person_made_is_not_replaced(place: Any, backbones: Path, tmp_path: Path) -> None:
    place(tmp_path).mkdir(parents=True)
    (place(tmp_path) / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="did not make"):
            step1(**quick_step1(EXTRA, backbones / "llama", tmp_path), force=force)
    assert (place(tmp_path) / "thesis.txt").read_text() == "years of work"


def test_a_foreign_merged_directory_is_found_before_the_training_and_not_after_it(
    backbones: Path, tmp_path: Path
) -> None:
    _merged(tmp_path).mkdir(parents=True)
    (_merged(tmp_path) / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="did not make"):
        step1(**quick_step1(EXTRA, backbones / "llama", tmp_path))
    assert not _adapter(tmp_path).exists(), "a day of training went before"


# By hand: lora_train.py and lora_merge.py


def _lora_train(base: Path, out: Path, *words: str, **environment: str) -> tuple[int, str]:
    import os

    quick = ["--postpre-max-steps", "2", "--postpre-maxlen", "64", "--postpre-subset-size", "20"]
    given = ["--base-model", str(base), "--out-dir", str(out), "--ut-data", str(EXTRA), *quick, *words]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "lora_train.py"), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "type_"), [("--bf16", "bfloat16"), ("--no-bf16", "float32")])
def test_lora_train_computes_in_the_type_that_its_flag_says_and_lora_merge_makes_a_model_of_it(
    flag: str, type_: str, backbones: Path, tmp_path: Path
) -> None:
    code, printed = _lora_train(backbones / "llama", tmp_path / "lora", flag)
    assert code == 0, printed
    assert f"base weights in {type_}" in printed
    merge = [sys.executable, str(REPOSITORY / "scripts" / "lora_merge.py"), "--lora-dir", str(tmp_path / "lora")]
    subprocess.run([*merge, "--out-dir", str(tmp_path / "merged")], check=True)
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = AutoModelForCausalLM.from_pretrained(backbones / "llama")
    adapted: Any = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.inference_mode():
        np.testing.assert_allclose(merged(ids).logits, adapted(ids).logits, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_lora_train_with_auto_downgrade_and_without_its_arguments_says_what_is_missing(
    backbones: Path, tmp_path: Path
) -> None:
    code, printed = _lora_train(backbones / "llama", tmp_path / "lora", AUTO_DOWNGRADE="1", SLURM_MEM_PER_NODE="1")
    assert code == EXIT_BAD_SETTINGS, printed
    assert "Traceback" not in printed and "needs" in printed
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "lora_train.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_BAD_SETTINGS
    assert "base-model" in done.stderr and "Traceback" not in done.stderr

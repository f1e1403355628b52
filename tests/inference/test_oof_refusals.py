"""What step 4 refuses: each with its exit code and a message that says what to do, and nothing finished is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from arena_distill.inference.oof_settings import OofSettings
from arena_distill.runtime.artifacts import MANIFEST
from arena_distill.runtime.errors import run_command
from tests.conftest import REPOSITORY
from tests.inference.oof_runs import (
    QUICK_TEACHER,
    adapter,
    array,
    copy_of,
    folds_path,
    infer,
    logits_dir,
    make_folds,
    results,
    set_aside,
    start_infer,
    table_path,
    train,
)

WEIGHTS = "adapter_model.safetensors"
AGAIN = {"infer_force_regen": True}  # finished logits would be up to date, and no teacher loaded


@pytest.fixture
def root(scored: Path, tmp_path: Path) -> Path:
    """Teachers with finished logits and table, which a test may change."""
    return copy_of(scored, tmp_path / "root", logits=True)


def refused(root: Path, code: int, *parts: str, capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    """Run step 4; it must fail with ``code``, name all ``parts`` in one line, and leave every result as it was."""
    before = results(root)
    capsys.readouterr()
    assert run_command(lambda: infer(root, **settings)) == code
    out, message = capsys.readouterr()
    assert message.startswith("error: ") and message.count("\n") == 1, message
    assert code == 2 or " -> " in message, "says what to do next"
    for part in parts:
        assert str(part) in message
    assert ": valid" not in out
    assert results(root) == before
    return message


def set_weights(file: Path, name_part: str, change: Callable[[np.ndarray], object]) -> None:
    """Change every tensor whose name holds ``name_part``; the file keeps its size."""
    size = file.stat().st_size
    weights = load_file(file)
    chosen = [name for name in weights if name_part in name]
    assert chosen
    for name in chosen:
        change(weights[name])
    save_file(weights, file, metadata={"format": "pt"})
    assert file.stat().st_size == size


# The teachers of some folds


def test_a_missing_fold_is_refused_with_the_command_that_trains_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapter(root, "llama", 1)
    shutil.rmtree(path)
    train_it = "TEACHER_FOLDS=1 bash step3_train_teachers.sh"
    refused(root, 3, str(path), "fold 1 of llama is missing", train_it, capsys=capsys)
    refused(root, 3, str(path), capsys=capsys, infer_folds="1", infer_models="llama")
    infer(root, infer_folds="0,2")  # the others need it not
    assert "up to date" in capsys.readouterr().out


def test_a_directory_without_a_manifest_is_no_teacher(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (adapter(root, "llama", 1) / MANIFEST).unlink()
    refused(root, 3, str(adapter(root, "llama", 1)), "not a finished teacher", capsys=capsys)


def test_a_teacher_under_the_name_of_another_fold_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has seen the rows that it would score: the leak that makes the score a lie."""
    path = adapter(root, "llama", 1)
    shutil.rmtree(path)
    shutil.copytree(adapter(root, "llama", 0), path)
    refused(
        root, 3, str(path), "its manifest says fold 0", "may have been trained on the rows of fold 1", capsys=capsys
    )


def test_a_teacher_under_the_name_of_another_family_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = adapter(root, "llama", 1)
    shutil.rmtree(path)
    shutil.copytree(adapter(root, "qwen2", 1), path)
    refused(root, 3, str(path), capsys=capsys)


def test_teachers_of_other_folds_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folds(root, seed=7)
    other = folds_path(root).with_name("folds_3_seed7.json")
    refused(root, 3, str(adapter(root, "llama", 0)), f"other folds than {other}", capsys=capsys, folds_json=other)
    shutil.copyfile(other, folds_path(root))
    refused(root, 3, "was trained with other folds", capsys=capsys)


def test_a_changed_data_file_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (root / "train.csv").read_text(encoding="utf-8")
    (root / "train.csv").write_text(data.replace(" the ", " teh ", 1), encoding="utf-8")
    refused(root, 3, "was trained on other votes", capsys=capsys)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_cut_off_weights_are_refused(size: int, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = adapter(root, "qwen2", 2) / WEIGHTS
    os.truncate(file, size % file.stat().st_size)
    refused(root, 3, str(file), "missing or cut off", capsys=capsys)
    file.unlink()
    refused(root, 3, str(file), "missing or cut off", capsys=capsys)


def test_damaged_weights_of_the_right_size_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = adapter(root, "llama", 0) / WEIGHTS
    file.write_bytes(b"\xff" * file.stat().st_size)
    refused(root, 3, str(file.parent), capsys=capsys, **AGAIN)


# Their bases


def test_another_base_in_its_place_is_refused(
    root: Path, scored: Path, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = teachers / "bases" / "llama"
    with set_aside(base, tmp_path / "spare"):
        set_weights(base / "model.safetensors", "embed_tokens", lambda weights: weights.__setitem__((0, 0), 1.0))
        refused(root, 3, "another base", str(base), capsys=capsys, **AGAIN)
    infer(root, **AGAIN)
    assert results(root) == results(scored)


def test_a_base_that_is_gone_is_refused_and_never_taken_for_a_hub_name(
    root: Path, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = teachers / "bases" / "qwen2"
    with set_aside(base, tmp_path / "spare"):
        shutil.rmtree(base)
        message = refused(root, 3, str(base), "no such model directory", capsys=capsys, **AGAIN)
    assert "cannot be loaded" not in message and "huggingface" not in message.lower()


# What they say


def test_nan_weights_are_refused_again_and_again_and_leave_no_trace_once_mended(
    root: Path, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = adapter(root, "llama", 1) / WEIGHTS
    good = file.read_bytes()
    set_weights(file, "lora_B", lambda weights: weights.fill(np.nan))
    for _ in range(2):
        refused(root, 3, "NaN or infinite logits", capsys=capsys, **AGAIN)
    file.write_bytes(good)
    infer(root, **AGAIN)
    assert results(root) == results(scored)


def test_infinite_logits_are_refused_again_and_again(
    backbones: Path, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head whose weights overflow: what a first run has written must not pass for finished in the second."""
    root = copy_of(teachers, tmp_path / "root", logits=False)
    shutil.rmtree(root / "model_save")
    only = {"skip_qwen": True, "llama_ft_base": backbones / "llama", "llama_name": "cls", "teacher_head": "seq_cls"}
    train(root, **only, teacher_folds="0")
    infer(root, infer_folds="0", infer_save_lasttok=True)
    states = array(root, "cls", 0, "lasttok")
    unit = int(np.nanmax(np.abs(states), axis=0).argmax())
    assert np.nanmax(np.abs(states[:, unit])) > 1.1

    def overflow(head: np.ndarray) -> None:
        head.fill(0)
        head[:, unit] = np.finfo(np.float32).max  # infinite where the unit is beyond 1, and NaN nowhere

    shutil.rmtree(logits_dir(root))
    set_weights(adapter(root, "cls", 0) / WEIGHTS, "score", overflow)
    for _ in range(2):
        capsys.readouterr()
        assert run_command(lambda: infer(root, infer_folds="0")) == 3
        assert "NaN or infinite logits" in capsys.readouterr().err
    assert not (logits_dir(root) / "cls_fold_0").exists()


def test_the_message_about_bad_logits_names_the_teacher(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_weights(adapter(root, "llama", 1) / WEIGHTS, "lora_B", lambda weights: weights.fill(np.nan))
    refused(root, 3, str(adapter(root, "llama", 1)), capsys=capsys, **AGAIN)


# Settings


def test_folds_and_families_that_do_not_exist_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(root, 2, "INFER_FOLDS", "has the folds 0 … 2, no fold 7", capsys=capsys, infer_folds="7")
    refused(root, 3, "fold 0 of mistral is missing", capsys=capsys, infer_models="llama,mistral")


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"INFER_TRAIN_SHARDS": "3", "INFER_TRAIN_SHARD_ID": "3"}, ["INFER_TRAIN_SHARD_ID=3", "0 … 2"]),
        ({"INFER_TRAIN_SHARD_ID": "1"}, ["INFER_TRAIN_SHARD_ID=1", "INFER_TRAIN_SHARDS=1"]),
        ({"INFER_TRAIN_SHARDS": "3"}, ["INFER_TRAIN_SHARDS needs INFER_TRAIN_SHARD_ID"]),
        ({"INFER_MODLES": "llama"}, ["INFER_MODLES", "did you mean INFER_MODELS?"]),
        ({"INFER_BATCH_TOKENS": "many"}, ["INFER_BATCH_TOKENS"]),
        ({"INFER_QUANT": "int3"}, ["INFER_QUANT"]),
        ({"INFER_FOLDS": "0,x"}, ["INFER_FOLDS"]),
    ],
)
def test_bad_variables_are_refused(
    variables: dict[str, str],
    parts: list[str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = results(root)
    assert run_command(lambda: infer(root)) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message
    assert results(root) == before


def test_without_teachers_it_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "model_save").glob("*_lora"):
        shutil.rmtree(path)
    refused(root, 3, "no teachers there", "run step 3", capsys=capsys)


def test_the_script_ends_with_the_exit_code_and_one_line(root: Path) -> None:
    shutil.rmtree(adapter(root, "llama", 1))
    process = start_infer(root)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert output.startswith("error: ") and output.count("\n") == 1


def test_states_that_do_not_fit_16_bits_are_refused_at_the_first_batch(
    teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the last one, when hours of scoring go with them."""
    root = copy_of(teachers, tmp_path / "root", logits=False)
    shutil.rmtree(root / "model_save")
    base = Path(shutil.copytree(teachers / "bases" / "llama", tmp_path / "base"))
    set_weights(base / "model.safetensors", "model.norm.weight", lambda weights: weights.__imul__(1e6))
    set_weights(base / "model.safetensors", "lm_head", lambda weights: weights.__imul__(1e-6))
    train(root, llama_ft_base=base, llama_name="large", skip_qwen=True, teacher_folds="0")
    capsys.readouterr()
    options = {"infer_save_lasttok": True, "infer_folds": "0", "infer_batch_tokens": 512}
    assert run_command(lambda: infer(root, **options)) == 3
    assert "do not fit 16 bits -> set INFER_SAVE_LASTTOK=0" in capsys.readouterr().err
    (part,) = logits_dir(root).glob(".*.partial-*/shard_*.npy")
    assert np.isfinite(np.load(part)[:, 0]).sum() <= 512 // 16, "more than one batch was scored"


# What belongs to others, and what would be found out too late


@pytest.mark.parametrize("victim", ["train.csv", "votes.parquet", "truth.parquet"])
def test_a_table_is_never_written_over_something_else(
    victim: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / victim
    if not file.exists():
        file.write_bytes(b"precious")
    before = file.read_bytes()
    run_command(lambda: infer(root, infer_oof_table=file))
    assert file.read_bytes() == before


def test_the_baselines_learn_from_what_the_teachers_learned_from_whatever_is_set_now(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for number, extra in enumerate((None, tmp_path / "nowhere.csv")):
        root = copy_of(scored, tmp_path / f"root{number}", logits=True)
        table_path(root).unlink()
        capsys.readouterr()
        infer(root, infer_baselines=True, **({"extra_data": extra} if extra else {}))
        tables.append(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("constant prior")))
    assert tables[0] == tables[1]


def test_a_missing_truth_file_is_refused_before_anything_is_scored(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    nowhere = tmp_path / "nowhere.parquet"
    assert run_command(lambda: infer(root, truth_parquet=nowhere)) == 3
    out, message = capsys.readouterr()
    assert str(nowhere) in message
    assert "scoring" not in out


# A table is made of what belongs together


def test_logits_changed_since_they_were_written_do_not_get_into_the_table(
    root: Path, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = logits_dir(root) / "llama_fold_1" / "rows.parquet"
    size, rows = file.stat().st_size, pq.read_table(file)
    values = rows["logit_tie"].to_numpy()
    place = rows.column_names.index("logit_tie")
    pq.write_table(rows.set_column(place, "logit_tie", pa.array(values[::-1].copy())), file)
    assert file.stat().st_size == size, "as a bad disk would leave it"
    table_path(root).unlink()
    code = run_command(lambda: infer(root))
    made = results(root).get("oof_probs.parquet")
    assert code == 3 or made == results(scored)["oof_probs.parquet"], "refused, or scored again"


def test_the_table_is_not_made_of_the_logits_of_a_teacher_that_has_been_trained_again(
    root: Path, teachers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fold 1's teacher is another now; scoring fold 0 alone must not put fold 1's old logits into a new table."""
    bases = {"llama_ft_base": teachers / "bases" / "llama", "llama_name": "llama", "skip_qwen": True}
    train(root, **bases, teacher_folds="1", teacher_lr=QUICK_TEACHER["teacher_lr"] / 2)
    capsys.readouterr()
    infer(root, infer_folds="0", infer_force_regen=True)
    out = capsys.readouterr().out
    assert "waits for llama_fold_1" in out


def test_one_family_scored_alone_does_not_take_the_others_out_of_the_table(root: Path) -> None:
    before = results(root)["oof_probs.parquet"]
    infer(root, infer_models="llama")
    infer(root, infer_models="qwen2")
    assert results(root)["oof_probs.parquet"] == before


def test_a_family_named_twice_is_scored_once(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_models="llama, llama", infer_folds="0")
    assert capsys.readouterr().out.count(": scoring fold 0") == 1


def test_a_family_named_ensemble_is_not_replaced_by_the_ensemble(
    root: Path, teachers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name is taken: refuse it in step 3 or step 4, but do not drop its column silently."""
    for fold in range(3):
        path = adapter(root, "ensemble", fold)
        shutil.copytree(adapter(root, "llama", fold), path)
        manifest = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps(manifest | {"family": "ensemble"}))
    assert run_command(lambda: infer(root)) != 0


def test_help_names_every_setting_and_imports_nothing_heavy() -> None:
    script = "import sys; sys.argv = ['x', '--help']; sys.path.insert(0, 'scripts')\nimport infer_teachers\n"
    script += "try: infer_teachers.main()\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    for name in OofSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_flags_of_other_stages_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(root, 2, "unknown flag --teacher-folds", capsys=capsys, teacher_folds="0")


def test_teachers_of_other_votes_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same texts, so the folds still fit; but these are not the votes that the labels are scored against."""
    lines = (root / "train.csv").read_text(encoding="utf-8").splitlines()
    swapped = [line.replace(",1,0,0", ",0,1,0") if line.endswith(",1,0,0") else line for line in lines]
    assert swapped != lines
    (root / "train.csv").write_text("\n".join(swapped) + "\n", encoding="utf-8")
    refused(root, 3, "was trained on other votes", capsys=capsys)


def test_one_fold_scored_otherwise_makes_the_table_wait(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=True)
    before = table_path(root).read_bytes()
    infer(root, infer_models="llama", infer_folds=0, infer_swap=False)
    assert "waits for llama_fold_1, llama_fold_2" in capsys.readouterr().out
    assert table_path(root).read_bytes() == before


def test_a_truth_file_of_other_rows_beside_the_data_is_noted_and_left_out(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=True)
    columns = {name: [1 / 3] for name in ("p_model_a", "p_model_b", "p_tie")}
    pq.write_table(pa.table({"id": ["stranger"], **columns}), root / "truth.parquet")
    table_path(root).unlink()
    infer(root)
    assert "no Bayes line" in capsys.readouterr().out

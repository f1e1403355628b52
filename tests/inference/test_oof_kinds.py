"""Step 4 with teachers of other kinds: merged copies, classification heads, full fine-tunes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.inference.oof_table import read_oof_table
from arena_distill.runtime.errors import InputError
from tests.inference.oof_runs import (
    LOGITS,
    N_FOLDS,
    PROBABILITIES,
    QUICK_TEACHER,
    adapter,
    copy_of,
    family_columns,
    folds_of,
    infer,
    logits_dir,
    rows_of,
    table_path,
    train,
)

LIMIT = 64


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, teachers: Path) -> Path:
    """The Llama teachers, as adapters and as merged copies; not to be changed."""
    root = copy_of(teachers, tmp_path_factory.mktemp("merged") / "root", logits=False)
    train(root, **_llama(teachers), teacher_merge=1)
    return root


def _llama(teachers: Path) -> dict[str, Any]:
    return {"llama_ft_base": teachers / "bases" / "llama", "llama_name": "llama", "skip_qwen": True}


def test_merged_teachers_make_the_table_of_their_adapters(
    merged: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, plain = (copy_of(merged, tmp_path / name, logits=False) for name in ("copy", "plain"))
    infer(copy, infer_models="llama")
    printed = capsys.readouterr().out
    for fold in range(N_FOLDS):
        assert f"scoring fold {fold} with {copy / 'model_save' / f'llama_fold_{fold}'}\n" in printed
    infer(plain, infer_models="llama", infer_prefer_lora=True)
    printed = capsys.readouterr().out
    for fold in range(N_FOLDS):
        assert f"scoring fold {fold} with {adapter(plain, 'llama', fold)}\n" in printed
    of_copy, of_adapter = (family_columns(table_path(root), "llama", PROBABILITIES) for root in (copy, plain))
    np.testing.assert_allclose(of_copy, of_adapter, atol=1e-5)
    np.testing.assert_array_equal(of_adapter, family_columns(table_path(scored), "llama", PROBABILITIES))
    read_oof_table(table_path(copy), rows_of(copy), folds_of(copy))


def test_a_merged_copy_of_an_earlier_adapter_is_refused(merged: Path, teachers: Path, tmp_path: Path) -> None:
    root = copy_of(merged, tmp_path / "root", logits=False)
    train(root, **_llama(teachers), teacher_folds="1", teacher_lr=QUICK_TEACHER["teacher_lr"] / 2)
    stale = root / "model_save" / "llama_fold_1"
    with pytest.raises(InputError, match=f"{stale}: is a merged copy of an earlier llama_fold_1_lora"):
        infer(root, infer_models="llama")
    assert not list(logits_dir(root).glob("*")), "refused before anything was scored"
    infer(root, infer_models="llama", infer_prefer_lora=True)
    read_oof_table(table_path(root), rows_of(root), folds_of(root))


def test_a_merged_copy_alone_is_enough_but_not_under_the_name_of_another_fold(merged: Path, tmp_path: Path) -> None:
    root = copy_of(merged, tmp_path / "root", logits=False)
    for fold in range(N_FOLDS):
        shutil.rmtree(adapter(root, "llama", fold))
    infer(root, infer_models="llama")
    read_oof_table(table_path(root), rows_of(root), folds_of(root))
    one, two = (root / "model_save" / f"llama_fold_{fold}" for fold in (0, 1))
    shutil.rmtree(two)
    one.rename(two)
    with pytest.raises(InputError, match="its manifest says fold 0"):
        infer(root, infer_models="llama", infer_folds="1")


@pytest.mark.parametrize(
    ("family", "lora_r"), [("bert", 4), ("bert", 0), ("llama", 4)], ids=["BERT LoRA", "BERT in full", "Llama LoRA"]
)
def test_classification_heads_say_what_plain_transformers_says(
    family: str, lora_r: int, teachers: Path, backbones: Path, tmp_path: Path
) -> None:
    root = copy_of(teachers, tmp_path / "root", logits=False)
    shutil.rmtree(root / "model_save")
    options: dict[str, Any] = {"teacher_head": "seq_cls", "teacher_lora_r": lora_r, "teacher_lr": 1e-2}
    train(root, llama_ft_base=backbones / family, llama_name="cls", skip_qwen=True, **options)
    infer(root, infer_save_lasttok=family == "bert")
    read_oof_table(table_path(root), rows_of(root), folds_of(root))
    logits = family_columns(table_path(root), "cls", LOGITS)
    for fold in range(N_FOLDS):
        own = folds_of(root).fold == fold
        directory = adapter(root, "cls", fold) if lora_r else root / "model_save" / f"cls_fold_{fold}"
        given = _plain_logits(backbones / family, directory, root)
        np.testing.assert_allclose(logits[own], given[own], atol=1e-4)
    assert logits.std(axis=0).min() > 1e-3, "the rows must differ at all"


def _plain_logits(base: Path, directory: Path, root: Path) -> np.ndarray:
    """Both orders' mean logits of every base row, one at a time, ``[N, 3]``; with nothing of ours but the sequences."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if (directory / "adapter_config.json").is_file():
        options = {"num_labels": 3, "ignore_mismatched_sizes": True, "dtype": torch.float32}
        model = AutoModelForSequenceClassification.from_pretrained(base, **options)
        model = PeftModel.from_pretrained(model, str(directory))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    views = [View(LIMIT, swap) for swap in (False, True)]
    sequences, number = assemble(tokenize_rows(rows_of(root), tokenizer), TextFormat.load(directory), views)
    outputs = []
    with torch.inference_mode():
        for k in range(len(sequences)):
            inputs = {"input_ids": torch.tensor(sequences.ids[k], dtype=torch.int64)[None]}
            if sequences.segment_ids is not None:
                inputs["token_type_ids"] = torch.tensor(sequences.segment_ids[k], dtype=torch.int64)[None]
            outputs.append(model(**inputs).logits[0].numpy())
    as_given, swapped = np.array(outputs)[number]
    return (as_given + np.column_stack([swapped[:, 1], swapped[:, 0], swapped[:, 2]])) / 2

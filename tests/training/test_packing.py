"""Packed next-token data: every preferred answer once, whole and in order, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import texts_of
from arena_distill.data.records import Rows
from arena_distill.models.classifier import load_tokenizer
from arena_distill.runtime.errors import InputError
from arena_distill.training.packing import PackedTokens, collate_packed, pack_preferred
from tests.conftest import SAMPLE


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load_labelled(SAMPLE / "ultrafeedback.csv").rows.slice(0, 60)


def _expected_stream(rows: Rows, tokenizer: Any) -> list[int]:
    """Text by text: start token if there is one, prompt, preferred answer, end token."""
    stream: list[int] = []
    prompts, first, second = (column.to_pylist() for column in texts_of(rows))
    for prompt, a, b, label in zip(prompts, first, second, rows["label"].to_pylist(), strict=True):
        if label == 2:
            continue
        stream += [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        for text in ("Prompt:\n", prompt, "\n\nResponse:\n", a if label == 0 else b):
            stream += tokenizer(text, add_special_tokens=False)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    return stream


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("length", [16, 100, 256])
def test_blocks_are_prompt_and_preferred_answer_of_each_row_in_order_but_for_the_tail(
    family: str, length: int, rows: Rows, backbones: Path
) -> None:
    tokenizer = load_tokenizer(str(backbones / family))
    expected = _expected_stream(rows, tokenizer)
    blocks = pack_preferred(rows, tokenizer, length)
    assert blocks.dtype == np.int64 and blocks.shape == (len(expected) // length, length)
    assert blocks.ravel().tolist() == expected[: len(expected) // length * length]
    assert len(expected) - blocks.size < length


def test_ties_are_left_out_and_each_other_row_is_one_document(rows: Rows, backbones: Path) -> None:
    tied = load_labelled(SAMPLE / "train.csv").rows.slice(0, 80)
    votes = np.array(tied["label"].to_pylist())
    assert 0 < (votes == 2).sum() < 80
    tokenizer = load_tokenizer(str(backbones / "llama"))
    stream = pack_preferred(tied, tokenizer, 1).ravel()  # blocks of one token have no tail
    assert (stream == tokenizer.eos_token_id).sum() == (votes < 2).sum()
    assert stream.tolist() == _expected_stream(tied, tokenizer)


def test_less_than_a_block_is_one_short_block(rows: Rows, backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "llama"))
    few = rows.slice(rows["label"].to_pylist().index(0), 1)
    assert pack_preferred(few, tokenizer, 100_000).tolist() == [_expected_stream(few, tokenizer)]


def test_ties_alone_are_refused(backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "llama"))
    with pytest.raises(InputError, match="POSTPRE_OBJECTIVE=preference"):
        pack_preferred(load_labelled(SAMPLE / "ultrafeedback_ties.csv").rows, tokenizer, 64)


def test_a_tokenizer_without_an_end_is_refused(rows: Rows, backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "bert"))
    assert tokenizer.eos_token_id is None
    with pytest.raises(InputError, match="end-of-text"):
        pack_preferred(rows, tokenizer, 64)


def test_a_batch_predicts_every_token_from_those_before_it(rows: Rows, backbones: Path) -> None:
    """The loss of the model on a batch is the mean over all next tokens of all blocks."""
    from transformers import AutoModelForCausalLM

    blocks = PackedTokens(pack_preferred(rows, load_tokenizer(str(backbones / "llama")), 32))
    batch = collate_packed([blocks[n] for n in range(4)])
    model: Any = AutoModelForCausalLM.from_pretrained(backbones / "llama").eval()
    with torch.inference_mode():
        out = model(**batch)
        expected = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].reshape(-1, out.logits.shape[-1]), batch["input_ids"][:, 1:].reshape(-1)
        )
    torch.testing.assert_close(out.loss, expected)

"""A label-token judge says what the causal LM itself says, the soft cap of Gemma-2's logits included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.models.label_tokens import LabelTokens, load_label_token_classifier

LIMIT = 64


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory, backbones: Path) -> Path:
    """A Gemma-2 whose logits before the soft cap are several times the cap."""
    directory = tmp_path_factory.mktemp("capped") / "gemma2"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(backbones / "gemma2", dtype=torch.float32)
    assert model.config.final_logit_softcapping == 30 and model.config.tie_word_embeddings
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        head = model.get_input_embeddings().weight.mul_(120)  # tied
        a, b, tie = AutoTokenizer.from_pretrained(backbones / "gemma2").convert_tokens_to_ids(["A", "B", "C"])
        for token in (a, tie):  # close to B's, so that no verdict is certain
            head[token] = head[b] + 0.05 * (head[token] - head[b])
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(backbones / "gemma2").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def rows(small_train_csv: Path) -> Rows:
    return load_labelled(small_train_csv).rows.slice(0, 40)


def _judge(directory: Path) -> ClassifierJudge:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    labels = LabelTokens.of_tokenizer(tokenizer, ("A", "B", "C"))
    model = load_label_token_classifier(str(directory), tokenizer, labels, dtype=torch.float32)
    layout = TextFormat.for_label_tokens(tokenizer, labels.words)
    return ClassifierJudge(model, tokenizer, layout, max_length=LIMIT, max_batch_tokens=1024)


def _plain(directory: Path, rows: Rows, layout: TextFormat) -> np.ndarray:
    """Raw logits of A, B and C after each row, ``[N, 3]``, from the whole vocabulary, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    labels = [tokenizer.convert_tokens_to_ids(word) for word in "ABC"]
    sequences, number = assemble(tokenize_rows(rows, tokenizer), layout, [View(LIMIT)])
    with torch.inference_mode():
        outputs = [
            model(input_ids=torch.tensor(sequences.ids[k], dtype=torch.int64)[None]).logits[0, -1] for k in number[0]
        ]
    return torch.stack(outputs)[:, labels].numpy()


def test_gemma2_logits_are_capped_as_the_causal_lm_caps_them(gemma2: Path, rows: Rows) -> None:
    judge = _judge(gemma2)
    given, plain = judge.logits(rows), _plain(gemma2, rows, judge.layout)
    np.testing.assert_allclose(softmax(given), softmax(plain), atol=1e-5)
    np.testing.assert_allclose(given, plain, atol=1e-3)
    assert 15 < np.abs(plain).max() <= 30, "the cap must matter and not hide everything"


def test_without_its_soft_cap_gemma2_would_say_something_else(gemma2: Path, rows: Rows) -> None:
    judge = _judge(gemma2)
    capped = softmax(judge.logits(rows))
    judge.model.score.softcap = None
    uncapped = judge.logits(rows)
    assert np.abs(uncapped).max() > 40
    assert np.abs(capped - softmax(uncapped)).max() > 0.1

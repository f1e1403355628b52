"""The label-token head says what the whole causal LM says at its last position, and computes nothing more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    PhiConfig,
    PhiForCausalLM,
)

from arena_distill.models.adapters import add_lora
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.label_tokens import LABEL_TOKENS_FILE, LabelTokens, load_label_token_classifier
from arena_distill.runtime.errors import InputError

WORDS = ("A", "B", "C")
MANY_SHARDS = "20KB"


def _scaled(base: Path, directory: Path, tied: bool, shard: str = "5GB") -> Path:
    """A model like ``base`` with an output head large enough that its three logits differ, tied to the embeddings."""
    config = AutoConfig.from_pretrained(base, tie_word_embeddings=tied)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) == tied
    with torch.no_grad():  # Gemma-2 caps its logits at 30: many are to be beyond
        head.normal_(std=4.0 if config.model_type == "gemma2" else 0.3)
    model.save_pretrained(directory, max_shard_size=shard)
    load_tokenizer(str(base)).save_pretrained(directory)
    return directory


def _batch(pad: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Four sequences of unequal length, padded on the right."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([3, 17, 40, 8])
    mask = torch.arange(40) < lengths[:, None]
    ids = torch.randint(0, vocabulary, (4, 40), generator=generator)
    ids = torch.where(ids == pad, (pad + 5) % vocabulary, ids)
    return {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}


def _whole_vocabulary(directory: Path, batch: dict[str, torch.Tensor], labels: LabelTokens) -> torch.Tensor:
    """Probabilities of the label words after each sequence, run alone and unpadded, renormalised."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        with torch.inference_mode():
            logits = model(input_ids=ids[: mask.sum()][None]).logits[0, -1]
        three = logits.double().softmax(dim=-1)[list(labels.ids)]
        rows.append(three / three.sum())
    return torch.stack(rows).float()


def _loaded(directory: Path, words: tuple[str, ...] = WORDS, **options: Any) -> tuple[Any, Any, LabelTokens]:
    tokenizer = load_tokenizer(str(directory))
    labels = LabelTokens.of_tokenizer(tokenizer, words)
    return load_label_token_classifier(str(directory), tokenizer, labels, **options).eval(), tokenizer, labels


@pytest.mark.parametrize("shard", ["5GB", MANY_SHARDS])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("qwen2", True), ("gemma2", True)]
)
def test_probabilities_are_those_of_the_whole_vocabulary_at_the_last_position(
    family: str, tied: bool, shard: str, backbones: Path, tmp_path: Path
) -> None:
    directory = _scaled(backbones / family, tmp_path / "lm", tied, shard)
    assert (len(list(directory.glob("*.safetensors"))) > 1) == (shard == MANY_SHARDS)
    model, tokenizer, labels = _loaded(directory, dtype=torch.float32)
    batch = _batch(tokenizer.pad_token_id, len(tokenizer))
    with torch.inference_mode():
        found = model(**batch).logits.softmax(dim=-1)
    expected = _whole_vocabulary(directory, batch, labels)
    assert expected.std(dim=0).min() > 0.01, "all rows alike: the test would prove nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if family == "gemma2":
        model.score.softcap = None
        with torch.inference_mode():
            uncapped = model(**batch).logits.softmax(dim=-1)
        assert (uncapped - expected).abs().max() > 1e-2, "the cap did not matter"


def test_a_head_that_differs_from_the_embeddings_counts_though_the_config_says_tied(
    backbones: Path, tmp_path: Path
) -> None:
    """As transformers does: it ties the two only if the checkpoint does not hold both with different values."""
    directory = _scaled(backbones / "llama", tmp_path / "lm", tied=False)
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))
    model, tokenizer, labels = _loaded(directory, dtype=torch.float32)
    batch = _batch(tokenizer.pad_token_id, len(tokenizer))
    with torch.inference_mode():
        found = model(**batch).logits.softmax(dim=-1)
    torch.testing.assert_close(found, _whole_vocabulary(directory, batch, labels), rtol=0, atol=1e-5)


def test_a_head_with_a_bias_is_taken_with_it(backbones: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "llama"))
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 1}
    phi = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size, **special))
    with torch.no_grad():
        phi.lm_head.bias.normal_(std=2.0)
    phi.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    model, _, labels = _loaded(tmp_path / "phi", dtype=torch.float32)
    batch = _batch(tokenizer.pad_token_id, len(tokenizer))
    with torch.inference_mode():
        found = model(**batch).logits.softmax(dim=-1)
    torch.testing.assert_close(found, _whole_vocabulary(tmp_path / "phi", batch, labels), rtol=0, atol=1e-5)


class _VocabularySized(TorchDispatchMode):
    """Shapes of all tensors of three or more dimensions that any operation made, the last as long as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.found, self.operations = vocabulary, set[tuple[int, ...]](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 3 and tensor.shape[-1] == self.vocabulary:
                self.found.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_no_tensor_of_batch_by_length_by_vocabulary_is_made_forward_or_backward(family: str, backbones: Path) -> None:
    base = backbones / family
    model, tokenizer, _ = _loaded(base, dtype=torch.float32)
    model = add_lora(model, base=str(base), r=2, alpha=4, dropout=0.0, train_head=False)
    batch = _batch(tokenizer.pad_token_id, len(tokenizer))
    with _VocabularySized(len(tokenizer)) as ours:
        model(**batch).logits.sum().backward()
    assert ours.operations > 50 and any(p.grad is not None for p in model.parameters())
    assert ours.found == set()
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    with _VocabularySized(len(tokenizer)) as theirs:
        plain(**batch)
    assert (4, 40, len(tokenizer)) in theirs.found, "the recorder sees nothing"


def test_the_head_is_frozen_and_keeps_the_type_of_the_weights(backbones: Path) -> None:
    model, _, _ = _loaded(backbones / "qwen2", dtype=torch.bfloat16)
    assert model.score.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.score.parameters())


def test_logits_of_a_bf16_model_have_more_than_eight_bits(backbones: Path, tmp_path: Path) -> None:
    """Real models' label logits are near 20, where bfloat16 knows steps of 0.125 only; three rows cost nothing."""
    directory = _scaled(backbones / "llama", tmp_path / "lm", tied=False)
    model, tokenizer, _ = _loaded(directory, dtype=torch.bfloat16)
    with torch.no_grad():
        model.score.weight.mul_(8)
    states: list[torch.Tensor] = []
    model.score.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    batch = _batch(tokenizer.pad_token_id, len(tokenizer))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).logits
    last = batch["attention_mask"].sum(dim=1) - 1
    hidden = states[0][torch.arange(4), last] if states[0].ndim == 3 else states[0]
    exact = hidden.double() @ model.score.weight.double().T
    assert exact.abs().max() > 10
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)


# Words


@pytest.mark.parametrize(("words", "culprit"), [(("Answer one", "B", "C"), "Answer one"), (("A", "B", "tie!?"), "tie")])
def test_a_word_of_several_tokens_is_refused_by_name(words: tuple[str, ...], culprit: str, backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "llama"))
    with pytest.raises(InputError, match=f"'{culprit}.*tokens.*LABEL_WORDS"):
        LabelTokens.of_tokenizer(tokenizer, words)


def test_an_unknown_word_is_refused_by_name(backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "bert"))
    with pytest.raises(InputError, match=r"'☃' for tie.*unknown.*LABEL_WORDS"):
        LabelTokens.of_tokenizer(tokenizer, ("A", "B", "☃"))


def test_words_that_share_a_token_are_refused_by_name_and_setting(backbones: Path) -> None:
    tokenizer = load_tokenizer(str(backbones / "bert"))  # reads everything in lower case
    with pytest.raises(InputError, match=r"A, a, b share a token.*LABEL_WORDS"):
        LabelTokens.of_tokenizer(tokenizer, ("A", "a", "b"))


def test_label_tokens_come_back_from_disk(backbones: Path, tmp_path: Path) -> None:
    labels = LabelTokens.of_tokenizer(load_tokenizer(str(backbones / "llama")), WORDS)
    labels.save(tmp_path)
    assert LabelTokens.load(tmp_path) == labels
    assert len(set(labels.ids)) == 3


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2}', '{"schema_version": 1, "words": ["A"], "ids": 3}'])
def test_a_broken_label_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / LABEL_TOKENS_FILE).write_text(text)
    with pytest.raises(InputError, match=LABEL_TOKENS_FILE):
        LabelTokens.load(tmp_path)


# Models that cannot be label teachers


@pytest.fixture
def labels_of(backbones: Path) -> Iterator[Any]:
    def find(family: str) -> tuple[Any, LabelTokens]:
        tokenizer = load_tokenizer(str(backbones / family))
        return tokenizer, LabelTokens.of_tokenizer(tokenizer, WORDS)

    yield find


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2"])
def test_an_encoder_is_refused_and_the_way_out_is_named(family: str, backbones: Path, labels_of: Any) -> None:
    with pytest.raises(InputError, match="TEACHER_HEAD=seq_cls"):
        load_label_token_classifier(str(backbones / family), *labels_of(family))


def test_an_encoder_as_it_is_published_is_refused_and_the_way_out_is_named(
    backbones: Path, labels_of: Any, tmp_path: Path
) -> None:
    """Published encoders are masked LMs, which lack any classification head."""
    BertForMaskedLM.from_pretrained(backbones / "bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="TEACHER_HEAD=seq_cls"):
        load_label_token_classifier(str(tmp_path), *labels_of("bert"))


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_an_untied_decoder_without_its_output_head_is_refused(
    auto: Any, backbones: Path, labels_of: Any, tmp_path: Path
) -> None:
    """Its embeddings are not its output head: verdicts read off them would mean nothing."""
    options = {} if auto is AutoModel else {"num_labels": 3}
    auto.from_pretrained(backbones / "llama", **options).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    with pytest.raises(InputError, match="output head"):
        load_label_token_classifier(str(tmp_path), *labels_of("llama"))


def test_weights_that_are_not_safetensors_are_refused(backbones: Path, labels_of: Any, tmp_path: Path) -> None:
    base = shutil.copytree(backbones / "llama", tmp_path / "old")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        load_label_token_classifier(str(base), *labels_of("llama"))

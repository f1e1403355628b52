"""Small random checkpoints of real architectures, so that every stage runs whole without a model hub.

The classes, the file formats and the tokenizers' behaviour are those of the big models; only the sizes differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENCODER_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


NO_DROPOUT = 0.0  # of attention, as in decoders: on a CPU, drawing its random numbers takes half of the training time


@dataclass(frozen=True)
class TinySize:
    """Dimensions shared by all families."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 4000
    positions: int = 2048


DECODERS = ("llama", "qwen2", "gemma2")


def families() -> tuple[str, ...]:
    """Names accepted by ``make_tiny_model``."""
    return tuple(_BUILDERS)


def make_tiny_model(family: str, texts: Iterable[str], directory: Path, size: TinySize, seed: int) -> int:
    """Write a random checkpoint of ``family`` with a tokenizer trained on ``texts``.

    Args:
        family: one of ``families()``.
        texts: what the tokenizer learns its vocabulary from.
        directory: receives the model and the tokenizer.
        size: dimensions.
        seed: of the weights.

    Equal arguments give equal files.

    Returns:
        Number of parameters.
    """
    import torch

    decoder = family in DECODERS
    tokenizer = _decoder_tokenizer(family, texts, size) if decoder else _encoder_tokenizer(texts, size)
    torch.manual_seed(seed)
    model = _BUILDERS[family](size, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return int(model.num_parameters())


def _encoder_tokenizer(texts: Iterable[str], size: TinySize) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(_wordpiece_vocabulary(list(texts), size), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), ENCODER_SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=size.positions, **names)


def _wordpiece_vocabulary(texts: list[str], size: TinySize) -> dict[str, int]:
    """A WordPiece vocabulary that depends on ``texts`` alone.

    The trainer numbers the continuation characters in the order of a hash map, which differs between runs, and breaks
    ties by those numbers; naming the characters beforehand fixes both.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    characters = sorted(set(normalizer.normalize_str("".join(texts))))
    continuations = [f"##{character}" for character in characters if not character.isspace()]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size.vocabulary,
        special_tokens=[*ENCODER_SPECIALS, *continuations],
        limit_alphabet=max(len(characters), 1),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


_DECODER_SPECIALS = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"},
    "qwen2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "gemma2": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}


def _decoder_tokenizer(family: str, texts: Iterable[str], size: TinySize) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = _DECODER_SPECIALS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=list(dict.fromkeys(specials.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos := specials.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=size.positions, **specials)


def _encoder_options(size: TinySize, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": size.positions,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 3,
    }


def _bert(size: TinySize, tokenizer: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        attention_probs_dropout_prob=NO_DROPOUT,
        type_vocab_size=3,  # prompt, A and B: with random weights a model cannot learn from positions which is which
        **_encoder_options(size, tokenizer),
    )
    return BertForSequenceClassification(config)


def _distilbert(size: TinySize, tokenizer: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        dim=size.hidden,
        n_layers=size.layers,
        n_heads=size.heads,
        hidden_dim=4 * size.hidden,
        attention_dropout=NO_DROPOUT,
        **_encoder_options(size, tokenizer),
    )
    return DistilBertForSequenceClassification(config)


def _deberta_v2(size: TinySize, tokenizer: Any) -> Any:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        attention_probs_dropout_prob=NO_DROPOUT,
        # As DeBERTa-v3: relative positions in buckets, none added to the input.
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        **_encoder_options(size, tokenizer),
    )
    return DebertaV2ForSequenceClassification(config)


def _decoder_options(size: TinySize, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "intermediate_size": 3 * size.hidden,
        "max_position_embeddings": size.positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llama(size: TinySize, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder_options(size, tokenizer)))


def _qwen2(size: TinySize, tokenizer: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_decoder_options(size, tokenizer)))


def _gemma2(size: TinySize, tokenizer: Any) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        head_dim=size.hidden // size.heads,
        query_pre_attn_scalar=size.hidden // size.heads,
        sliding_window=size.positions // 2,
        **_decoder_options(size, tokenizer),
    )
    return Gemma2ForCausalLM(config)


_BUILDERS: dict[str, Callable[[TinySize, Any], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
    "bert": _bert,
    "distilbert": _distilbert,
    "deberta-v2": _deberta_v2,
}

"""Quantize a tiny student by step 7 and keep what our loader computes with it: write_quantized.py DIR FAMILY BITS."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from arena_distill.data.loading import load_texts
from arena_distill.data.prompts import texts_of
from arena_distill.inference.judge import load_judge
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import TinySize, make_tiny_model
from tests.conftest import SAMPLE
from tests.conversion.quantize_cases import LENGTH, make_student, quantize


def main(directory: Path, family: str, bits: int) -> None:
    quiet_libraries()
    texts = [text for column in texts_of(load_texts(SAMPLE / "train.csv")) for text in column.to_pylist()]
    size = TinySize(hidden=128, layers=2, heads=4, vocabulary=2000, positions=512)
    make_tiny_model(family, texts, directory / "backbone", size, seed=1)
    student = make_student(directory / "backbone", directory / "student")
    bounds = {"quant_max_logloss_increase": 1.0, "quant_min_agreement": 0.5}  # of random weights: mechanics alone count
    quantize(student, directory / "quantized", quant_bits=bits, **bounds)
    judge = load_judge(directory / "quantized", max_length=LENGTH)
    model = judge.model
    ids = torch.randint(5, 1900, (6, 80), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = model.model(input_ids=ids).last_hidden_state
        ours = {
            "ids": ids,
            "causal": hidden @ model.get_input_embeddings().weight.T,
            "verdict": model(input_ids=ids).logits,
        }
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, directory / "ours.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

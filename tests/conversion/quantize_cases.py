"""Students to quantize: very small, of every family, with a head that tells rows apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh

from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.conversion.quantize_stage import quantize_student
from arena_distill.data.loading import load_labelled, load_test
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.inference.last_token import record_last_token
from arena_distill.models.classifier import load_classifier, load_tokenizer, token_types
from arena_distill.models.head_file import HEAD_SAFETENSORS, head_sha256, read_head
from arena_distill.runtime.artifacts import write_manifest
from tests.conftest import SAMPLE

LENGTH = 96
DECODERS, ENCODERS = ("llama", "qwen2", "gemma2"), ("bert", "distilbert", "deberta-v2")


def make_student(backbone: Path, directory: Path) -> Path:
    """A classifier as a training stage leaves it: all weights drawn, at a size at which rows differ."""
    tokenizer = load_tokenizer(str(backbone))
    torch.manual_seed(3)
    model, _ = load_classifier(str(backbone), tokenizer, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 * parameter.shape[-1] ** -0.5)
    layout = TextFormat.for_tokenizer(tokenizer, token_types(model))
    _balance_head(ClassifierJudge(model, tokenizer, layout, max_length=LENGTH, max_batch_tokens=4096))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    layout.save(directory)
    write_calibration(directory, {"temperature": 1.5}, [])
    head = head_sha256(read_head(directory))
    details = {"max_length": LENGTH, "n_folds": 5, "teachers": {"a": 1.0}, "head_sha256": head}
    write_manifest(directory, stage="step6_lora_ensemble", settings={}, inputs={}, started=0, details=details)
    return directory


def _balance_head(judge: ClassifierJudge) -> None:
    """Let the head read what tells rows apart and yet survives small changes of the weights, as a trained one does."""
    head = judge.model.score if hasattr(judge.model, "score") else judge.model.classifier
    assert isinstance(head, torch.nn.Linear)
    states = _head_inputs(judge, head.in_features)
    weights = {name: parameter.clone() for name, parameter in judge.model.named_parameters()}
    with torch.no_grad():
        for parameter in judge.model.parameters():
            parameter *= 1 + 0.02 * torch.randn_like(parameter)
        noise = _head_inputs(judge, head.in_features) - states
        for name, parameter in judge.model.named_parameters():
            parameter.copy_(weights[name])
    mean = states.mean(axis=0)
    across = np.linalg.svd(mean[None])[2][1:]  # directions in which the mean, and so no class, has a say
    apart, noise = states @ across.T, noise @ across.T
    _, directions = eigh(apart.T @ apart, noise.T @ noise + 1e-3 * (noise**2).sum() * np.eye(len(across)))
    read = directions[:, ::-1][:, :2].T
    first, second = 2 * (read / (apart @ read.T).std(axis=0)[:, None]) @ across
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.stack([first, -first, second / 4])))  # A against B, now and then a tie
        if head.bias is not None:
            head.bias.zero_()


def _head_inputs(judge: ClassifierJudge, size: int) -> np.ndarray:
    sequences, _ = assemble(tokenize_rows(test_rows(), judge.tokenizer), judge.layout, [View(LENGTH)])
    states = np.zeros((len(sequences), size), np.float32)
    batches = [np.arange(start, min(start + 20, len(states))) for start in range(0, len(states), 20)]
    with record_last_token(judge.model, states) as recorder:
        judge.score_batches(sequences, batches, np.zeros((len(states), 3), np.float32), recorder.begin)
    return states.astype(np.float64)


def sample_part(name: str, rows: int, into: Path) -> Path:
    """The first rows of a sample file."""
    with (SAMPLE / name).open(newline="", encoding="utf-8") as source, into.open("w", newline="") as out:
        writer = csv.writer(out)
        for number, row in enumerate(csv.reader(source)):
            if number <= rows:
                writer.writerow(row)
    return into


def quantize(model: Path, out: Path, **settings: object) -> None:
    """Step 7 with small defaults."""
    quantize_student(settings_of(model, out, **settings))


def settings_of(model: Path, out: Path, **settings: object) -> QuantizeSettings:
    """Settings of step 7: the sample's files, few calibration texts."""
    given = {
        "model_dir": str(model),
        "out_dir": str(out),
        "calib_csv": str(SAMPLE / "train.csv"),
        "test_csv": str(SAMPLE / "test.csv"),
        "quant_max_calib_samples": 32,
        "quant_eval_rows": 200,
        "quant_device": "cpu",
    }
    return QuantizeSettings(**given | settings)  # type: ignore[arg-type]


def unseen_rows() -> Rows:
    """Rows that step 7 compares on no model: neither its calibration texts nor its evaluation rows decide on them."""
    return load_labelled(SAMPLE / "train.csv").rows.slice(1000, 500)


def test_rows() -> Rows:
    """The sample's test rows."""
    return load_test(SAMPLE / "test.csv").rows


test_rows.__test__ = False  # type: ignore[attr-defined]


def put_noise_head(directory: Path) -> None:
    """Replace the exported head by one of the same shapes that was never trained."""
    from safetensors.torch import load_file, save_file

    head = load_file(directory / HEAD_SAFETENSORS)
    rng = np.random.default_rng(0)
    noise = {name: torch.from_numpy(rng.normal(size=tuple(t.shape))).to(t.dtype) for name, t in head.items()}
    save_file(noise, directory / HEAD_SAFETENSORS, {"format": "pt"})  # of the same size to the byte

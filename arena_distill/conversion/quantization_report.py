"""What quantization cost: size, log loss, divergence and agreement on held-out rows, and the error of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from arena_distill.evaluation.metrics import EPSILON, Scores, score, softmax
from arena_distill.evaluation.scoreboard import format_table
from arena_distill.models.quantized import quantized_weights
from arena_distill.models.safetensors_file import read_checkpoint
from arena_distill.runtime.errors import InputError

REPORT_FILE = "quantization_report.json"


def compare(before: np.ndarray, after: np.ndarray, temperature: float, votes: np.ndarray | None) -> dict[str, Any]:
    """Figures of the model before and after, both calibrated by the same temperature.

    Probabilities are means over the views of calibrated ones, as predictions are made.

    Args:
        before: raw logits of every view, ``[V, N, 3]``, in class order.
        after: those of the quantized model for the same views and rows.
        temperature: of the model before.
        votes: ``[N, 3]``, or None.

    Returns:
        ``rows``, ``temperature``, ``kl`` (mean KL divergence of after from before, nats), ``agreement``,
        ``largest_probability_gap``, ``log_loss`` and ``scores`` (both None without votes).
    """
    p, q = (softmax(logits, temperature).mean(axis=0) for logits in (before, after))
    figures: dict[str, Any] = {
        "rows": len(p),
        "temperature": temperature,
        "log_loss": None,
        "kl": float((p * (np.log(np.maximum(p, EPSILON)) - np.log(np.maximum(q, EPSILON)))).sum(axis=1).mean()),
        "agreement": float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        "largest_probability_gap": float(np.abs(p - q).max()),
        "scores": None,
    }
    if votes is not None:
        scores = {"before": score(p, votes), "after": score(q, votes)}
        losses = {name: value.log_loss for name, value in scores.items()}
        figures["log_loss"] = losses | {"increase": losses["after"] - losses["before"]}
        figures["scores"] = {name: value.as_dict() for name, value in scores.items()}
    return figures


def weight_bytes(directory: Path) -> int:
    """Bytes of a model's weights files."""
    return sum((directory / name).stat().st_size for name in read_checkpoint(directory).files)


def layer_errors(quantized: torch.nn.Module, model_dir: Path) -> list[dict[str, Any]]:
    """Relative Frobenius error of every quantized layer's weight against the original.

    Args:
        quantized: a loaded quantized model.
        model_dir: the model that it was made from.

    Raises:
        InputError: the original lacks a layer.
    """
    tensors = read_checkpoint(model_dir).tensors
    errors = []
    for name, weight in quantized_weights(quantized):
        place = tensors.get(f"{name}.weight")
        if place is None:
            raise InputError(f"{model_dir}: holds no weight of the layer {name} -> save it again with save_pretrained")
        with safe_open(place.file, "pt") as file:
            original = file.get_tensor(place.name).float()
        off = (weight.cpu() - original).norm() / original.norm().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append({"module": name, "weight_error": float(off)})
    return errors


def refusal(figures: dict[str, Any], bound: float, least_agreement: float) -> str | None:
    """Why a quantized model with these figures must not be published; None if it may."""
    loss = figures["log_loss"]
    cost, what = (loss["increase"], "log loss rises by") if loss else (figures["kl"], "mean KL divergence is")
    if not cost <= bound:
        return f"{what} {cost:.5f} nats, more than QUANT_MAX_LOGLOSS_INCREASE={bound:g}"
    if not figures["agreement"] >= least_agreement:
        return f"only {figures['agreement']:.1%} of rows keep their verdict, less than QUANT_MIN_AGREEMENT"
    return None


def report_text(report: dict[str, Any], names: Sequence[str]) -> str:
    """The report as a job log shows it.

    Args:
        report: as ``quantization_report.json`` holds it.
        names: of the model before and after.
    """
    size, layers = report["size_bytes"], report["layers"]
    lines = []
    if report["scores"]:
        entries = [
            (name, Scores(**report["scores"][key])) for name, key in zip(names, ("before", "after"), strict=True)
        ]
        lines.append(format_table(entries, title=f"Before and after, on {report['rows_are']}"))
    loss = report["log_loss"]
    if loss:
        lines.append(f"log loss {loss['increase']:+.5f} nats (bound {report['bound']:g})")
    bound = "" if loss else f" (bound {report['bound']:g})"
    lines.append(
        f"KL {report['kl']:.2e} nats{bound}, agreement "
        f"{report['agreement']:.1%}, largest probability gap {report['largest_probability_gap']:.4f} on "
        f"{report['rows']:,} rows, temperature {report['temperature']:.3g}"
    )
    lines.append(
        f"weights {size['before'] / 1e6:,.2f} MB -> {size['after'] / 1e6:,.2f} MB ({size['ratio']:.0%} of before)"
    )
    if layers:
        worst = max(layers, key=lambda layer: float(layer["weight_error"]))
        mean = np.mean([layer["weight_error"] for layer in layers])
        lines.append(
            f"relative weight error of {len(layers)} layers: mean {mean:.4f}, largest {worst['weight_error']:.4f} "
            f"({worst['module']})"
        )
    return "\n".join(lines)

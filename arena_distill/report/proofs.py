"""What proves that a conversion lost nothing: its error against the model before it, and the bound it had to keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from arena_distill.report.chain import quantization_name
from arena_distill.report.document import Proof
from arena_distill.report.figures import Figure, derive
from arena_distill.report.inventory import Inventory, Output
from arena_distill.report.run_files import RunFiles

# As in conversion.average_parity, which needs torch; a test holds the two together.
AVERAGE_BOUND = 1e-5
WEIGHT_BOUND = {"float32": 1e-5, "bfloat16": 1.01 * 2.0**-8, "float16": 2.0**-10}
PROBABILITY_BOUND = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05}

Unit = Literal["relative", "probability", "nats", "share", "head"]


def proofs(found: Inventory, files: RunFiles) -> list[Proof]:
    """The proofs of every conversion that is there, in their order."""
    return [*_teachers(found), *_step_6(found, files), *_step_7(found), *_heads(found)]


def _below(step: str, claim: str, value: Figure | None, unit: Unit, bound: Figure | float | None) -> Iterator[Proof]:
    """A figure that must not be above its bound; nothing where it was not recorded."""
    if value is not None:
        limit = bound.value if isinstance(bound, Figure) else bound
        yield Proof(step, claim, value, unit, bound, None if limit is None else value.value <= limit)


def _teachers(found: Inventory) -> Iterator[Proof]:
    for title, key in (("Merged bases", "step1_post_pretrain"), ("Merged teachers", "family")):
        copies = [one for one in found.merged_copies if one.manifest.get("verified", key) is not None]
        gaps = [one.manifest.number("verified", "parity", "largest_probability_gap") for one in copies]
        known = [gap for gap in gaps if gap is not None]
        if known:
            claim = f"judge{'' if len(known) > 1 else 's'} like base and adapter: largest gap of a probability"
            yield Proof(title, claim, derive("highest", *known), "probability", None, None)


def _step_6(found: Inventory, files: RunFiles) -> Iterator[Proof]:
    if found.merged is None:
        return
    manifest = found.merged.manifest
    method = manifest.get("conversion", "method") or "exact"
    cut_back = bool(manifest.get("conversion", "average_rank"))
    dtype = _dtype(found.merged, files)
    error = manifest.number("conversion", "average_error")
    if method == "exact":
        claim = "the adapter's weight changes are the mean of the folds': largest error"
        yield from _below("Averaged", claim, error, "relative", None if cut_back else AVERAGE_BOUND)
    distance = manifest.number("conversion", "relative_distance")
    yield from _below(
        "Averaged", "how far the mean of the factors is from the exact average", distance, "relative", None
    )
    weight = manifest.number("conversion", "merge_weight_error")
    claim = "every weight is base + adapter: largest error"
    yield from _below("Merged", claim, weight, "relative", WEIGHT_BOUND.get(dtype))
    gap = manifest.number("conversion", "merge_error")
    claim = "judges real rows like base and adapter: largest gap of a probability"
    yield from _below("Merged", claim, gap, "probability", PROBABILITY_BOUND.get(dtype))


def _dtype(merged: Output, files: RunFiles) -> str:
    """Type of the merged weights; empty where it is not said."""
    given = merged.manifest.get("settings", "merged_dtype")
    config = files.json(merged.file("config.json")) if not given else None
    said: Any = given or (config and (config.get("dtype") or config.get("torch_dtype"))) or ""
    return str(said)


def _step_7(found: Inventory) -> Iterator[Proof]:
    report, quantized = found.quantization, found.quantized
    if report is None or quantized is None:
        return
    name, bound = quantization_name(quantized), report.number("bound")
    increase = report.number("log_loss", "increase")
    yield from _below(name, "log loss rises by", increase, "nats", bound)
    claim = "mean KL divergence of its probabilities"
    yield from _below(name, claim, report.number("kl"), "nats", bound if increase is None else None)
    agreement = report.number("agreement")
    if agreement is not None:
        least = quantized.manifest.number("settings", "quant_min_agreement")
        holds = None if least is None else agreement.value >= least.value
        yield Proof(name, "share of rows that keep their verdict", agreement, "share", least, holds)
    gap = report.number("largest_probability_gap")
    yield from _below(name, "largest gap of a probability", gap, "probability", None)


def _heads(found: Inventory) -> Iterator[Proof]:
    outputs = (found.averaged, found.merged, found.quantized, found.submission)
    heads = [head for one in outputs if one is not None and (head := one.manifest.figure("head_sha256")) is not None]
    if len(heads) > 1:
        same = len({head.value for head in heads}) == 1
        claim = f"the three-way head is the same in all {len(heads)} places" if same else "the heads are not the same"
        yield Proof("Head", claim, heads[-1], "head", None, same)

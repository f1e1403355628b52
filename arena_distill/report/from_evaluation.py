"""Sections that are read off ``evaluation.json`` as they stand there."""

from __future__ import annotations

from arena_distill.data.records import CLASSES
from arena_distill.report.document import Bias, Calibration, Classes, Reliability, Slices
from arena_distill.report.run_files import JsonFile

_BIASES = {
    "swap_gap": "how far the probabilities move when the answers trade places (L1, 0 to 2)",
    "flipped_verdicts": "share of rows whose verdict changes then",
    "flipped_winners": "share of rows where the other answer wins then",
    "first_answer_probability": "probability given to the answer shown first",
    "first_position_preference": "probability of the first answer minus that of the second",
}


def calibration(evaluation: JsonFile) -> Calibration | None:
    """Reliability before and after the temperature, or of the submission alone."""
    rows = f"{evaluation.needed_number('rows').value:,} test rows"
    expected = evaluation.number("ece_if_calibrated")
    if evaluation.get("calibration"):
        temperature = evaluation.needed_number("calibration", "temperature")
        names = {"before": "Before: T = 1", "after": f"After: T = {temperature.value:.4f}"}
        parts = tuple(
            Reliability(
                title,
                evaluation.needed("calibration", key, "reliability"),
                {name: evaluation.needed_number("calibration", key, name) for name in ("log_loss", "ece", "brier")},
            )
            for key, title in names.items()
        )
        return Calibration(rows, temperature, parts, expected)
    if evaluation.get("reliability"):
        scores = {name: evaluation.needed_number("scores", name, "value") for name in ("log_loss", "ece", "brier")}
        part = Reliability("The submission", evaluation.needed("reliability"), scores)
        return Calibration(rows, None, (part,), expected)
    return None


def classes(evaluation: JsonFile) -> Classes | None:
    """Confusion and figures of each class.

    Raises:
        InputError: the matrix is not one of counts, three by three.
    """
    confusion = evaluation.figure("confusion")
    if confusion is None:
        return None
    matrix = confusion.value
    whole = isinstance(matrix, list) and len(matrix) == len(CLASSES)
    if not whole or not all(len(row) == len(CLASSES) and all(type(n) is int for n in row) for row in matrix):
        evaluation.refuse("confusion is no matrix of counts")
    return Classes(tuple(CLASSES), confusion, evaluation.needed("per_class"))


def slices(evaluation: JsonFile) -> list[Slices]:
    """Every way in which the rows were divided."""
    return [Slices(name, evaluation.needed("slices", name)) for name in evaluation.get("slices") or {}]


def position_bias(evaluation: JsonFile) -> list[Bias]:
    """What the order of the answers changes; nothing without the logits of both orders."""
    found = []
    for name, title in _BIASES.items():
        interval = evaluation.figure("position_bias", name)
        if interval is not None:
            fair = evaluation.number("position_bias", "unbiased_first_answer_probability")
            unbiased = fair if name == "first_answer_probability" and fair is not None else 0.0
            found.append(Bias(title, interval, unbiased))
    return found

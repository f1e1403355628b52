"""``evaluation.json`` as plain text: every number that is printed stands in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from arena_distill.data.records import CLASSES
from arena_distill.evaluation.comparison import aligned
from arena_distill.evaluation.scoreboard import TRUTH_NAME

_SCORES = {"log_loss": "log loss", "accuracy": "accuracy", "brier": "Brier", "ece": "ECE"}
_BIASES = {
    "swap_gap": "swap gap (L1, 0 to 2)",
    "flipped_verdicts": "rows whose verdict changes when the answers trade places",
    "flipped_winners": "rows where the other answer wins then",
    "first_answer_probability": "probability of the answer shown first",
    "first_position_preference": "first minus second answer (0 without bias)",
}


def format_evaluation(document: Mapping[str, Any]) -> str:
    """The tables, ready to print."""
    blocks = [_scores, _models, _classes, _slices, _position_bias, _calibration, _views]
    texts = ["\n".join(lines) for block in blocks if (lines := list(block(document)))]
    return "\n\n".join([*texts, *(["\n".join(document["notes"])] if document["notes"] else [])])


def _scores(document: Mapping[str, Any]) -> Iterator[str]:
    percent = f"{100 * document['bootstrap']['level']:g} %"
    yield (
        f"Evaluation of {document['submission']} on {PurePath(document['test']).name}: {document['rows']:,} rows, "
        f"{document['prompts']:,} prompts; {percent} intervals from {document['bootstrap']['resamples']:,} resamples "
        "of the prompts"
    )
    lines = [["score", "value", percent]]
    lines += [[title, *_value_and_ends(document["scores"][name])] for name, title in _SCORES.items()]
    if document["expected_log_loss"]:
        lines.append(["log loss expected of the true probabilities", *_value_and_ends(document["expected_log_loss"])])
    yield from aligned(lines)
    yield f"With so many rows, a perfectly calibrated judge has an ECE of {document['ece_if_calibrated']:.4f}."


def _models(document: Mapping[str, Any]) -> Iterator[str]:
    """What the submission stands beside: baselines, members, and the best that is possible."""
    own = {name: document["scores"][name]["value"] for name in _SCORES}
    members = [(f"{PurePath(m['file']).name} (weight {m['weight']:.4f})", m) for m in document["members"]]
    truth = [(TRUTH_NAME, document["truth"])] if document["truth"] else []
    others = [*document["baselines"].items(), *members, *truth]
    if not others:
        return
    lines = [["model", *_SCORES.values(), "log loss of the submission minus this"]]
    for name, scores in [*others, (PurePath(document["submission"]).name, own)]:
        difference = _interval(scores.get("difference"), "+") if "difference" in scores else "-"
        lines.append([name, *(_number(scores[key]) for key in _SCORES), difference])
    if not document["baselines"]:
        lines = [line[:-1] for line in lines]
    yield from aligned(lines)


def _classes(document: Mapping[str, Any]) -> Iterator[str]:
    columns = ("share", "mean_probability", "log_loss", "precision", "recall", "f1", "brier")
    heads = ("share", "predicted share", "log loss", "precision", "recall", "F1", "Brier")
    lines = [["class", "rows", *heads, *(f"taken for {name}" for name in CLASSES)]]
    for figures, counts in zip(document["per_class"], document["confusion"], strict=True):
        numbers = [_number(figures[name]) for name in columns]
        lines.append([figures["class"], f"{figures['rows']:,}", *numbers, *(f"{count:,}" for count in counts)])
    yield from aligned(lines)


def _slices(document: Mapping[str, Any]) -> Iterator[str]:
    lines = [["slice", "rows", "log loss [95 %]", "accuracy [95 %]", ""]]
    for name, slices in document["slices"].items():
        for one in slices:
            scores = [_interval(one[score]) for score in ("log_loss", "accuracy")]
            lines.append([f"{name}: {one['slice']}", f"{one['rows']:,}", *scores, "few rows" if one["few"] else ""])
    yield from (line.rstrip() for line in aligned(lines))


def _position_bias(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["position_bias"]
    if found is None:
        return
    lengths = ", ".join(map(str, found["lengths"]))
    lines = [[f"position bias of {document['logits']} (length {lengths})", "value", "95 %"]]
    lines += [[title, *_value_and_ends(found[name])] for name, title in _BIASES.items()]
    yield from aligned(lines)
    yield f"Without bias the answer shown first would have {found['unbiased_first_answer_probability']:.4f}."


def _calibration(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["calibration"]
    if found is None:
        return
    names = ("log_loss", "ece", "brier")
    lines = [["calibration", *(_SCORES[name] for name in names)]]
    for title, part in (("before, T = 1", "before"), (f"after, T = {found['temperature']:.4f}", "after")):
        lines.append([title, *(_number(found[part][name]) for name in names)])
    yield from aligned(lines)


def _views(document: Mapping[str, Any]) -> Iterator[str]:
    if not document["tta"]:
        return
    lines = [["views averaged", *_SCORES.values()]]
    for entry in document["tta"]:
        lines.append([" + ".join(entry["views"]), *(_number(entry[name]) for name in _SCORES)])
    yield from aligned(lines)


def _value_and_ends(interval: Mapping[str, float | None]) -> list[str]:
    return [_number(interval["value"]), _ends(interval)]


def _interval(interval: Mapping[str, float | None] | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    ends = _ends(interval, sign)
    return f"{_number(interval['value'], sign)}{f' {ends}' if ends != '-' else ''}"


def _ends(interval: Mapping[str, float | None], sign: str = "") -> str:
    if interval["low"] is None:
        return "-"
    return f"[{_number(interval['low'], sign)}, {_number(interval['high'], sign)}]"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"

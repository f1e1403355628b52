"""Which slice each row belongs to: by length, language, number of turns, source, and oddities of the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from arena_distill.data.raw import as_strings
from arena_distill.data.reading import open_raw
from arena_distill.data.records import TEXT_COLUMNS, Rows, joined_turns
from arena_distill.data.summary import LoadSummary
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.languages import UNKNOWN, languages

FEW_ROWS = 20
"""A slice of fewer rows is marked: its figures say more about the draw of the rows than about the judge."""

MOST_SLICES = 15
"""More languages or sources than this and the rarest share one slice."""

PARTS = 3  # of the lengths
EMPTY_ANSWER, IDENTICAL_ANSWERS, DIFFERENT_ANSWERS = "an empty answer", "identical answers", "two different answers"


@dataclass(frozen=True)
class Slicing:
    """One way to divide the rows: the slices' names in the order to show, and the number of each row's slice."""

    names: list[str]
    slice_of_row: np.ndarray  # int64 [N]


def slicings(rows: Rows, test_file: Path) -> dict[str, Slicing]:
    """Every way to divide ``rows`` that says something about them.

    Args:
        rows: canonical rows of ``test_file``, all and in its order.
        test_file: the source of each row is its column ``source``, where it has one.

    Returns:
        ``length``, ``language`` and ``turns``; ``source`` where there are several, ``answers`` where some are odd.

    Raises:
        DataError: the column ``source`` cannot be read.
    """
    found = {"length": by_length(rows), "language": by_language(rows), "turns": by_turns(rows)}
    sources = read_sources(test_file)
    optional = {"source": by_name(sources) if sources else None, "answers": by_answers(rows)}
    return found | {name: one for name, one in optional.items() if one is not None and len(one.names) > 1}


def by_length(rows: Rows) -> Slicing:
    """Thirds by the characters of prompt and answers together; equal lengths stay together."""
    lengths = np.sum([[len(text or "") for text in joined_turns(rows, name)] for name in TEXT_COLUMNS], axis=0)
    edges = np.unique(np.quantile(lengths, np.arange(1, PARTS) / PARTS, method="lower"))
    edges = edges[edges < lengths.max()]  # the last part has no upper edge
    names = [f"up to {edge:,} characters" for edge in edges[:1]]
    names += [f"{low + 1:,} to {high:,} characters" for low, high in pairwise(edges)]
    names.append(f"over {edges[-1]:,} characters" if len(edges) else f"{int(lengths.max()):,} characters")
    return Slicing(names, np.searchsorted(edges, lengths, side="left"))


def by_language(rows: Rows) -> Slicing:
    """The language of the prompt, all its turns together; most frequent first, those that cannot be told last."""
    return by_name(languages([text or "" for text in joined_turns(rows, "prompt")]), last=UNKNOWN)


def by_turns(rows: Rows) -> Slicing:
    """Turns of the prompt: 1, 2, or 3 and more (no turn at all counts as one)."""
    turns = np.clip(pc.list_value_length(rows["prompt"]).fill_null(0).to_numpy(), 1, 3)
    names = {1: "1 turn", 2: "2 turns", 3: "3 or more turns"}
    present = np.unique(turns)
    return Slicing([names[int(count)] for count in present], np.searchsorted(present, turns))


def by_answers(rows: Rows) -> Slicing:
    """Rows whose answers are the same text, or of which one is empty; the others are different answers."""
    pairs = zip(*(joined_turns(rows, name) for name in ("response_a", "response_b")), strict=True)
    kinds = [
        IDENTICAL_ANSWERS
        if (a or "").strip() == (b or "").strip()
        else DIFFERENT_ANSWERS
        if (a or "").strip() and (b or "").strip()
        else EMPTY_ANSWER
        for a, b in pairs
    ]
    return by_name(kinds)


def by_name(names: Sequence[str], last: str | None = None) -> Slicing:
    """One slice a name, the most frequent first; beyond ``MOST_SLICES`` the rarest are put together."""
    order = [name for name, _ in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])) if name != last]
    shown, rest = (order, []) if len(order) <= MOST_SLICES else (order[: MOST_SLICES - 1], order[MOST_SLICES - 1 :])
    labels = [*shown, *([f"{len(rest)} others"] if rest else []), *([last] if last in names else [])]
    place = {name: shown.index(name) for name in shown} | dict.fromkeys(rest, len(shown))
    if last is not None:
        place[last] = len(labels) - 1
    return Slicing([str(label) for label in labels], np.array([place[name] for name in names], dtype=np.int64))


def read_sources(test_file: Path) -> list[str] | None:
    """The column ``source`` of a data file, one name a row; None where it has none.

    Raises:
        DataError: the column cannot be read.
    """
    summary = LoadSummary(str(test_file))
    file = open_raw(test_file, summary)
    if "source" not in file.columns:
        return None
    names: list[str] = []
    for batch in file.batches(["source"], summary):
        column = as_strings(batch["source"], test_file, "source", len(names))
        names += [(name or "").strip() or UNKNOWN for name in column.to_pylist()]
    return names


def slice_scores(
    found: Mapping[str, Slicing], probabilities: np.ndarray, targets: np.ndarray, bootstrap: PromptBootstrap
) -> dict[str, list[dict[str, Any]]]:
    """Log loss and accuracy of every slice, each with its interval; ``few`` where the rows are too few to mean much.

    Args:
        found: ways to divide the N rows.
        probabilities: ``[N, 3]``.
        targets: ``[N, 3]``.
        bootstrap: of the N rows.
    """
    return {
        name: [
            {"slice": label} | _scores_of(slicing.slice_of_row == number, probabilities, targets, bootstrap)
            for number, label in enumerate(slicing.names)
        ]
        for name, slicing in found.items()
    }


def _scores_of(
    rows: np.ndarray, probabilities: np.ndarray, targets: np.ndarray, bootstrap: PromptBootstrap
) -> dict[str, Any]:
    own = bootstrap.of(rows)
    scores, count = own.scores(probabilities[rows], targets[rows]), int(rows.sum())
    return {
        "rows": count,
        "prompts": len(np.unique(own.prompts)),
        "few": count < FEW_ROWS,
        "log_loss": scores["log_loss"].as_dict(),
        "accuracy": scores["accuracy"].as_dict(),
    }

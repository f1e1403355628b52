"""A figure and where it comes from: a place in a file, or a rule over other figures.

A place is written ``FILE#/key/key`` with FILE relative to the output directory and a JSON pointer (RFC 6901) in it, so
that a program can read every number of a report again (``recompute``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A number, or any other JSON value, that a report shows.

    Exactly one of ``origin`` and ``rule`` is set.
    """

    value: Any
    origin: str = ""  # FILE#/pointer
    rule: str = ""  # a name of RULES
    of: tuple[Figure, ...] = ()  # what the rule was applied to

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that it comes from, each once."""
        if self.origin:
            return (self.origin.partition("#")[0],)
        return tuple(dict.fromkeys(name for part in self.of for name in part.files))


def _weighted_mean(values: Sequence[float]) -> float:
    """Of values and their weights in turn."""
    numbers, weights = values[::2], values[1::2]
    return sum(n * w for n, w in zip(numbers, weights, strict=True)) / sum(weights)


def _quotient_of_sums(values: Sequence[float]) -> float:
    """The first half's sum over the second half's."""
    half = len(values) // 2
    return sum(values[:half]) / sum(values[half:])


def _over_steps(key: str) -> Callable[[Sequence[Any]], list[list[float]]]:
    """``[step, value]`` of each entry of a training log that has ``key``."""
    return lambda logs: [[entry["step"], entry[key]] for entry in logs[0] if key in entry]


RULES: dict[str, Callable[[Sequence[Any]], Any]] = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "mean weighted by rows": _weighted_mean,
    "difference": lambda values: values[0] - values[1],
    "share": lambda values: values[0] / values[1],
    "product": lambda values: values[0] * values[1],
    "quotient of sums": _quotient_of_sums,
    "lowest": min,
    "highest": max,
    "loss over steps": _over_steps("loss"),
    "eval_log_loss over steps": _over_steps("eval_log_loss"),
}
"""How figures are made of others."""


def derive(rule: str, *of: Figure) -> Figure:
    """The figure that ``rule`` makes of others."""
    return Figure(RULES[rule]([part.value for part in of]), rule=rule, of=of)


def pointer(*keys: str | int) -> str:
    """The JSON pointer to a value, by the keys and indices on the way there."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def value_at(document: Any, path: str) -> Any:
    """What a JSON pointer points to.

    Raises:
        KeyError, IndexError, TypeError, ValueError: nothing is there.
    """
    for raw in path.split("/")[1:]:
        key = raw.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def recompute(described: Any, read: Callable[[str], Any]) -> Any:
    """The value of a figure as ``report.json`` describes it, from the files alone.

    Args:
        described: with ``from``, or with ``rule`` and ``of``.
        read: name of a file -> its JSON.
    """
    if "from" in described:
        name, _, path = described["from"].partition("#")
        return value_at(read(name), path)
    return RULES[described["rule"]]([recompute(part, read) for part in described["of"]])

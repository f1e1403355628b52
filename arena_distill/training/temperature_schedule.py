"""How the temperature of distillation changes while a student is trained. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LINEAR = "linear"


@dataclass(frozen=True)
class TemperatureSchedule:
    """The temperature from the first step to the last: a straight line, or a constant."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Temperature when ``progress`` (0 at the first step, 1 after the last) of the training is done."""
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)

    @classmethod
    def parse(cls, text: str, constant: float) -> TemperatureSchedule:
        """``linear:5,2`` from 5 to 2; empty: ``constant`` throughout.

        Raises:
            ValueError: anything else, or a temperature that is not a positive number.
        """
        if not text:
            return cls(constant, constant)
        kind, _, numbers = text.partition(":")
        parts = [part.strip() for part in numbers.split(",")]
        try:
            start, end = (float(part) for part in parts)
        except ValueError:
            raise ValueError("use linear:START,END, such as linear:5,2") from None
        if kind.strip() != _LINEAR or not (0 < start < math.inf and 0 < end < math.inf):
            raise ValueError("use linear:START,END with two positive temperatures, such as linear:5,2")
        return cls(start, end)


def temperature_schedule(text: str) -> str:
    """``text`` if ``TemperatureSchedule.parse`` understands it; for settings."""
    TemperatureSchedule.parse(text, 1.0)
    return text

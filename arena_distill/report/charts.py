"""Charts as inline SVG: sharp at any size, coloured by the page's style sheet, readable aloud by their labels.

Tracks (dots and intervals on a line) stretch with the page: their places are percentages, and their text is the
page's own, so that it never shrinks. Charts of two axes are drawn 360 units wide and may grow by a third.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from arena_distill.report import formatting

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 36


@dataclass(frozen=True)
class Scale:
    """From values to percent of a track's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Percent, not beyond the ends."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def beyond(self, value: float) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high

    @property
    def ticks(self) -> list[float]:
        """Round values to label, four or so."""
        return ticks(self.low, self.high)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two others."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def scale_of(values: Iterable[float], margin: float = 0.06, zero: bool = False) -> Scale:
    """A scale that all values lie on, with some room at the ends."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low - room, high + room)


def around(middle: float, *values: float | None, reach: float) -> Scale:
    """A scale that shows ``reach`` on both sides of ``middle`` and all values, so that small is seen to be small."""
    return scale_of([middle - reach, middle + reach, *(value for value in values if value is not None)])


def _tick_label(value: float, among: Sequence[float]) -> str:
    steps = [abs(b - a) for a, b in pairwise(among)]
    digits = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 2
    if steps and abs(min(steps) * 10**digits - round(min(steps) * 10**digits)) > 1e-6:
        digits += 1  # steps of 2.5
    return f"{value:,.{digits}f}".replace("-", formatting.MINUS)


def track(
    scale: Scale,
    value: float | None,
    label: str,
    *,
    interval: dict[str, Any] | None = None,
    dots: Sequence[float] = (),
    kind: str = "main",
    reference: float | None = None,
) -> Markup:
    """A line with a dot for a value, an interval around it, and small dots for what it is the mean of.

    Args:
        scale: shared by all tracks of a chart.
        value: where the dot is; None: an empty line.
        label: what it says, for those who hear it, and as a tooltip.
        interval: ``{"low", "high"}``.
        dots: small ones.
        kind: ``main``, ``beside`` (hollow), ``reference`` (a diamond) or ``few`` (hollow and pale).
        reference: where a dashed line runs.
    """
    parts = [_upright(scale.at(tick), "grid") for tick in scale.ticks]
    if reference is not None and not scale.beyond(reference):
        parts.append(_upright(scale.at(reference), "dashed"))
    if interval is not None and interval.get("low") is not None:
        low, high = interval["low"], interval["high"]
        parts.append(_line(f"{scale.at(low):.2f}%", "50%", f"{scale.at(high):.2f}%", "50%", f"interval {kind}"))
        parts += [_beyond(end) for end, out in ((0, low < scale.low), (100, high > scale.high)) if out]
    parts += [_circle(scale.at(dot), 3, "small") for dot in dots if not scale.beyond(dot)]
    if value is not None:
        place = scale.at(value)
        parts.append(_diamond(place) if kind == "reference" else _circle(place, 5.5, f"dot {kind}"))
    return Markup(
        f'<svg class="track" role="img" aria-label="{escape(label)}" width="100%">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def axis(scale: Scale) -> Markup:
    """The labels under a chart of tracks."""
    places = scale.ticks
    texts = (
        f'<text x="{scale.at(tick):.2f}%" y="14" text-anchor="middle">{_tick_label(tick, places)}</text>'
        for tick in places
    )
    return Markup(f'<svg class="track axis" aria-hidden="true" height="20" width="100%">{"".join(texts)}</svg>')


def bar(share: float, label: str) -> Markup:
    """A bar as long as its share, from 0 to 1."""
    width = max(0.6, 100 * min(1.0, max(0.0, share)))
    return Markup(
        f'<svg class="bar" role="img" aria-label="{escape(label)}" height="12" width="100%"><title>{escape(label)}'
        f'</title><rect class="room" width="100%" height="12" rx="2"/><rect class="fill" width="{width:.2f}%" '
        'height="12" rx="2"/></svg>'
    )


def _line(x1: Any, y1: Any, x2: Any, y2: Any, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _upright(percent: float, kind: str) -> str:
    return _line(f"{percent:.2f}%", 0, f"{percent:.2f}%", "100%", kind)


def _circle(percent: float, radius: float, kind: str) -> str:
    return f'<circle class="{kind}" cx="{percent:.2f}%" cy="50%" r="{radius:g}"/>'


def _diamond(percent: float) -> str:
    shape = '<path class="diamond" d="M0 -5.5L5.5 0L0 5.5L-5.5 0Z"/>'
    return f'<svg class="mark" x="{percent:.2f}%" y="50%" overflow="visible">{shape}</svg>'


def _beyond(percent: float) -> str:
    """An arrow where an interval runs out of the chart."""
    back = -5 if percent else 5
    shape = f'<path class="arrow" d="M{back} -4L0 0L{back} 4"/>'
    return f'<svg class="mark" x="{percent:g}%" y="50%" overflow="visible">{shape}</svg>'


# Charts of two axes


@dataclass(frozen=True)
class Plane:
    """A plotting area of 360 by 240 units, with room for axes."""

    x: Scale
    y: Scale

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * self.x.at(x) / 100
        return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - self.y.at(y) / 100)

    def axes(self, x_title: str, y_title: str) -> list[str]:
        """Grid, labels and titles."""
        parts = []
        for tick in self.y.ticks:
            _, y = self.place(self.x.low, tick)
            parts.append(_line(_LEFT, f"{y:.1f}", _WIDTH - _RIGHT, f"{y:.1f}", "grid"))
            parts.append(_text(_LEFT - 6, y + 4, _tick_label(tick, self.y.ticks), "end"))
        for tick in self.x.ticks:
            x, _ = self.place(tick, self.y.low)
            parts.append(_text(x, _HEIGHT - _BOTTOM + 16, _tick_label(tick, self.x.ticks), "middle"))
        parts.append(_line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, "axis"))
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_title, "middle", "title"))
        parts.append(_text(0, _TOP - 14, y_title, "start", "title"))
        return parts


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{of_kind}>{escape(words)}</text>'


def _plot(parts: Iterable[str], label: str) -> Markup:
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 -16 {_WIDTH} {_HEIGHT + 16}">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def reliability(bins: Sequence[dict[str, Any]], label: str) -> Markup:
    """Share of rows that are right against confidence: on the diagonal where confidence can be taken at its word.

    A dot's area is the number of its rows; the bar under it too.
    """
    filled = [one for one in bins if one["rows"]]
    plane = Plane(Scale(0.3, 1.02), Scale(0.0, 1.02))
    parts = plane.axes("highest of the three probabilities", "share that is right")
    (x1, y1), (x2, y2) = plane.place(0.3, 0.3), plane.place(1, 1)
    parts.append(_line(f"{x1:.1f}", f"{y1:.1f}", f"{x2:.1f}", f"{y2:.1f}", "dashed"))
    most = max((one["rows"] for one in filled), default=1)
    floor = _HEIGHT - _BOTTOM
    for one in filled:
        low, _ = plane.place(max(0.3, one["low"]), 0)
        high, _ = plane.place(one["high"], 0)
        tall = 26 * one["rows"] / most
        parts.append(
            f'<rect class="rows" x="{low + 1:.1f}" y="{floor - tall:.1f}" width="{max(1.0, high - low - 2):.1f}" '
            f'height="{tall:.1f}"/>'
        )
    for one in filled:
        x, y = plane.place(one["confidence"], one["accuracy"])
        _, ideal = plane.place(one["confidence"], one["confidence"])
        said = (
            f"{one['rows']:,} rows: confidence {formatting.percent(one['confidence'])}, "
            f"right {formatting.percent(one['accuracy'])}"
        )
        parts.append(_line(f"{x:.1f}", f"{ideal:.1f}", f"{x:.1f}", f"{y:.1f}", "gap"))
        radius = 2.5 + 5.5 * math.sqrt(one["rows"] / most)
        parts.append(
            f'<circle class="dot main" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(said)}</title></circle>"
        )
    return _plot(parts, label)


def lines(series: Sequence[tuple[str, Sequence[Sequence[float]]]], x_title: str, y_title: str, label: str) -> Markup:
    """One line for each of several runs, named at its end.

    Args:
        series: name and ``[[x, y], …]``.
        x_title: what the lines run over.
        y_title: what they show.
        label: what the chart says.
    """
    points = [point for _, some in series for point in some]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    plane = Plane(Scale(min(xs) if min(xs) == max(xs) else 0, max(xs) * 1.12 or 1), scale_of(ys, 0.1))
    parts = plane.axes(x_title, y_title)
    ends = []
    for k, (name, some) in enumerate(series):
        places = [plane.place(x, y) for x, y in some]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        said = f"{name}: ends at {formatting.loss(some[-1][1])}" if name else f"ends at {formatting.loss(some[-1][1])}"
        parts.append(f'<g class="series s{k % 5}"><title>{escape(said)}</title><path class="line" d="{path}"/>')
        if len(places) <= 30:
            parts += [f'<circle class="small" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
        parts.append("</g>")
        ends.append((places[-1], name.removeprefix("fold ")))
    if len(series) > 1:
        parts += [_text(x + 7, y + 4, name, "start", "name") for (x, y), name in _apart(ends, 12)]
    return _plot(parts, label)


def _apart(ends: Sequence[tuple[tuple[float, float], str]], distance: float) -> list[tuple[tuple[float, float], str]]:
    """Names moved up and down until none covers another."""
    order = sorted(ends, key=lambda end: end[0][1])
    ys = [y for (_, y), _ in order]
    for _ in range(50):
        for k in range(len(ys) - 1):
            lack = distance - (ys[k + 1] - ys[k])
            if lack > 0:
                ys[k] -= lack / 2
                ys[k + 1] += lack / 2
    right = max(x for (x, _), _ in order)
    return [((right, y), name) for y, (_, name) in zip(ys, order, strict=True)]

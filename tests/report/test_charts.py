"""Charts put values where they belong and nothing over anything else."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arena_distill.report import charts, formatting

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_every_value_lies_inside_its_scale(values: list[float]) -> None:
    scale = charts.scale_of(values)
    assert all(not scale.beyond(value) and 0 <= scale.at(value) <= 100 for value in values)


@given(NUMBERS, st.floats(1e-5, 1e6))
def test_ticks_are_few_ascending_and_inside(low: float, width: float) -> None:
    assume(width > 1e-6 * abs(low))  # else there is no number with few digits in between
    found = charts.ticks(low, low + width)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


@given(st.floats(0.001, 1000), NUMBERS)
def test_tick_labels_differ_from_each_other(width: float, low: float) -> None:
    svg = charts.axis(charts.Scale(low, low + width))
    labels = re.findall(r">([^<]+)</text>", svg)
    assert len(labels) == len(set(labels))


@given(st.lists(st.floats(0.9, 1.1), min_size=2, max_size=8))
def test_names_at_the_ends_of_lines_do_not_cover_each_other(ends: list[float]) -> None:
    series = [(f"fold {k}", [[10, 1.0], [20, end]]) for k, end in enumerate(ends)]
    svg = charts.lines(series, "steps", "loss", "what it shows")
    heights = sorted(float(y) for y in re.findall(r'y="([\d.-]+)" text-anchor="start" class="name"', svg))
    assert len(heights) == len(ends)
    assert all(after - before > 9 for before, after in pairwise(heights))


def test_an_interval_that_runs_out_of_the_chart_ends_in_an_arrow() -> None:
    scale = charts.Scale(0.9, 1.1)
    inside = charts.track(scale, 1.0, "inside", interval={"low": 0.95, "high": 1.05})
    outside = charts.track(scale, 1.0, "outside", interval={"low": 0.5, "high": 1.05})
    assert "arrow" not in inside
    assert outside.count('class="arrow"') == 1


def test_labels_with_markup_do_not_break_out() -> None:
    svg = charts.track(charts.Scale(0, 1), 0.5, '"><script>')
    assert "<script>" not in svg


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1 kB"), (2_472_784, "2.5 MB"), (141e9, "141.0 GB")],
)
def test_sizes_are_decimal(bytes_: float, text: str) -> None:
    assert formatting.size(bytes_) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.28, "0.3 s"), (99.9, "99.9 s"), (152.4, "2 min 32 s"), (18_450, "5 h 07 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.515e-8, "5.5 × 10⁻⁸"),
        (1e-5, "10⁻⁵"),
        (-1.46e-5, "−1.5 × 10⁻⁵"),
        (0.005, "0.005"),
        (0.19953, "0.200"),
        (0, "0"),
    ],
)
def test_small_errors_keep_their_magnitude(value: float, text: str) -> None:
    assert formatting.small(value) == text


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    assert [formatting.change(value) for value in (0.00251, -0.00004, -0.0088, 0.0)] == [
        "+0.0025", "0.0000", "−0.0088", "0.0000",
    ]  # fmt: skip

"""Test-time augmentation: the same pair at several length limits and in both orders."""

from __future__ import annotations

from collections.abc import Sequence

from arena_distill.data.prompts import View


def tta_views(lengths: Sequence[int], swap: bool) -> list[View]:
    """Every length limit, in the order given, each in both orders if ``swap``."""
    orders = (False, True) if swap else (False,)
    return [View(length, order) for length in dict.fromkeys(lengths) for order in orders]

"""Which folds a setting names."""

from __future__ import annotations


def folds_list(text: str) -> str:
    """``all``, or fold numbers separated by commas, in a canonical form.

    Raises:
        ValueError: it is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["all"]:
        return "all"
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError("give all, or fold numbers such as 0,1,2")
    return ",".join(dict.fromkeys(str(int(part)) for part in parts))


def fold_numbers(text: str, n_folds: int) -> list[int]:
    """The folds that a checked ``folds_list`` names."""
    return list(range(n_folds)) if text == "all" else [int(part) for part in text.split(",")]

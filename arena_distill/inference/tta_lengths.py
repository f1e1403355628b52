"""Length limits of test-time augmentation as settings name them. Imports nothing heavy."""

from __future__ import annotations

LONGEST = 1 << 20
"""More tokens than any text here has; a longer limit is a slip of the finger."""


def lengths_text(text: str) -> str:
    """``512, 1024`` without the blanks.

    Raises:
        ValueError: a part is no positive number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError("use token counts separated by commas, such as 512,1024")
    if max(map(int, parts), default=0) > LONGEST:
        raise ValueError(f"use {LONGEST:,} tokens or less")
    return ",".join(parts)


def lengths_of(text: str) -> list[int]:
    """The numbers in what ``lengths_text`` gave; none for an empty text."""
    return [int(part) for part in text.split(",") if part]

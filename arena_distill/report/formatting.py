"""Numbers as people read them: four digits of a log loss, MB and GB, minutes, thousands separators."""

from __future__ import annotations

from typing import Any

MINUS = "−"
NOTHING = "–"


def loss(value: float | None) -> str:
    """A log loss or another score: 0.9717."""
    return NOTHING if value is None else _minus(f"{value:.4f}")


def change(value: float | None) -> str:
    """A difference of two: +0.0025, or 0.0000 without a sign where rounding leaves nothing."""
    if value is None:
        return NOTHING
    text = f"{value:+.4f}"
    return text[1:] if float(text) == 0 else _minus(text)


def count(value: int | None) -> str:
    """1,500."""
    return NOTHING if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """52.0 %, and more digits where there is little."""
    if value is None:
        return NOTHING
    return f"{100 * value:.1f} %" if value == 0 or abs(value) >= 0.001 else "< 0.1 %"


def size(bytes_: float | None) -> str:
    """2.5 MB: decimal, as disks are sold."""
    if bytes_ is None:
        return NOTHING
    for unit, scale, digits in (("GB", 1e9, 1), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if bytes_ >= scale:
            return f"{bytes_ / scale:,.{digits}f} {unit}"
    return f"{bytes_:,.0f} bytes"


def duration(seconds: float | None) -> str:
    """0.3 s, 14.7 s, 2 min 33 s, 5 h 07 min."""
    if seconds is None:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600:,} h {int(seconds) % 3600 // 60:02d} min"


def rate(value: float | None) -> str:
    """83.1, 1,240."""
    return NOTHING if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def small(value: float | None) -> str:
    """An error of any magnitude: 5.5 × 10⁻⁸, 0.00825."""
    if value is None:
        return NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.3g}"
        return _minus(text if float(text) == value else f"{value:#.3g}".removesuffix("."))
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    mantissa = mantissa.removesuffix(".0")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{_minus(mantissa)} × {power}"


def ends(interval: dict[str, Any], digits: int = 4) -> str:
    """The ends of a 95 % interval: 0.9241 to 1.0187; empty where there is none."""
    if interval.get("low") is None:
        return ""
    return f"{_minus(format(interval['low'], f'.{digits}f'))} to {_minus(format(interval['high'], f'.{digits}f'))}"


def setting(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if value is None or value == "":
        return NOTHING
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def digest(value: Any) -> str:
    """The first digits of a hash."""
    return str(value)[:12]


def _minus(text: str) -> str:
    return text.replace("-", MINUS)

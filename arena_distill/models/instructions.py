"""What this machine's CPU has instructions for."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


def has_bfloat16_products() -> bool:
    """Whether matrix products of bfloat16 are faster on this CPU than those of float32; elsewhere they are slower.

    They are with ``AMX`` (Intel since Sapphire Rapids), and with ``AVX512_BF16`` on AMD (since Zen 4). With Intel's
    ``AVX512_BF16`` alone, which is what a virtual machine without AMX leaves, they take twice as long.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and not _is_of_intel()


def _is_of_intel() -> bool:
    try:
        return "GenuineIntel" in CPU_INFO.read_text("utf-8", "replace")
    except OSError:  # not Linux
        return False

"""What this machine's CPU has instructions for."""

from __future__ import annotations

import torch


def has_bfloat16_products() -> bool:
    """Whether matrix products of bfloat16 are faster than those of float32; without instructions for them much slower.

    ``AVX512_BF16``: AMD since Zen 4, Intel since Cooper Lake; ``AMX``: Intel since Sapphire Rapids.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

"""Which CPUs are taken to be faster in 16 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arena_distill.models import instructions


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "faster"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "AuthenticAMD", True),
        (False, True, "GenuineIntel", False),  # a virtual machine that hides AMX
        (False, False, "AuthenticAMD", False),
        (False, True, None, True),  # not Linux: nothing tells
    ],
)
def test_16_bits_are_faster_where_products_are(
    amx: bool, avx512_bf16: bool, vendor: str | None, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if vendor:
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(instructions, "CPU_INFO", info)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert instructions.has_bfloat16_products() is faster

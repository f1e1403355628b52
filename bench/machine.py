"""What a measurement ran on."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

from arena_distill.runtime.cores import usable_cores


def machine() -> dict[str, object]:
    """CPU and how many cores this process may use."""
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = usable_cores()
    return {"cpu": cpu, "cores": cores, "system": platform.platform()}

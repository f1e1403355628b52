"""Memory of a process, for measurements that run in one of their own, peers' included."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_mb() -> float:
    """Highest resident set of this process; the kernel's own mark, as ``getrusage`` inherits the parent's."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

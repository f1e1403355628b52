"""What this machine has for tasks: cores and GPUs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from arena_distill.runtime.cores import usable_cores


@dataclass(frozen=True)
class Machine:
    """What the tasks of a local run share."""

    cores: int
    gpus: int
    jobs: int = 0  # at most so many at once, whatever they need; 0: as many as fit


def cores() -> int:
    """Cores that this process may use; in a Slurm job those that it was given, whether or not it is held to them."""
    here = usable_cores()
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return min(here, int(given)) if given.isdecimal() and int(given) else here


def gpu_count() -> int:
    """GPUs that a stage script would find: those that CUDA_VISIBLE_DEVICES names, else all of the driver's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU") for line in listed.stdout.splitlines())

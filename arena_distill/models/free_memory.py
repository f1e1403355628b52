"""How much memory is free for training on this machine: GPU, or RAM within the limits of a container or a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MIB = 1 << 20


def available_memory() -> tuple[int, str]:
    """Bytes free for training, and where from: the fullest visible CUDA GPU, or without one RAM.

    Asking opens a CUDA context (about 0.5 GB) on every visible GPU for the rest of the process, and other ranks of a
    job would see each other's weights as taken: ask once, before the ranks start, in a process that then ends.
    """
    import torch

    if not torch.cuda.is_available():
        return available_ram()
    free = [torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())]
    fullest = min(range(len(free)), key=free.__getitem__)
    return free[fullest], f"GPU {fullest} ({torch.cuda.get_device_name(fullest)})"


def available_ram(
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Bytes of RAM that this process may still take, and which limit says so: the smallest of

    - ``MemAvailable`` of ``/proc/meminfo`` (the physical memory on systems without it);
    - limit minus use of the control group (version 1 or 2) or any group above it, where file cache that the kernel
      would give back counts as free;
    - the Slurm job's memory on this node, ``SLURM_MEM_PER_NODE`` or ``SLURM_MEM_PER_CPU`` times its CPUs (MiB).
    """
    environment = os.environ if environment is None else environment
    limits = [*_machine(proc), *_control_groups(proc, cgroups), *_slurm(environment)]
    free, source = min(limits)
    return max(free, 0), source


def _machine(proc: Path) -> Iterator[tuple[int, str]]:
    fields = _fields(proc / "meminfo")
    if "MemAvailable:" in fields:
        yield fields["MemAvailable:"] * 1024, "RAM, MemAvailable of /proc/meminfo"
    else:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "RAM, all that is built in"


def _control_groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, str]]:
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, use, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, use = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / path.strip("/")
        # Slurm sets the limit on the job's group, above that of the task; in a container only the root may be visible.
        for level in (group, *group.parents):
            bound, used = _text(level / limit).strip(), _text(level / use).strip()
            if bound.isdigit() and used.isdigit():
                free = int(bound) - int(used) + _fields(level / "memory.stat").get(cache, 0)
                yield free, f"RAM, {limit} of the control group"
            if level == root:
                break


def _slurm(environment: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    def number(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else 0

    per_cpu = number("SLURM_MEM_PER_CPU") * (number("SLURM_CPUS_ON_NODE") or 1)
    for name, mebibytes in (("SLURM_MEM_PER_NODE", number("SLURM_MEM_PER_NODE")), ("SLURM_MEM_PER_CPU", per_cpu)):
        if mebibytes:  # 0 stands for all memory of the node
            yield mebibytes * MIB, f"RAM, {name} of the Slurm job"


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""


def _fields(file: Path) -> dict[str, int]:
    """First and second word of each line whose second word is a number."""
    words = (line.split() for line in _text(file).splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}

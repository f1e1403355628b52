"""What a task of each stage computes on: the GPUs and the memory that it asks Slurm for, or those of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from arena_distill.models.free_memory import available_ram
from arena_distill.pipeline.headers import header
from arena_distill.pipeline.machine import cores, gpu_count
from arena_distill.pipeline.plan import sbatch_words, threads
from arena_distill.pipeline.preflight_chain import Chain
from arena_distill.pipeline.variables import repository
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.stages import Stage

GB = 10**9
GPU_MEMORY_SETTING = "GPU_MEMORY_GB"

_SECONDS = 10.0  # for sinfo and nvidia-smi
_SHORT = {"p": "partition", "G": "gpus", "c": "cpus-per-task", "t": "time", "N": "nodes", "A": "account", "q": "qos"}
_VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "gres": "SBATCH_GRES",
    "gpus": "SBATCH_GPUS",
    "gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "gpus-per-task": "SBATCH_GPUS_PER_TASK",
    "mem": "SBATCH_MEM_PER_NODE",
    "mem-per-cpu": "SBATCH_MEM_PER_CPU",
    "mem-per-gpu": "SBATCH_MEM_PER_GPU",
}
_GPU_OPTIONS = ("gpus-per-node", "gpus-per-task", "gpus")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "": 1 << 20}

# GB of GPUs by what clusters call them, the longest name first; where a name has two sizes, the smaller.
_SIZES = {
    **{
        "gh200": 96,
        "gb200": 186,
        "b300": 270,
        "b200": 180,
        "h200": 141,
        "h100nvl": 94,
        "h100": 80,
        "h800": 80,
        "h20": 96,
    },
    **{"a100": 40, "a800": 40, "a40": 48, "a30": 24, "a10g": 24, "a10": 24, "a16": 16, "a2": 16},
    **{"l40s": 48, "l40": 48, "l20": 48, "l4": 24, "t4": 16, "v100s": 32, "v100": 16, "p100": 16, "p40": 24, "p4": 8},
    **{"m40": 12, "k80": 12, "k40": 12},
    **{"rtxpro6000": 96, "rtx6000ada": 48, "6000ada": 48, "rtxa6000": 48, "a6000": 48, "rtxa5000": 24, "a5000": 24},
    **{"a4500": 20, "rtxa4000": 16, "a4000": 16, "rtx8000": 48, "rtx6000": 24, "rtx5000": 16, "rtx4000": 8},
    **{"5090": 32, "5080": 16, "5070ti": 16, "5070": 12, "4090": 24, "4080": 16, "4070": 12, "3090": 24, "3080ti": 12},
    **{"3080": 10, "3070": 8, "3060": 12, "2080ti": 11, "2080": 8, "2070": 8, "1080ti": 11, "1080": 8},
    **{"titanrtx": 24, "titanv": 12, "titanxp": 12, "titanx": 12},
    **{"mi355x": 288, "mi325x": 256, "mi300x": 192, "mi300a": 128, "mi250x": 64, "mi250": 64, "mi210": 64, "mi100": 32},
}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU that a task may find."""

    name: str
    memory: int | None  # bytes; None: its name does not tell


@dataclass(frozen=True)
class Machine:
    """What one task of a stage has."""

    gpus: int  # 0: it computes on the CPU
    kinds: tuple[Gpu, ...]  # it may find any of them
    ram: int | None  # bytes; None: unknown
    ram_source: str


@dataclass(frozen=True)
class Nodes:
    """Some alike nodes of a partition, as ``sinfo`` has them."""

    partition: str
    default: bool
    gres: str
    memory: int  # bytes


def machine_of(chain: Chain, stage: Stage, nodes: Sequence[Nodes]) -> Machine:
    """What one task of this stage has to compute with.

    Raises:
        SettingsError: GPU_MEMORY_GB is no number, or options for sbatch cannot be read.
    """
    given = _given_memory(chain.variables)
    ram: int | None
    if not chain.on_slurm:
        gpus = gpu_count() if stage.gpu else 0
        local = local_gpus() if gpus else ()
        if given is not None:
            local = tuple(Gpu(one.name, given) for one in local) or (Gpu("the GPU", given),)
        ram, source = available_ram()
        source = source.removeprefix("RAM, ").removesuffix(" of /proc/meminfo")
        return Machine(gpus, local if gpus else (), ram, source)
    asked = options_of(stage, chain.variables)
    count, kind = asked_gpus(asked)
    here = [one for one in nodes if _is_of(one, asked.get("partition", ""))]
    found = {name for one in here for name in gpu_types(one.gres) if not kind or name.lower() == kind.lower()}
    if kind and not found:
        found = {kind}
    kinds = tuple(Gpu(name or "gpu", given if given is not None else gpu_memory(name)) for name in sorted(found))
    if count and not kinds and given is not None:
        kinds = (Gpu("gpu", given),)
    ram, source = _asked_memory(asked, stage, chain.variables, count, here)
    return Machine(count, kinds if count else (), ram, source)


def parallel_tasks(chain: Chain, stage: Stage) -> int:
    """How many tasks of a stage may be at work at once."""
    tasks = chain.tasks(stage)
    if chain.on_slurm:
        return tasks
    if chain.settings.pipeline_jobs:
        return min(tasks, chain.settings.pipeline_jobs)
    if stage.gpu and (gpus := gpu_count()):
        return min(tasks, gpus)
    return max(1, min(tasks, cores() // threads(stage, chain.variables, cores())))


def options_of(stage: Stage, variables: Mapping[str, str]) -> dict[str, str]:
    """What a stage asks of Slurm: options over variables over its script's header."""
    options = header(repository() / stage.script)
    for name, variable in _VARIABLES.items():
        if variables.get(variable):
            options = _without_rivals(options, name) | {name: variables[variable]}
    for name, value in _read_words(sbatch_words(stage, variables)):
        options = _without_rivals(options, name) | {name: value}
    return options


def asked_gpus(options: Mapping[str, str]) -> tuple[int, str]:
    """How many GPUs a node is to have, and of what type (empty: any)."""
    for name in _GPU_OPTIONS:
        if name in options:
            kind, _, number = options[name].rpartition(":")
            return (int(number), kind) if number.isdecimal() else (1, number)
    for part in options.get("gres", "").split(","):
        words = part.strip().split("(")[0].split(":")
        if words[0] == "gpu":
            count = next((int(word) for word in words[1:] if word.isdecimal()), 1)
            return count, next((word for word in words[1:] if not word.isdecimal()), "")
    return 0, ""


def gpu_types(gres: str) -> list[str]:
    """Types of the GPUs in a node's gres; an empty one for GPUs without a type."""
    types = []
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = part.strip().split(":")
        if words[0] == "gpu":
            types.append(next((word for word in words[1:] if not word.isdecimal()), ""))
    return types


def gpu_memory(name: str) -> int | None:
    """Bytes of a GPU by what it is called, such as ``a100_3g.20gb`` or ``nvidia_rtx_a6000``; None: unknown."""
    if size := re.search(r"(\d+)\s*gi?b", name, re.IGNORECASE):
        return int(size[1]) * GB
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = next((kind for kind in sorted(_SIZES, key=len, reverse=True) if kind in plain), None)
    return None if known is None else _SIZES[known] * GB


def local_gpus() -> tuple[Gpu, ...]:
    """GPUs of this machine."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    return tuple(
        Gpu(name.strip(), int(size) << 20 if size.strip().isdecimal() else gpu_memory(name))
        for name, _, size in (line.rpartition(",") for line in _output(command).splitlines())
        if name.strip()
    )


def read_nodes() -> list[Nodes]:
    """The cluster's nodes, partition by partition; none where ``sinfo`` does not answer."""
    if shutil.which("sinfo") is None:
        return []
    out = []
    for line in _output(["sinfo", "--noheader", "--format=%P|%G|%m"]).splitlines():
        partition, _, rest = line.partition("|")
        gres, _, memory = rest.rpartition("|")
        digits = memory.strip().rstrip("+")
        if digits.isdecimal():
            out.append(Nodes(partition.rstrip("*"), partition.endswith("*"), gres, int(digits) << 20))
    return out


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _is_of(nodes: Nodes, partitions: str) -> bool:
    return nodes.partition in partitions.split(",") if partitions else nodes.default


def _without_rivals(options: Mapping[str, str], name: str) -> dict[str, str]:
    """Options that say the same thing in another way do not stand beside each other."""
    rivals: tuple[str, ...] = ()
    if name in (*_GPU_OPTIONS, "gres"):
        rivals = (*_GPU_OPTIONS, "gres") if name == "gres" else _GPU_OPTIONS
    elif name.startswith("mem"):
        rivals = ("mem", "mem-per-cpu", "mem-per-gpu")
    return {key: value for key, value in options.items() if key not in rivals}


def _read_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """Options as users write them: ``--mem=4G``, ``--mem 4G``, ``-p gpu``, ``-pgpu``."""
    found = []
    for word, after in pairwise([*words, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name, value if equals else "" if after.startswith("-") else after))
        elif word.startswith("-") and word[1:2] in _SHORT:
            found.append((_SHORT[word[1]], word[2:] or after))
    return found


def _given_memory(variables: Mapping[str, str]) -> int | None:
    value = variables.get(GPU_MEMORY_SETTING, "")
    if not value:
        return None
    try:
        size = float(value)
    except ValueError:
        size = 0.0
    if not 0 < size < 10_000:
        raise SettingsError(f"{GPU_MEMORY_SETTING}={value}: no size of a GPU -> give GB, such as 80")
    return int(size * GB)


def _asked_memory(
    options: Mapping[str, str], stage: Stage, variables: Mapping[str, str], gpus: int, nodes: Sequence[Nodes]
) -> tuple[int | None, str]:
    """Bytes of RAM that a task asks for; ``0`` stands for all that a node has."""
    for name, factor in (("mem", 1), ("mem-per-cpu", threads(stage, variables)), ("mem-per-gpu", max(gpus, 1))):
        value = options.get(name, "")
        if found := re.fullmatch(r"(\d+)([KMGT]?)B?", value.strip().upper()):
            if size := int(found[1]) * _UNITS[found[2]] * factor:
                shown = _VARIABLES[name] if variables.get(_VARIABLES[name]) else f"--{name}"
                return size, f"{shown}={value}"
            if nodes:
                return min(one.memory for one in nodes), "the smallest node of the partition"
    return None, ""

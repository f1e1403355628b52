"""Free RAM within the limits of machine, control group and Slurm job, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from arena_distill.models.free_memory import available_memory, available_ram

GIB = 1 << 30
UNLIMITED = 9223372036854771712  # what version 1 shows when no limit is set


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 20 GiB available and no control groups."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal:  {32 * GIB // 1024} kB\nMemFree: 9 kB\nMemAvailable:  {20 * GIB // 1024} kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def group(machine: Path, path: str, version: int, limit: int | str, used: int, cache: int = 0) -> None:
    directory = machine / "cgroup" / ("memory" if version == 1 else "") / path
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit_file, use_file, key = names if version == 1 else ("memory.max", "memory.current", "inactive_file")
    (directory / limit_file).write_text(f"{limit}\n")
    (directory / use_file).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{key} {cache}\nactive_file 7\n")


def ram(machine: Path, **environment: str) -> tuple[int, str]:
    return available_ram(machine / "proc", machine / "cgroup", environment)


def test_without_limits_it_is_what_the_kernel_calls_available(machine: Path) -> None:
    assert ram(machine) == (20 * GIB, "RAM, MemAvailable of /proc/meminfo")


def test_version_2_counts_reclaimable_cache_as_free(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/job\n")
    group(machine, "job", 2, 8 * GIB, 5 * GIB, cache=2 * GIB)
    assert ram(machine) == (5 * GIB, "RAM, memory.max of the control group")


def test_version_2_obeys_a_limit_on_any_group_above(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/slurm/job_7/step_0/task_0\n")
    group(machine, "slurm/job_7/step_0/task_0", 2, "max", GIB)
    group(machine, "slurm/job_7", 2, 4 * GIB, GIB)
    group(machine, "slurm", 2, "max", 9 * GIB)
    assert ram(machine)[0] == 3 * GIB


def test_version_1_reads_the_memory_controller_only(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("9:cpu,cpuacct:/a\n4:memory:/b/c\n0::/\n")
    group(machine, "b", 1, UNLIMITED, 7 * GIB)
    group(machine, "b/c", 1, 6 * GIB, 4 * GIB, cache=GIB)
    assert ram(machine) == (3 * GIB, "RAM, memory.limit_in_bytes of the control group")


def test_a_container_that_sees_only_the_root_group_obeys_that(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("4:memory:/docker/0123\n0::/../../elsewhere\n")
    group(machine, "", 1, 2 * GIB, GIB)
    assert ram(machine)[0] == GIB


def test_no_limit_set_leaves_the_machine(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("4:memory:/\n0::/\n")
    group(machine, "", 1, UNLIMITED, 30 * GIB)
    group(machine, "", 2, "max", 30 * GIB)
    assert ram(machine)[0] == 20 * GIB


def test_a_group_over_its_limit_has_nothing_free(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/\n")
    group(machine, "", 2, GIB, 2 * GIB)
    assert ram(machine)[0] == 0


def test_slurm_bounds_the_job_in_mebibytes(machine: Path) -> None:
    assert ram(machine, SLURM_MEM_PER_NODE="4096") == (4 * GIB, "RAM, SLURM_MEM_PER_NODE of the Slurm job")
    assert ram(machine, SLURM_MEM_PER_CPU="2048", SLURM_CPUS_ON_NODE="3")[0] == 6 * GIB
    assert ram(machine, SLURM_MEM_PER_NODE="0")[0] == 20 * GIB, "--mem=0 means the whole node"
    assert ram(machine, SLURM_MEM_PER_NODE="4096000")[0] == 20 * GIB


def test_a_system_without_proc_still_answers(tmp_path: Path) -> None:
    assert available_ram(tmp_path, tmp_path, {})[0] > 0


def test_this_machine_has_some_memory() -> None:
    free, source = available_memory()
    assert free > 0
    assert source.startswith(("RAM", "GPU"))

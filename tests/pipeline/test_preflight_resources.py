"""Disk and memory: what is estimated, held against what is really written, and against what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arena_distill.models.architecture import KNOWN
from arena_distill.pipeline.preflight_chain import Chain, steps
from arena_distill.pipeline.preflight_disk import Need, adapter_parameters, highest
from arena_distill.pipeline.preflight_machines import (
    Nodes,
    asked_gpus,
    gpu_memory,
    gpu_types,
    machine_of,
    options_of,
    parallel_tasks,
)
from arena_distill.pipeline.preflight_memory import inference_bytes
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.stages import DISTILL_STUDENT, LORA_ENSEMBLE, MAKE_FOLDS, TRAIN_TEACHERS
from tests.pipeline.preflight_runs import copy_model, look, rewrite

GB = 10**9


# Disk


def test_an_adapter_has_as_many_parameters_as_peft_makes(backbones: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from arena_distill.models.adapters import add_lora
    from arena_distill.models.architecture import architecture_of

    for family in ("llama", "qwen2", "gemma2"):
        model = AutoModelForSequenceClassification.from_pretrained(backbones / family, num_labels=3)
        adapted = add_lora(model, base=str(backbones / family), r=8, alpha=16, dropout=0.0, train_head=False)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert adapter_parameters(architecture_of(str(backbones / family)), 8) == trained, family


def test_the_highest_moment_and_what_could_go_before_it() -> None:
    place = Path()
    needs = [
        Need(1, "merged", place, stays=100, meanwhile=30, spare_after=4),
        Need(3, "adapters", place, stays=20, meanwhile=50),
        Need(6, "merged student", place, stays=40, meanwhile=10),
    ]
    assert highest(needs, deleting=False) == 170  # in step 3, and in step 6
    assert highest(needs, deleting=True) == 170  # step 3 comes before anything may go
    late = [*needs, Need(7, "quantized", place, stays=60)]
    assert highest(late, deleting=False) == 220
    # The merged ones go after step 4, whether or not that has anything to write, and step 3 stays the highest.
    assert highest(late, deleting=True) == 170
    students = [*late, Need(5, "students", place, meanwhile=200)]
    assert highest(students, deleting=False) == 320
    assert highest(students, deleting=True) == 220


def test_a_disk_that_is_too_small(profile: Path) -> None:
    """A hundred merged copies of 141 GB fit nowhere."""
    settings = {"LLAMA_FT_BASE": "meta-llama/Meta-Llama-3-70B-Instruct", "TEACHER_MERGE": 1, "N_FOLDS": 100}
    seen = look("--profile", str(profile), "--from", "2", "--to", "3", **settings)
    assert "100 merged small of 141 GB" in seen.one("ok", "disk", "step 3").said
    seen.one("fix", "disk", "at the highest", "are free")
    merged = look("--profile", str(profile), "--from", "2", "--to", "3", **settings | {"TEACHER_MERGE": "auto"})
    assert "merged" not in merged.one("ok", "disk", "step 3: ").said


def test_a_full_disk_by_what_is_free(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chain, on a disk that has less and less room."""
    import shutil

    real = shutil.disk_usage
    flags = ("--profile", str(profile), "--to", "4")
    said = look(*flags).one("ok", "disk", "at the highest").said
    peak = float(said.partition(" MB")[0].replace(",", "")) * 1e6

    for share, level in ((1.2, "ok"), (1.03, "warning"), (0.5, "fix")):
        free = int(peak * share)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path, free=free: real(path)._replace(free=free))
            look(*flags).one(level, "disk", "at the highest")


def test_scratch_and_output_on_two_disks_are_counted_apart(profile: Path, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    seen = look("--profile", str(profile), SCRATCH_BASE=memory)
    assert len([line for line in seen.lines if line.subject.startswith("disk of")]) == 2
    assert "tried with a file" in seen.one("ok", "places", "SCRATCH_BASE").said


def test_places_that_cannot_be_written(profile: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for setting in ("OUTPUT_DIR", "HF_HOME", "SCRATCH_BASE"):
        seen = look("--profile", str(profile), **{setting: tmp_path / "file" / "below"})
        assert seen.code == 3, setting
        seen.one("fix", "places", setting, "no directory")
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc")
    look("--profile", str(profile), SCRATCH_BASE="/proc/self").one("fix", "places", "SCRATCH_BASE", "cannot be written")


# What tasks ask for


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("a100", 40), ("nvidia_a100-sxm4-80gb", 80), ("a100_3g.20gb", 20), ("h100", 80), ("H100_NVL", 94)],
        *[("tesla_v100-sxm2-32gb", 32), ("v100", 16), ("nvidia_rtx_a6000", 48), ("rtx6000", 24), ("l40s", 48)],
        *[
            ("l4", 24),
            ("t4", 16),
            ("geforce_rtx_3090", 24),
            ("rtx_4090", 24),
            ("h200", 141),
            ("gh200", 96),
            ("a40", 48),
        ],
        *[("rtx_6000_ada", 48), ("rtx6000ada", 48), ("quadro", None), ("", None), ("gpu", None)],
    ],
)
def test_gpus_by_what_clusters_call_them(name: str, size: int | None) -> None:
    assert gpu_memory(name) == (None if size is None else size * GB)


@pytest.mark.parametrize(
    ("gres", "types"),
    [
        ("gpu:a100:4(S:0-1)", ["a100"]),
        ("gpu:4", [""]),
        ("gpu:v100:2(S:0),gpu:t4:1(S:1),nvme:1", ["v100", "t4"]),
        ("gpu:a100_1g.5gb:7(S:0,2)", ["a100_1g.5gb"]),
        ("(null)", []),
        ("mps:100", []),
    ],
)
def test_gres_of_nodes(gres: str, types: list[str]) -> None:
    assert gpu_types(gres) == types


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"gres": "gpu:1"}, (1, "")),
        ({"gres": "gpu:a100:2"}, (2, "a100")),
        ({"gres": "gpu"}, (1, "")),
        ({"gres": "nvme:1,gpu:h100"}, (1, "h100")),
        ({"gres": "none"}, (0, "")),
        ({"gpus": "a100:4"}, (4, "a100")),
        ({"gpus-per-node": "2"}, (2, "")),
        ({}, (0, "")),
    ],
)
def test_gpus_that_a_job_asks_for(options: dict[str, str], asked: tuple[int, str]) -> None:
    assert asked_gpus(options) == asked


def test_what_a_stage_asks_for_is_the_users_then_the_profiles_then_the_scripts() -> None:
    header = options_of(TRAIN_TEACHERS, {})
    assert (header["gres"], header["mem"]) == ("gpu:1", "160G")
    variables = {"SBATCH_GRES": "none", "SBATCH_MEM_PER_CPU": "2G", "SBATCH_PARTITION": "a"}
    asked = options_of(TRAIN_TEACHERS, variables)
    assert (asked["gres"], asked["mem-per-cpu"], asked["partition"]) == ("none", "2G", "a")
    assert "mem" not in asked
    words = {"PIPELINE_SBATCH": "-p b --mem 7G", "STEP3_SBATCH": "--gres=gpu:t4:1 -pc"}
    asked = options_of(TRAIN_TEACHERS, variables | words)
    assert (asked["gres"], asked["mem"], asked["partition"]) == ("gpu:t4:1", "7G", "c")
    assert options_of(LORA_ENSEMBLE, variables | words)["partition"] == "b"


def _chain(*, on_slurm: bool = True, **variables: str) -> Chain:
    return Chain(PipelineSettings(), variables, "", on_slurm)


NODES = (
    Nodes("gpu", True, "gpu:a100:4(S:0-1)", 500 << 30),
    Nodes("gpu", True, "gpu:v100:2", 200 << 30),
    Nodes("cpu", False, "(null)", 100 << 30),
)


def test_a_task_may_get_any_gpu_of_its_partition() -> None:
    machine = machine_of(_chain(), DISTILL_STUDENT, NODES)
    assert {(gpu.name, gpu.memory) for gpu in machine.kinds} == {("a100", 40 * GB), ("v100", 16 * GB)}
    assert (machine.gpus, machine.ram) == (1, 64 << 30)
    only = machine_of(_chain(SBATCH_GRES="gpu:a100:2"), DISTILL_STUDENT, NODES)
    assert ([gpu.name for gpu in only.kinds], only.gpus) == (["a100"], 2)
    said = machine_of(_chain(SBATCH_GRES="gpu:a100:2", GPU_MEMORY_GB="80"), DISTILL_STUDENT, NODES)
    assert [gpu.memory for gpu in said.kinds] == [80 * GB]
    none = machine_of(
        _chain(SBATCH_GRES="none", SBATCH_MEM_PER_NODE="0", SBATCH_PARTITION="cpu"), DISTILL_STUDENT, NODES
    )
    assert (none.gpus, none.kinds, none.ram) == (0, (), 100 << 30)
    assert machine_of(_chain(), MAKE_FOLDS, NODES).gpus == 0


@pytest.mark.parametrize("value", ["big", "-1", "0", "1e9"])
def test_a_size_of_a_gpu_that_is_none(value: str) -> None:
    with pytest.raises(SettingsError, match="GPU_MEMORY_GB"):
        machine_of(_chain(GPU_MEMORY_GB=value), DISTILL_STUDENT, NODES)


def test_memory_for_each_cpu_counts_all_of_them() -> None:
    machine = machine_of(_chain(SBATCH_MEM_PER_CPU="2G", STEP5_CPUS="3"), DISTILL_STUDENT, NODES)
    assert machine.ram == 6 << 30


def test_tasks_side_by_side() -> None:
    assert parallel_tasks(_chain(on_slurm=False), LORA_ENSEMBLE) == 1


# Memory


def test_inference_takes_more_with_more_tokens_and_fewer_with_fewer_bits() -> None:
    arch = KNOWN["google/gemma-2-9b-it"]
    small = inference_bytes(arch, 2, tokens=1000, length=1000, on_gpu=True)
    assert 18.5 * GB < small < 21 * GB  # its weights in 16 bits are 18.5 GB
    assert inference_bytes(arch, 2, tokens=16_000, length=1000, on_gpu=True) > small
    assert inference_bytes(arch, 0.52, tokens=1000, length=1000, on_gpu=True) < small / 2


def _large(backbones: Path, target: Path) -> Path:
    """A directory that says of itself that it is a 70B model; its weights are those of a tiny one."""
    model = copy_model(backbones / "llama", target)
    arch = KNOWN["meta-llama/Meta-Llama-3-70B-Instruct"]
    sizes = {"hidden_size": arch.hidden, "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads,
             "num_key_value_heads": 8, "intermediate_size": arch.intermediate, "vocab_size": arch.vocabulary,
             "head_dim": 128}  # fmt: skip
    rewrite(model / "config.json", json.dumps(json.loads((model / "config.json").read_text()) | sizes))
    return model


def test_a_model_that_no_memory_here_holds(profile: Path, backbones: Path, tmp_path: Path) -> None:
    model = _large(backbones, tmp_path / "large")
    seen = look("--profile", str(profile), LLAMA_BASE=model, SBATCH_GRES="none")
    assert seen.code == 2
    for step in ("step 1", "step 3", "step 4"):
        seen.one("fix", "memory", f"{step}, RAM", "on the CPU")


def test_a_batch_that_no_memory_holds_and_what_would_fit(profile: Path) -> None:
    # 65536 rows of 4096 tokens: the activations alone are many terabytes; one row is not
    seen = look("--profile", str(profile), STUDENT_PER_DEVICE_BS=65536, STUDENT_MAXLEN=4096,
                STUDENT_GRADIENT_CHECKPOINTING=0)  # fmt: skip
    line = seen.one("fix", "memory", "step 5, RAM")
    assert "65536 × 4096 tokens" in line.said
    assert "STUDENT_PER_DEVICE_BS=1 with more STUDENT_GRAD_ACCUM" in line.advice


def test_a_smaller_base_is_foretold(profile: Path, backbones: Path, tmp_path: Path) -> None:
    model = _large(backbones, tmp_path / "large")
    settings = {"LLAMA_BASE": model, "LLAMA_LADDER": backbones / "llama", "AUTO_DOWNGRADE": 1}
    seen = look("--profile", str(profile), **settings)
    assert seen.code == 0
    assert str(backbones / "llama") in seen.one("warning", "memory", "AUTO_DOWNGRADE").said
    seen.one("ok", "memory", "step 3, RAM")
    nothing = look("--profile", str(profile), **settings | {"LLAMA_LADDER": model})
    nothing.one("fix", "memory", "AUTO_DOWNGRADE", "needs")


def test_steps_in_words() -> None:
    assert steps([3]) == "step 3"
    assert steps([1, 2, 3, 5, 9, 8]) == "steps 1-3, 5, 8-9"

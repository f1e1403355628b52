"""Memory that each stage will need at its peak, estimated from the models' dimensions, against what its task has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.inference.tta_lengths import lengths_of
from arena_distill.models.architecture import Architecture
from arena_distill.models.memory import (
    CUDA_CONTEXT,
    FRAGMENTATION,
    NF4_BYTES,
    TrainingShape,
    estimate_memory,
)
from arena_distill.pipeline.preflight_chain import Chain, gigabytes, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.pipeline.preflight_machines import (
    GPU_MEMORY_SETTING,
    Gpu,
    Machine,
    Nodes,
    machine_of,
    parallel_tasks,
)
from arena_distill.pipeline.preflight_models import Models
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
    Stage,
)
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings

MEMORY = Topic("memory", EXIT_BAD_SETTINGS)

_PROCESS = 8 * 10**8
"""Bytes of Python with torch and transformers, before any model."""
_CLOSE = 0.9  # of what there is: an estimate above it may or may not fit
_Quant = Literal["nf4", "none"]


@dataclass(frozen=True)
class Load:
    """What one step needs for one model."""

    step: int
    what: str
    peak: int  # bytes, where it computes
    host: int = 0  # bytes of RAM that it needs although it computes on a GPU
    advice: str = ""
    smaller: Mapping[str, int] = field(default_factory=dict)  # change of settings -> peak with it


def check_memory(chain: Chain, models: Models, done: frozenset[int], nodes: Sequence[Nodes]) -> Iterator[Finding]:
    """Every stage that computes with models, and is not done."""
    unknown: list[Load] = []
    for stage in chain.stages:
        if stage.gpu and stage.number not in done:
            subject = f"step {stage.number}"
            yield from guarded(MEMORY, subject, partial(_stage, chain, models, stage, nodes, unknown))
    if unknown:
        largest = max(unknown, key=lambda load: load.peak)
        yield MEMORY.warning(
            f"{steps([load.step for load in unknown])}, GPU",
            f"up to about {gigabytes(largest.peak)} (step {largest.step} {largest.what}), and nothing tells how much "
            "their GPU has", f"{GPU_MEMORY_SETTING}=80 says so (in GB)",
        )  # fmt: skip


def base_quant(quant: str, lora_r: int, machine: Machine) -> _Quant:
    """What ``auto`` comes to on this machine, as in training."""
    if quant == "auto":
        return "nf4" if lora_r and machine.gpus else "none"
    return "nf4" if quant == "nf4" else "none"


def inference_bytes(
    arch: Architecture, bytes_each: float, *, tokens: int, length: int, on_gpu: bool, compute_bytes: int = 2
) -> int:
    """Peak memory of a forward pass for classification.

    Args:
        arch: of the model.
        bytes_each: of an element of the layers' matrices.
        tokens: of a batch, padding included.
        length: of its longest row, tokens.
        on_gpu: count a CUDA context.
        compute_bytes: of an activation, and of a weight outside the layers' matrices.
    """
    outer = arch.vocabulary * arch.hidden + arch.layers * (arch.layer_parameters - arch.linear_parameters)
    weights = arch.layers * arch.linear_parameters * bytes_each + outer * compute_bytes
    attention = compute_bytes * 4 * arch.heads * arch.head_dim
    if arch.model_type == "gemma2":  # eager attention makes the scores
        attention += arch.heads * length * (4 + compute_bytes)
    mlp = compute_bytes * 3 * arch.intermediate
    # Residual stream and a norm of it, which is computed in float32; attention and MLP take turns.
    size = weights + tokens * (arch.hidden * (2 * compute_bytes + 4) + max(attention, mlp))
    return int(size * (1 + FRAGMENTATION)) + (CUDA_CONTEXT if on_gpu else 0)


def _stage(
    chain: Chain, models: Models, stage: Stage, nodes: Sequence[Nodes], unknown: list[Load]
) -> Iterator[Finding]:
    machine = machine_of(chain, stage, nodes)
    loads = list(_LOADS[stage.name](chain, models, machine))
    known = [load for load in loads if load.peak]
    if not known:
        subject = f"step {stage.number}"
        yield MEMORY.warning(
            subject, "its models are not at hand, and their dimensions are not known: no estimate",
            "name a model that is here, or be ready for a smaller batch",
        )  # fmt: skip
        return
    largest = max(known, key=lambda load: load.peak)
    if not machine.gpus:
        yield _on_cpu(chain, stage, largest, machine)
    elif any(gpu.memory is not None for gpu in machine.kinds):
        yield _on_gpu(largest, machine)
    else:
        unknown.append(largest)
    host = max(known, key=lambda load: load.host)
    if machine.gpus and host.host and machine.ram is not None:
        yield from _on_host(host, machine)


def _on_gpu(load: Load, machine: Machine) -> Finding:
    subject, need = f"step {load.step}, GPU", f"{load.what}: about {gigabytes(load.peak)}"
    sized = [gpu for gpu in machine.kinds if gpu.memory is not None]
    small = min(sized, key=_size)
    if load.peak <= _CLOSE * _size(small):
        return MEMORY.ok(subject, f"{need} of {gigabytes(_size(small))} ({small.name})")
    enough = [gpu for gpu in sized if load.peak <= _CLOSE * _size(gpu)]
    if enough:
        return MEMORY.fix(
            subject, f"{need}; a task may get {small.name} with {gigabytes(_size(small))}",
            f"ask for one that has it: SBATCH_GRES=gpu:{enough[0].name}:{machine.gpus}, "
            f"or STEP{load.step}_SBATCH=--gres=…",
        )  # fmt: skip
    large = max(sized, key=_size)
    return _too_small(subject, need, load, _size(large), f"{gigabytes(_size(large))} ({large.name})")


def _too_small(subject: str, need: str, load: Load, size: int, shown: str) -> Finding:
    """Above what there is, or close to it."""
    if load.peak <= size:
        return MEMORY.warning(subject, f"{need} of {shown}: it may or may not fit", load.advice or "a smaller batch")
    fitting = [f"{change} ({gigabytes(peak)})" for change, peak in load.smaller.items() if peak <= _CLOSE * size]
    ways = f"{fitting[0]}; " if fitting else ""
    return MEMORY.fix(subject, f"{need}, and there are {shown}", ways + (load.advice or "a larger machine"))


def _on_cpu(chain: Chain, stage: Stage, load: Load, machine: Machine) -> Finding:
    at_once = 1 if chain.on_slurm else parallel_tasks(chain, stage)
    peak = at_once * (load.peak + _PROCESS)
    subject = f"step {load.step}, RAM"
    tasks = f" for {at_once} tasks at once" if at_once > 1 else ""
    need = f"{load.what}: about {gigabytes(peak)}{tasks} on the CPU"
    if machine.ram is None:
        return MEMORY.ok(subject, f"{need}; the task asks for no certain memory")
    if peak <= _CLOSE * machine.ram:
        return MEMORY.ok(subject, f"{need} of {gigabytes(machine.ram)} ({machine.ram_source})")
    smaller = {change: at_once * (size + _PROCESS) for change, size in load.smaller.items()}
    load = replace(load, peak=peak, smaller=smaller, advice=_more_ram(chain, load, at_once))
    return _too_small(subject, need, load, machine.ram, f"{gigabytes(machine.ram)} ({machine.ram_source})")


def _more_ram(chain: Chain, load: Load, at_once: int) -> str:
    if chain.on_slurm:
        return f"SBATCH_MEM_PER_NODE={-(-(load.peak + _PROCESS) // 2**30) + 1}G"
    return (
        f"--jobs {max(1, at_once // 2)}, or a smaller batch" if at_once > 1 else "a smaller model, or another machine"
    )


def _on_host(load: Load, machine: Machine) -> Iterator[Finding]:
    """What is compared on the CPU after merging, or passes through RAM."""
    need, ram = load.host + _PROCESS, machine.ram or 0
    said = f"{load.what}: about {gigabytes(need)} while the merged model is proved on the CPU"
    subject = f"step {load.step}, RAM"
    if need <= ram:
        yield MEMORY.ok(subject, f"{said}, of {gigabytes(ram)} ({machine.ram_source})")
    else:
        more = f"SBATCH_MEM_PER_NODE={-(-need // 2**30) + 1}G"
        merge = {1: "POSTPRE_MERGE=0 does without", 3: "TEACHER_MERGE=0 does without"}.get(load.step)
        yield MEMORY.fix(subject, f"{said}, and there are {gigabytes(ram)} ({machine.ram_source})",
                         more + (f"; {merge}" if merge else ""))  # fmt: skip


def _size(gpu: Gpu) -> int:
    return gpu.memory or 0


def _training(step: int, name: str, arch: Architecture, shape: TrainingShape, prefix: str, host: int = 0) -> Load:
    """A training step, and what changes of its settings would save."""
    changes = {
        f"{prefix}_QUANT=nf4": replace(shape, quant="nf4") if shape.lora_r else shape,
        f"{prefix}_GRADIENT_CHECKPOINTING=1": replace(shape, gradient_checkpointing=True),
        f"{prefix}_PER_DEVICE_BS=1 with more {prefix}_GRAD_ACCUM": replace(shape, rows=1),
        f"{prefix}_MAXLEN={shape.max_length // 2}": replace(shape, max_length=max(1, shape.max_length // 2)),
    }
    peak = estimate_memory(arch, shape).total
    smaller = {words: estimate_memory(arch, changed).total for words, changed in changes.items() if changed != shape}
    in_words = f"trains {name}, {shape.rows} × {shape.max_length} tokens{' in NF4' if shape.quant == 'nf4' else ''}"
    advice = f"fewer rows ({prefix}_PER_DEVICE_BS), a shorter {prefix}_MAXLEN, or a larger GPU"
    return Load(step, in_words, peak, host, advice, smaller)


def post_pretraining_shape(settings: PostPretrainSettings, machine: Machine) -> TrainingShape:
    """Batches of step 1, as it tells AUTO_DOWNGRADE of them."""
    quant = base_quant(settings.postpre_quant, settings.postpre_lora_r, machine)
    return TrainingShape(
        rows=settings.postpre_per_device_bs,
        max_length=settings.postpre_maxlen,
        lora_r=settings.postpre_lora_r,
        quant=quant,
        weight_bytes=2 if settings.postpre_bf16 else 4,
        gradient_checkpointing=settings.postpre_gradient_checkpointing,
        full_vocabulary_logits=settings.postpre_objective == "lm",
        n_devices=machine.gpus if settings.postpre_fsdp and quant == "none" and machine.gpus else 1,
        on_gpu=machine.gpus > 0,
    )


def _post_pretraining(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings = chain.of(PostPretrainSettings)
    if settings is None:
        return
    shape = post_pretraining_shape(settings, machine)
    for plan in settings.plans:
        base = chain.base(plan.base)
        arch = models.get(base).architecture
        if arch is not None:
            host = arch.parameters * shape.weight_bytes if settings.postpre_merge else 0
            yield _training(1, base, arch, shape, "POSTPRE", host)


def _teacher_training(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings = chain.of(TeacherSettings)
    for name, (_, base) in settings.families.items() if settings is not None else ():
        assert settings is not None
        arch = models.get(base).architecture
        if arch is None:
            continue
        own = settings.of_family(name)
        quant = base_quant(own.teacher_quant, own.teacher_lora_r, machine)
        shape = TrainingShape(
            rows=own.teacher_per_device_bs,
            max_length=own.teacher_maxlen,
            lora_r=own.teacher_lora_r,
            quant=quant,
            weight_bytes=2 if own.teacher_bf16 and own.teacher_lora_r else 4,
            gradient_checkpointing=own.teacher_gradient_checkpointing,
            n_devices=machine.gpus if own.teacher_fsdp and quant == "none" and machine.gpus else 1,
            on_gpu=machine.gpus > 0,
        )
        merges = own.teacher_lora_r and (own.teacher_merge == "1" or (own.teacher_merge == "auto" and quant == "none"))
        encoder = settings.encoder_ft_base and name == settings.encoder_name
        host = arch.parameters * shape.weight_bytes if merges else 0
        yield _training(3, name, arch, shape, "ENCODER" if encoder else "TEACHER", host)


def _teacher_inference(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings, teachers = chain.of(OofSettings), chain.of(TeacherSettings)
    if settings is None or teachers is None:
        return
    for name, (_, base) in teachers.families.items():
        arch = models.get(base).architecture
        if arch is None or (settings.wanted_models and name not in settings.wanted_models):
            continue
        own = teachers.of_family(name)
        quant = settings.infer_quant if settings.infer_quant != "auto" else base_quant(
            own.teacher_quant, own.teacher_lora_r, machine)  # fmt: skip
        length = settings.infer_max_seq_len or own.teacher_maxlen
        compute = 2 if own.teacher_bf16 else 4
        peak = inference_bytes(
            arch, NF4_BYTES if quant == "nf4" else compute, tokens=max(settings.infer_batch_tokens, length),
            length=length, on_gpu=machine.gpus > 0, compute_bytes=compute,
        )  # fmt: skip
        if machine.gpus > 1:
            peak = -(-peak // machine.gpus)  # spread over all of them
        words = (
            f"scores with {name}, {settings.infer_batch_tokens:,} tokens a batch{' in NF4' if quant == 'nf4' else ''}"
        )
        yield Load(
            4, words, peak, advice="smaller INFER_BATCH_TOKENS or INFER_MAX_SEQ_LEN, INFER_QUANT=nf4, or a larger GPU"
        )


def _student_training(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings = chain.of(DistillSettings)
    if settings is None:
        return
    arch = models.get(settings.student_model_name).architecture
    if arch is None:
        return
    quant = base_quant(settings.student_quant, settings.student_lora_r, machine)
    shape = TrainingShape(
        rows=settings.student_per_device_bs,
        max_length=settings.student_maxlen,
        lora_r=settings.student_lora_r,
        quant=quant,
        weight_bytes=2 if settings.student_bf16 and settings.student_lora_r else 4,
        gradient_checkpointing=settings.student_gradient_checkpointing,
        n_devices=machine.gpus if settings.student_fsdp and quant == "none" and machine.gpus else 1,
        on_gpu=machine.gpus > 0,
    )
    yield _training(5, settings.student_model_name, arch, shape, "STUDENT")


def _averaging(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings, student = chain.of(AverageSettings), chain.of(DistillSettings)
    if settings is None or student is None:
        return
    arch = models.get(student.student_model_name).architecture
    if arch is None:
        return
    half = settings.average_bf16 == "1" or (settings.average_bf16 == "auto" and machine.gpus > 0)
    compute = 2 if half else 4
    peak = inference_bytes(
        arch, compute, tokens=settings.average_eval_tokens, length=student.student_maxlen, on_gpu=machine.gpus > 0,
        compute_bytes=compute,
    )  # fmt: skip
    host = 4 * arch.parameters  # the proof of the merge computes in float32, on the CPU
    yield Load(6, "scores the average", peak, host, "smaller AVERAGE_EVAL_TOKENS, or a larger GPU")


def _quantizing(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings, student = chain.of(QuantizeSettings), chain.of(DistillSettings)
    if settings is None or student is None:
        return
    arch = models.get(student.student_model_name).architecture
    if arch is None:
        return
    length = settings.quant_max_length or student.student_maxlen
    whole = 4 if settings.quant_dtype == "float32" or (settings.quant_dtype == "auto" and not machine.gpus) else 2
    peak = inference_bytes(
        arch, whole, tokens=max(settings.quant_batch_tokens, length), length=length, on_gpu=machine.gpus > 0,
        compute_bytes=whole,
    )  # fmt: skip
    yield Load(7, "compares the student before and after", peak, advice="smaller QUANT_BATCH_TOKENS, or a larger GPU")


def _predicting(chain: Chain, models: Models, machine: Machine) -> Iterator[Load]:
    settings, quantize, student = chain.of(PredictSettings), chain.of(QuantizeSettings), chain.of(DistillSettings)
    if settings is None or quantize is None or student is None:
        return
    arch = models.get(student.student_model_name).architecture
    if arch is None:
        return
    length = max(lengths_of(settings.tta_lengths), default=student.student_maxlen)
    half = settings.predict_bf16 if settings.predict_bf16 is not None else machine.gpus > 0
    compute = 2 if half else 4
    each: float = quantize.quant_bits / 8 * 1.05 if chain.runs(QUANTIZE) and machine.gpus else compute
    # Batches are halved whenever memory runs out: one row must fit.
    peak = inference_bytes(arch, each, tokens=length, length=length, on_gpu=machine.gpus > 0, compute_bytes=compute)
    yield Load(
        8, f"predicts, one row of {length:,} tokens at least", peak, advice="shorter TTA_LENGTHS, or a larger GPU"
    )


_LOADS: dict[str, Callable[[Chain, Models, Machine], Iterator[Load]]] = {
    POST_PRETRAIN.name: _post_pretraining,
    TRAIN_TEACHERS.name: _teacher_training,
    INFER_TEACHER_LOGITS.name: _teacher_inference,
    DISTILL_STUDENT.name: _student_training,
    LORA_ENSEMBLE.name: _averaging,
    QUANTIZE.name: _quantizing,
    INFER_TTA.name: _predicting,
}

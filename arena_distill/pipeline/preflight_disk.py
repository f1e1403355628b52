"""Disk that each stage will fill, from the models' sizes, against what is free in the places that it writes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.find_file import find_file
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.models.architecture import Architecture
from arena_distill.pipeline.preflight_chain import Chain, gigabytes, hub_cache, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.pipeline.preflight_machines import Nodes, machine_of, parallel_tasks
from arena_distill.pipeline.preflight_memory import base_quant
from arena_distill.pipeline.preflight_models import Model, Models
from arena_distill.runtime.artifacts import nearest_existing
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.run_settings import FoldedSettings
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
    Stage,
)
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings

DISK = Topic("disk")

GB = 10**9
_FP32 = 4
_CHECKPOINT = 12  # bytes a trained parameter: itself and AdamW's two moments, in float32
_SHARE_FOR_MERGING = 4  # TEACHER_MERGE=auto wants so many times the disk that merged copies take
_CLOSE = 0.9
_SMALL = 5 * 10**6  # tokenizer, manifest and the like


@dataclass(frozen=True)
class Need:
    """What a step writes to one place."""

    step: int
    what: str
    place: Path
    stays: int = 0  # bytes
    meanwhile: int = 0  # bytes more while the step runs
    spare_after: int = 0  # step after which nobody reads it any more; 0: it is to be kept
    guessed: bool = False  # the models are not known


def check_disk(chain: Chain, models: Models, done: frozenset[int], nodes: Sequence[Nodes]) -> Iterator[Finding]:
    """Step by step what is written, then for every disk the sum at its highest."""
    needs: list[Need] = []
    if done:
        yield DISK.ok(steps(sorted(done)), "up to date: nothing more to be written")
    for stage in chain.stages:
        subject = f"step {stage.number}"
        maker = _NEEDS.get(stage.name)
        if maker is not None and stage.number not in done:
            yield from guarded(DISK, subject, partial(_step, chain, models, stage, maker, nodes, needs))
    yield from guarded(DISK, "hub", lambda: _downloads(chain, models, needs))
    for place, of_disk in _by_disk(needs).items():
        yield from guarded(DISK, str(place), partial(_verdict, place, of_disk))


Maker = Callable[[Chain, Models, Sequence[Nodes]], "list[Need] | None"]


def _step(
    chain: Chain, models: Models, stage: Stage, maker: Maker, nodes: Sequence[Nodes], needs: list[Need]
) -> Iterator[Finding]:
    made = maker(chain, models, nodes)
    subject = f"step {stage.number}"
    if made is None:
        size = stage.disk_gb * GB
        made = [Need(stage.number, "by the table of stages", chain.settings.model_save, size, guessed=True)]
        yield DISK.warning(
            subject, f"about {gigabytes(size)}, a figure for large models: the sizes of these are not known",
            "name models that are here, or count on it",
        )  # fmt: skip
    elif made:
        stays, meanwhile = sum(need.stays for need in made), sum(need.meanwhile for need in made)
        parts = "; ".join(need.what for need in made if need.what)
        more = f", {gigabytes(meanwhile)} more while it runs" if meanwhile else ""
        yield DISK.ok(subject, f"{gigabytes(stays)}{more}: {parts}")
    needs += made


def _downloads(chain: Chain, models: Models, needs: list[Need]) -> Iterator[Finding]:
    for model in models.by_name.values():
        if model.to_fetch and model.download_bytes:
            needs.append(Need(0, model.name, hub_cache(chain.variables), model.download_bytes))
            yield DISK.ok("hub", f"{gigabytes(model.download_bytes)}: {model.name}")


def _by_disk(needs: Sequence[Need]) -> dict[Path, list[Need]]:
    """Needs by file system, named by the first place on it."""
    disks: dict[int, tuple[Path, list[Need]]] = {}
    for need in needs:
        there = nearest_existing(need.place)
        disks.setdefault(there.stat().st_dev, (there, []))[1].append(need)
    return dict(disks.values())


def _verdict(place: Path, needs: Sequence[Need]) -> list[Finding]:
    return [_judged(place, needs)]


def _judged(place: Path, needs: Sequence[Need]) -> Finding:
    free = shutil.disk_usage(place).free
    peak, thrifty = highest(needs, deleting=False), highest(needs, deleting=True)
    subject = f"disk of {place.resolve()}"
    said = f"{gigabytes(peak)} at the highest, {gigabytes(free)} are free"
    spare = [need for need in needs if need.spare_after and need.stays]
    could_go = ", ".join(
        f"{gigabytes(need.stays)} of step {need.step} after step {need.spare_after}" for need in spare
    )  # fmt: skip
    if peak <= _CLOSE * free:
        return DISK.ok(subject, said + (f" (could go: {could_go})" if could_go and peak > 0.5 * free else ""))
    sure = [need for need in needs if not need.guessed]
    if highest(sure, deleting=False) <= free < peak:
        return DISK.warning(subject, f"{said}, if the figures for large models hold", "look at the steps above")
    if peak <= free:
        return DISK.warning(subject, f"{said}: close", f"make room{f'; could go: {could_go}' if could_go else ''}")
    if thrifty <= free:
        first = min(need.spare_after for need in spare)
        return DISK.fix(
            subject, said, f"make room, choose another OUTPUT_DIR, or run --to {first}, delete what could go, and "
            f"--from {first + 1} then ({gigabytes(thrifty)}): {could_go}",
        )  # fmt: skip
    places = "OUTPUT_DIR, SCRATCH_BASE or HF_HOME"
    return DISK.fix(subject, said, f"make room, choose another {places}, fewer --folds or --families, or merge less")


def highest(needs: Sequence[Need], *, deleting: bool) -> int:
    """Bytes at the worst moment, step after step; with ``deleting``, what nobody reads any more goes."""
    peak = 0
    for step in {need.step for need in needs}:
        there = [need for need in needs if need.step <= step and not (deleting and 0 < need.spare_after < step)]
        meanwhile = sum(need.meanwhile for need in needs if need.step == step)
        peak = max(peak, meanwhile + sum(need.stays for need in there))
    return peak


def adapter_parameters(arch: Architecture, rank: int) -> int:
    """Trained parameters of LoRA on all linear modules."""
    return arch.layers * rank * sum(inputs + outputs for inputs, outputs in arch.linears.values())


def _post_pretraining(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings = chain.of(PostPretrainSettings)
    if settings is None:
        return None
    needs = []
    for plan in settings.plans:
        model = models.get(chain.base(plan.base))
        if model.architecture is None or not model.weight_bytes:
            return None
        trained = adapter_parameters(model.architecture, settings.postpre_lora_r)
        scratch = Path(settings.scratch_base) if settings.scratch_base else plan.adapter.parent
        adapter, weights = _FP32 * trained + _SMALL, model.weight_bytes + _SMALL
        needs.append(Need(1, f"adapter of {plan.family} {gigabytes(adapter)}", plan.adapter.parent, adapter))
        # The old checkpoint goes when the new one is whole.
        needs.append(Need(1, "", scratch, meanwhile=2 * _CHECKPOINT * trained))
        if plan.merged is not None:
            words = f"merged {plan.family} {gigabytes(weights)}"
            needs.append(Need(1, words, plan.merged.parent, weights, spare_after=INFER_TEACHER_LOGITS.number))
    return needs


def _folds(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings = chain.of(FoldSettings)
    if settings is None:
        return None
    files = [_train_file(settings), *settings.extra_paths]
    if not all(file.is_file() for file in files):
        return []  # said with the data
    size = settings.n_folds * sum(file.stat().st_size for file in files)
    needs = [Need(2, f"{settings.n_folds} folds of {gigabytes(size // settings.n_folds)}", settings.fold_data, size)]
    if settings.scratch_folds:
        needs.append(Need(2, "their copy on scratch", settings.scratch_folds, size))
    return needs


def _teachers(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings = chain.of(TeacherSettings)
    if settings is None:
        return None
    machine = machine_of(chain, TRAIN_TEACHERS, nodes)
    folds, at_once, place = len(chain.folds), parallel_tasks(chain, TRAIN_TEACHERS), settings.model_save
    known = {name: models.get(base) for name, (_, base) in settings.families.items()}
    merged_of_all = settings.n_folds * sum(model.weight_bytes for model in known.values())
    room = shutil.disk_usage(nearest_existing(place)).free >= _SHARE_FOR_MERGING * merged_of_all
    needs, checkpoints = [], 0
    for name, model in known.items():
        own, arch = settings.of_family(name), model.architecture
        if arch is None or not model.weight_bytes:
            return None
        trained = adapter_parameters(arch, own.teacher_lora_r) if own.teacher_lora_r else arch.parameters
        each = _FP32 * trained + _SMALL
        kind = "adapters" if own.teacher_lora_r else "models"
        needs.append(Need(3, f"{folds} {kind} {name} of {gigabytes(each)}", place, folds * each))
        checkpoints = max(checkpoints, 2 * _CHECKPOINT * trained)  # one family after the other
        quant = base_quant(own.teacher_quant, own.teacher_lora_r, machine)
        if own.teacher_lora_r and _merges(own, room, quant):
            size = folds * (model.weight_bytes + _SMALL)
            words = f"{folds} merged {name} of {gigabytes(model.weight_bytes)}"
            needs.append(Need(3, words, place, size, spare_after=INFER_TEACHER_LOGITS.number))
    needs.append(Need(3, "", place, meanwhile=at_once * checkpoints))
    return needs


def _merges(settings: TeacherSettings, room: bool, quant: str) -> bool:
    """As ``wants_merged`` will decide."""
    return settings.teacher_merge == "1" or (settings.teacher_merge == "auto" and quant == "none" and room)


def _logits(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings = chain.of(OofSettings)
    if settings is None:
        return None
    train = _train_file(settings)
    if not train.is_file():
        return []
    # Three numbers a row and teacher, in files that hold little else: far less than the texts.
    size = train.stat().st_size // 4 + _SMALL
    return [Need(4, "logits and the out-of-fold table", settings.logits_dir, size)]


def _train_file(settings: FoldedSettings) -> Path:
    try:
        return find_file(settings.train_csv, "train", "TRAIN_CSV")
    except InputError:
        return Path("no training file")


def _students(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings = chain.of(DistillSettings)
    if settings is None:
        return None
    model = models.get(settings.student_model_name)
    if model.architecture is None:
        return None
    arch, folds = model.architecture, len(chain.folds)
    trained = adapter_parameters(arch, settings.student_lora_r) if settings.student_lora_r else arch.parameters
    each = _FP32 * trained + _SMALL
    kept = 2 * _CHECKPOINT * trained  # the best and the last one stay with the student
    place = settings.student_dir(0).parent
    return [
        Need(5, f"{folds} students of {gigabytes(each)}", place, folds * each),
        Need(
            5, f"their checkpoints {gigabytes(folds * kept)}", place, folds * kept,
            meanwhile=parallel_tasks(chain, DISTILL_STUDENT) * _CHECKPOINT * trained, spare_after=5,
        ),
    ]  # fmt: skip


def _average(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings, student = chain.of(AverageSettings), chain.of(DistillSettings)
    if settings is None or student is None:
        return None
    model = models.get(student.student_model_name)
    if model.architecture is None or not model.weight_bytes:
        return None
    one = _FP32 * adapter_parameters(model.architecture, student.student_lora_r or 1) + _SMALL
    exact = one * len(settings.fold_numbers)
    own, other = (exact, one) if settings.average_method == "exact" else (one, exact)
    merged = _merged_bytes(model, settings.merged_dtype)
    return [
        Need(6, f"averaged adapter {gigabytes(own)}", settings.lora_dir.parent, own, meanwhile=other),
        Need(6, f"merged student {gigabytes(merged)}", settings.merged_dir.parent, merged),
    ]


def _merged_bytes(model: Model, dtype: str) -> int:
    width = {"": 0, "float32": 4}.get(dtype, 2)
    assert model.architecture is not None
    return (width * model.architecture.parameters if width else model.weight_bytes) + _SMALL


def _quantized(chain: Chain, models: Models, nodes: Sequence[Nodes]) -> list[Need] | None:
    settings, student = chain.of(QuantizeSettings), chain.of(DistillSettings)
    if settings is None or student is None:
        return None
    model = models.get(student.student_model_name)
    if model.architecture is None or not model.weight_bytes:
        return None
    average = chain.of(AverageSettings)
    whole = _merged_bytes(model, average.merged_dtype if average else "")
    arch = model.architecture
    matrices = arch.layers * arch.linear_parameters
    size = min(whole, int(matrices * settings.quant_bits / 8 * 1.05) + 2 * (arch.parameters - matrices) + _SMALL)
    # The step itself refuses to begin without room for a model of the old size.
    return [Need(7, f"quantized student {gigabytes(size)}", settings.out_path.parent, size, meanwhile=whole - size)]


_NEEDS: dict[str, Maker] = {
    POST_PRETRAIN.name: _post_pretraining,
    MAKE_FOLDS.name: _folds,
    TRAIN_TEACHERS.name: _teachers,
    INFER_TEACHER_LOGITS.name: _logits,
    DISTILL_STUDENT.name: _students,
    LORA_ENSEMBLE.name: _average,
    QUANTIZE.name: _quantized,
}

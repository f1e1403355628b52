"""Which tensor of a merged model is made from what: decided from names, shapes and configurations, before any work.

An adapter without a head of its own leaves the model's architecture as it is. One that was trained with a
classification head turns its base, a causal LM or an encoder, into a sequence classifier: the names and shapes of the
output are then those of the transformers class, and what that class has no place for (``lm_head``, ``cls.*``) goes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.models.lora_file import FLOATS, LoraAdapter, LoraPair
from arena_distill.models.safetensors_file import DTYPE_BYTES, Checkpoint, StoredTensor, read_checkpoint
from arena_distill.runtime.errors import InputError

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_DTYPE_NAMES = {stored: name for name, stored in DTYPES.items()}
_TRAINED_HEADS = ("score", "classifier", "pre_classifier")  # without these a saved `pooler` is no head yet
_SHARED_TABLES = {"embed_tokens", "embed_in", "wte", "word_embeddings", "lm_head", "embed_out", "decoder", "output"}
_LEGACY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # BERTs of 2018


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output: the bytes of ``source``, plus the adapter's change where there is one."""

    name: str
    dtype: str  # in the output
    base_dtype: str  # what the base stores it in, and PEFT adds in; ``source`` may be of the adapter, in another type
    source: StoredTensor
    pair: LoraPair | None = None

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return math.prod(self.source.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class MergePlan:
    """The whole output: tensors by file, and the new configuration (None: the base's own file is copied)."""

    base: Checkpoint
    adapter: LoraAdapter
    files: dict[str, list[OutputTensor]]
    config: dict[str, Any] | None
    classifier: bool
    replaced: list[str]
    dropped: list[str]

    @property
    def weight_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.size for tensors in self.files.values() for tensor in tensors)


def plan_merge(directory: Path, adapter: LoraAdapter, dtype: str | None, labels: Sequence[str] | None) -> MergePlan:
    """Find the partner of every tensor of the adapter.

    Args:
        directory: the base model.
        adapter: what is merged into it.
        dtype: of the output, a key of ``DTYPES``; None leaves every tensor as it is.
        labels: names of the classes of a new classification head; None: A, B and tie.

    Raises:
        InputError: the base cannot be used, or the adapter belongs to another.
    """
    config = _read_config(directory)
    base = read_checkpoint(directory)
    tensors = {_modern(name): tensor for name, tensor in base.tensors.items()}
    classifier = any(name.split(".")[0] in _TRAINED_HEADS for name in adapter.replacements)
    if classifier:
        config, wanted = _classifier_config(directory, config, adapter, labels)
        kept = _kept_by_classifier(tensors, wanted)
        partners = _partners(adapter, directory, {name: name for name in (*kept, *wanted)})
        _require_whole(directory, adapter, kept, wanted, partners)
    else:
        kept = base.tensors
        _refuse_shared_tables(directory, config, adapter, kept)
        partners = _partners(adapter, directory, {_modern(name): name for name in kept})
    outputs = _outputs(adapter, directory, kept, partners, dtype)
    stored = {tensor.name for tensor in kept.values()}
    return MergePlan(
        base,
        adapter,
        _by_file(base, outputs, kept),
        _with_dtype(config, dtype, base) if classifier or dtype else None,
        classifier,
        sorted(partners[name] for name in adapter.replacements),
        sorted(name for name in base.tensors if name not in stored),
    )


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing -> name the directory of a whole model") from error
    except ValueError as error:
        raise InputError(f"{file}: broken ({error}) -> copy or download the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: broken, not a JSON object -> copy or download the model again")
    if config.get("quantization_config"):
        raise InputError(f"{directory}: a quantized model -> give the unquantized base that it was made from")
    return config


def _modern(name: str) -> str:
    for old, new in _LEGACY_NAMES.items():
        name = re.sub(rf"{re.escape(old)}$", new, name)
    return name


def _classifier_config(
    directory: Path, config: Mapping[str, Any], adapter: LoraAdapter, labels: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], bool]]]:
    """The configuration of the classifier, and its tensors: name -> (shape, whether it must be stored)."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from arena_distill.data.records import CLASSES

    if adapter.config.get("task_type") not in (None, "SEQ_CLS", "FEATURE_EXTRACTION"):
        raise InputError(f"{adapter.directory}: an adapter for {adapter.config['task_type']}, with a head -> not ours")
    names = tuple(labels or CLASSES)
    try:
        settings = AutoConfig.from_pretrained(directory)
        settings.num_labels = len(names)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(settings)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{directory}: transformers makes no classifier of it ({reason})") from error
    parameters = {name for name, _ in model.named_parameters()}
    wanted = {name: (tuple(tensor.shape), name in parameters) for name, tensor in model.state_dict().items()}
    changed = {
        "architectures": [type(model).__name__],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    dropped = ("num_labels", "_num_labels", "problem_type")
    return {**{key: value for key, value in config.items() if key not in dropped}, **changed}, wanted


def _kept_by_classifier(tensors: Mapping[str, StoredTensor], wanted: Iterable[str]) -> dict[str, StoredTensor]:
    """The base's tensors by their names in the classifier: equal, or with the body's prefix where the base has none."""
    names = set(wanted)
    prefixes = sorted({name.split(".")[0] for name in names})
    kept: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        found = [name] if name in names else [f"{p}.{name}" for p in prefixes if f"{p}.{name}" in names]
        if len(found) == 1 and found[0] not in kept:
            kept[found[0]] = tensor
    return kept


def _partners(adapter: LoraAdapter, directory: Path, targets: Mapping[str, str]) -> dict[str, str]:
    """Module (of a pair) or tensor name in the adapter -> tensor of the output.

    Names are equal, or all differ by the same first part: ``bert.`` or ``model.``, which a body on its own lacks.
    """
    wanted = {module: f"{module}.weight" for module in adapter.pairs} | {name: name for name in adapter.replacements}
    found = {key: targets[name] for key, name in wanted.items() if name in targets}
    if len(found) == len(wanted):
        return found
    renamed = [
        *({key: f"{first}.{name}" for key, name in wanted.items()} for first in _first_parts(targets)),
        *({key: name.removeprefix(f"{first}.") for key, name in wanted.items()} for first in _first_parts(wanted)),
    ]
    # A head keeps its name: only the body has a prefix.
    places = [{key: targets.get(name, targets.get(wanted[key])) for key, name in names.items()} for names in renamed]
    whole = [{k: v for k, v in place.items() if v is not None} for place in places if None not in place.values()]
    if len(whole) == 1 and len({whole[0][module] for module in adapter.pairs}) == len(adapter.pairs):
        return whole[0]
    lost = sorted(set(wanted) - set(found))
    raise InputError(
        f"{adapter.weights_file}: adapter of another base: {directory} has no partner for {_some(lost)} -> give the "
        "base model that the adapter was trained on"
    )


def _first_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in names})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _require_whole(
    directory: Path,
    adapter: LoraAdapter,
    kept: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[tuple[int, ...], bool]],
    partners: Mapping[str, str],
) -> None:
    """Refuse a classifier some of whose tensors would be made at random on loading, or have another shape."""
    replaced = {partners[name]: tensor for name, tensor in adapter.replacements.items()}
    lost = sorted(name for name, (_, stored) in wanted.items() if stored and name not in kept and name not in replaced)
    if lost:
        raise InputError(
            f"{adapter.weights_file}: neither the adapter nor {directory} holds {_some(lost)} of the classifier -> "
            "train with these in modules_to_save"
        )
    for name, (shape, _) in wanted.items():
        tensor = replaced.get(name) or kept.get(name)
        if tensor is not None and tensor.shape != shape:
            raise InputError(
                f"{tensor.file}: {tensor.name} has the shape {list(tensor.shape)}, the classifier needs {list(shape)} "
                "-> adapter of another base, or another number of labels"
            )


def _refuse_shared_tables(
    directory: Path, config: Mapping[str, Any], adapter: LoraAdapter, kept: Iterable[str]
) -> None:
    """Refuse to change one of two tables that are the same: in training they were not changed together."""
    modules = {*adapter.pairs, *(name.rpartition(".")[0] for name in adapter.replacements)}
    touched = sorted(module for module in modules if module.rpartition(".")[2] in _SHARED_TABLES)
    architectures = config.get("architectures") or ["LM"]
    speaks = any("LM" in name or "ConditionalGeneration" in name for name in architectures)
    if touched and speaks and _is_tied(directory, config, kept):
        raise InputError(
            f"{adapter.weights_file}: changes {_some(touched)}, and {directory} shares one table between input and "
            "output (tie_word_embeddings) -> leave it out of target_modules and modules_to_save, or untie the base"
        )


def _is_tied(directory: Path, config: Mapping[str, Any], kept: Iterable[str]) -> bool:
    heads = ("lm_head.weight", "embed_out.weight", "output.weight")
    if "tie_word_embeddings" in config or not any(name.endswith(heads) for name in kept):
        return bool(config.get("tie_word_embeddings", True))
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.from_pretrained(directory).tie_word_embeddings)
    except (OSError, ValueError, KeyError, AttributeError):
        return True  # unknown architecture: say no rather than guess


def _outputs(
    adapter: LoraAdapter,
    directory: Path,
    kept: Mapping[str, StoredTensor],
    partners: Mapping[str, str],
    dtype: str | None,
) -> dict[str, OutputTensor]:
    pairs = {partners[module]: pair for module, pair in adapter.pairs.items()}
    replaced = {partners[name]: tensor for name, tensor in adapter.replacements.items()}
    outputs = {}
    for name in (*kept, *(name for name in replaced if name not in kept)):
        old, source, pair = kept.get(name), replaced.get(name) or kept[name], pairs.get(name)
        change = pair.weight_shape if pair else source.shape
        head = name.split(".")[0] in _TRAINED_HEADS
        if change != source.shape or (old and not head and old.shape != change):
            raise InputError(
                f"{adapter.weights_file}: adapter of another base: {name} has the shape {list((old or source).shape)} "
                f"in {directory}, and {list(change)} in the adapter -> give the base model that it was trained on"
            )
        if pair and source.dtype not in FLOATS:
            raise InputError(f"{source.file}: {name} is stored as {source.dtype} -> give the unquantized base model")
        own = (old or source).dtype  # what was trained whole takes the type of what it replaces; a new head has its own
        outputs[name] = OutputTensor(name, DTYPES[dtype] if dtype and own in FLOATS else own, own, source, pair)
    return outputs


def _by_file(
    base: Checkpoint, outputs: Mapping[str, OutputTensor], kept: Mapping[str, StoredTensor]
) -> dict[str, list[OutputTensor]]:
    """The base's own division into files; new tensors stand in the last one."""
    last = list(base.files)[-1]
    files: dict[str, list[OutputTensor]] = {file: [] for file in base.files}
    for name, output in outputs.items():
        files[kept[name].file.name if name in kept else last].append(output)
    for tensors in files.values():  # wide types first, so that every tensor starts at a multiple of its width
        tensors.sort(key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
    return {file: tensors for file, tensors in files.items() if tensors}


def _with_dtype(config: Mapping[str, Any], dtype: str | None, base: Checkpoint) -> dict[str, Any]:
    """``config`` with the type that the body is stored in: without it, transformers takes that of any tensor."""
    known = dtype or config.get("dtype") or config.get("torch_dtype")
    if known is None:
        largest = max(base.tensors.values(), key=lambda tensor: tensor.size)
        known = _DTYPE_NAMES.get(largest.dtype, "float32")
    return {**config, "dtype": known, **({"torch_dtype": known} if "torch_dtype" in config else {})}

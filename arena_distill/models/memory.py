"""Peak training memory of a language model, estimated before it is loaded, and the largest model that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from arena_distill.models.architecture import LINEAR_MODULES, Architecture, architecture_of
from arena_distill.runtime.errors import InputError, SettingsError

GB = 10**9
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight in NF4 with double quantization (Dettmers et al. 2023, "QLoRA", section 3): 4 bits, an 8-bit scale
for each block of 64, and for each 256 of those an fp32 scale."""
FP32 = 4
ADAM_BYTES = 2 * FP32
CUDA_CONTEXT = GB
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class TrainingShape:
    """What the memory of a training step depends on besides the model.

    Args:
        rows: rows in a batch on each device.
        max_length: tokens in the longest row; every row is counted as that long.
        lora_r: rank of the LoRA adapters; 0 trains all weights.
        targets: the linear modules that get an adapter.
        quant: ``nf4`` for QLoRA.
        weight_bytes: 2 or 4 a weight that is not in NF4; activations have the same type.
        gradient_checkpointing: keep the input of each layer only and compute the rest again in the backward pass.
        full_vocabulary_logits: the loss reads a logit for every token and vocabulary entry, as language modelling does.
        n_devices: weights, gradients and optimizer are sharded over so many (FSDP); 1 for DDP.
        on_gpu: reserve memory for a CUDA context.

    Raises:
        SettingsError: a value is out of bounds.
    """

    rows: int
    max_length: int
    lora_r: int = 16
    targets: tuple[str, ...] = LINEAR_MODULES
    quant: Literal["nf4", "none"] = "none"
    weight_bytes: int = 2
    gradient_checkpointing: bool = True
    full_vocabulary_logits: bool = False
    n_devices: int = 1
    on_gpu: bool = True

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("max_length", 1), ("lora_r", 0), ("n_devices", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if unknown := set(self.targets) - set(LINEAR_MODULES):
            raise SettingsError(f"no such target modules: {', '.join(sorted(unknown))} -> {', '.join(LINEAR_MODULES)}")
        if self.quant not in ("nf4", "none") or self.weight_bytes not in (2, 4):
            raise SettingsError(f"quant={self.quant}, weight_bytes={self.weight_bytes} -> nf4 or none, and 2 or 4")
        if self.quant == "nf4" and not self.lora_r:
            raise SettingsError("weights in NF4 cannot be trained themselves -> set a LoRA rank of at least 1")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at the peak of a training step; ``str()`` gives a table for the job log.

    ``gathered`` is what FSDP holds whole at the peak besides the shards; ``reserve`` is 5 % fragmentation of the
    allocator and, on a GPU, 1 GB for the CUDA context and its libraries.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    reserve: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        rows = {"memory (GB = 10^9 bytes)": "", **{name: f"{size / GB:.2f}" for name, size in asdict(self).items()}}
        rows["total"] = f"{self.total / GB:.2f}"
        return "\n".join(f"{name:<24}{value:>9}".rstrip() for name, value in rows.items())


def estimate_memory(arch: Architecture, shape: TrainingShape) -> MemoryEstimate:
    """Peak memory of a training step on each device.

    Adapters are kept in fp32 as PEFT does; AdamW keeps two fp32 moments of each trainable parameter. Gradients are
    counted whole beside the activations, as they are from the second micro-batch of gradient accumulation on.
    """
    weights = _stored(arch.layers, arch, shape) + arch.outer_parameters * shape.weight_bytes
    adapted = [arch.linears[module] for module in shape.targets] if shape.lora_r else []
    adapter = arch.layers * shape.lora_r * sum(inputs + outputs for inputs, outputs in adapted)
    trained = adapter or arch.parameters
    gradients = trained * (FP32 if adapter else shape.weight_bytes)
    gathered = 0
    if shape.n_devices > 1:
        # FSDP keeps the embeddings and the head gathered, and fetches the next layer while one is computed.
        gathered = _stored(min(2, arch.layers), arch, shape) + arch.outer_parameters * shape.weight_bytes
        gathered *= 1 if adapter else 2  # and their gradients, until these are scattered
    parts = {
        "weights": _shard(weights, shape),
        "adapter": _shard(adapter * FP32, shape),
        "gradients": _shard(gradients, shape),
        "optimizer": _shard(trained * ADAM_BYTES, shape),
        "gathered": gathered,
        "activations": _activations(arch, shape),
        "logits": _logits(arch, shape),
    }
    reserve = int(FRAGMENTATION * sum(parts.values())) + (CUDA_CONTEXT if shape.on_gpu else 0)
    return MemoryEstimate(**parts, reserve=reserve)


def _shard(size: int, shape: TrainingShape) -> int:
    return -(-size // shape.n_devices)


def _stored(layers: int, arch: Architecture, shape: TrainingShape) -> int:
    """Bytes of the weights of so many layers; norms and biases are never quantized."""
    if shape.quant == "none":
        return layers * arch.layer_parameters * shape.weight_bytes
    rest = arch.layer_parameters - arch.linear_parameters
    return layers * int(arch.linear_parameters * NF4_BYTES + rest * shape.weight_bytes)


def _activations(arch: Architecture, shape: TrainingShape) -> int:
    """Bytes that the backward pass needs from the forward pass, and its own scratch memory at the worst moment."""
    tokens = shape.rows * shape.max_length
    ends = (2 * shape.weight_bytes + FP32) * arch.hidden  # embeddings, final norm, input of the head
    others = shape.weight_bytes * arch.hidden if shape.gradient_checkpointing else _saved_by_layer(arch, shape)
    size = tokens * (ends + arch.layers * others + _recomputed(arch, shape))
    if shape.quant == "nf4":  # each matrix is unpacked while it is used
        size += shape.weight_bytes * max(inputs * outputs for inputs, outputs in arch.linears.values())
    if not shape.lora_r and arch.tied_embeddings:
        # The gradients of input and output embeddings and their sum stand side by side; all else is free by then.
        size = max(size, 2 * shape.weight_bytes * arch.vocabulary * arch.hidden)
    return size


def _recomputed(arch: Architecture, shape: TrainingShape) -> int:
    """Bytes for each token while one layer is in its backward pass: gradients inside the MLP, the layer itself if it
    was computed again."""
    scratch = (2 * FP32 + shape.weight_bytes) * arch.intermediate
    return scratch + (_saved_by_layer(arch, shape) if shape.gradient_checkpointing else 0)


def _saved_by_layer(arch: Architecture, shape: TrainingShape) -> int:
    """Bytes for each token that autograd saves in one layer without checkpointing.

    In the manner of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section
    4.1, for the code of transformers 5: gated MLP, grouped queries and RMS norms that compute in fp32. A frozen linear
    module saves nothing; an adapted one saves its input, and in fp32 even where the model computes in 16 bit, since
    the adapter is fp32 (half of that under autocast). The tests hold this against what PyTorch allocates.
    """
    half, full = shape.weight_bytes, not shape.lora_r
    queries, length = arch.heads * arch.head_dim, shape.max_length
    norms = arch.norms * (FP32 * arch.hidden + FP32)
    if full:  # the gain's gradient needs the normalised vector; Gemma-2 multiplies in fp32
        norms += arch.norms * arch.hidden * (FP32 if arch.model_type == "gemma2" else half)
    attention = 3 * half * queries  # queries, keys and values, repeated for all heads as a batch with padding needs
    if arch.model_type == "gemma2":
        # Its soft cap leaves eager attention only: tanh, fp32 softmax and (if another type) weights, [heads, L, L].
        attention += arch.heads * length * (2 * FP32)
    else:
        attention += half * queries + FP32 * arch.heads + half * length  # output, log-sum-exp, mask
    mlp = 3 * half * arch.intermediate  # gate, its activation, up
    return norms + attention + mlp + _saved_by_linears(arch, shape)


def _saved_by_linears(arch: Architecture, shape: TrainingShape) -> int:
    """Bytes for each token of the inputs that the trained linear modules of a layer save."""
    modules = LINEAR_MODULES if not shape.lora_r else shape.targets
    rank_outputs = len(modules) * shape.lora_r * FP32
    if shape.lora_r and shape.weight_bytes < FP32:  # each adapter casts its own copy
        return rank_outputs + FP32 * sum(arch.linears[module][0] for module in modules)
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    tensors = {shared.get(module, module) for module in modules}
    if arch.model_type != "gemma2":
        tensors.discard("o_proj")  # the attention kernel has saved its output already
    return rank_outputs + shape.weight_bytes * sum(arch.linears[module][0] for module in tensors)


def _logits(arch: Architecture, shape: TrainingShape) -> int:
    """Bytes that the logits and their gradients add to the peak; those of labels alone are too few to count.

    Language modelling at the start of the backward pass holds, each ``[rows, length, vocabulary]`` in fp32, the
    logits, their log softmax, and the gradients of both; Gemma-2's soft cap also saves its tanh. All but the logits,
    which the model's output holds, are gone when the first layer's backward pass begins: only the larger counts.
    """
    if not shape.full_vocabulary_logits:
        return 0
    soft_cap = shape.weight_bytes if arch.model_type == "gemma2" else 0
    for_loss = arch.vocabulary * (4 * FP32 + soft_cap) - _recomputed(arch, shape)
    return shape.rows * shape.max_length * max(for_loss, FP32 * arch.vocabulary)


@dataclass(frozen=True)
class Choice:
    """A model that fits. ``estimates`` holds every candidate that was tried, in order, by name."""

    name: str
    estimates: dict[str, MemoryEstimate]
    reason: str


def choose_base(wanted: str, ladder: Sequence[str], shape: TrainingShape, available: int) -> Choice:
    """``wanted`` if it fits into ``available`` bytes, else the largest smaller model of ``ladder`` that does.

    Raises:
        SettingsError: nothing fits; says what would.
        InputError: the size of ``wanted``, or of a model of the ladder when it is needed, cannot be found out.
    """
    arch = architecture_of(wanted)
    estimates = {wanted: estimate_memory(arch, shape)}
    need = f"{wanted} needs {_gb(estimates[wanted].total)} and {_gb(available)} are free"
    if estimates[wanted].total <= available:
        return Choice(wanted, estimates, need)
    smaller = {name: size for name in ladder if (size := _rung(name)).parameters < arch.parameters}
    for name, arch in sorted(smaller.items(), key=lambda entry: -entry[1].parameters):
        estimates[name] = estimate_memory(arch, shape)
        if estimates[name].total <= available:
            return Choice(name, estimates, f"{need}; chose {name}, which needs {_gb(estimates[name].total)}")
    smallest = min(estimates, key=lambda name: estimates[name].total)
    if smallest != wanted:
        need += f"; the smallest choice, {smallest}, needs {_gb(estimates[smallest].total)}"
    raise SettingsError(f"{need} -> {_ways_to_save(architecture_of(smallest), shape)}")


def _rung(name: str) -> Architecture:
    try:
        return architecture_of(name)
    except InputError as error:
        raise InputError(f"the models to fall back to: {error}") from error


def _ways_to_save(arch: Architecture, shape: TrainingShape) -> str:
    """The settings that would lower the need, each with what would be needed then."""
    changes = {
        "a batch of 1 row": replace(shape, rows=1),
        f"a length of {max(shape.max_length // 2, 1)} tokens": replace(shape, max_length=max(shape.max_length // 2, 1)),
        "gradient checkpointing": replace(shape, gradient_checkpointing=True),
    }
    if shape.lora_r:
        changes["NF4 weights"] = replace(shape, quant="nf4")
    needs = [f"{what} ({_gb(estimate_memory(arch, new).total)})" for what, new in changes.items() if new != shape]
    return f"try {', '.join(needs)}, or a smaller model" if needs else "use a smaller model"


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"

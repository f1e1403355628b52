"""Several LoRA adapters of one base made into one, module by module: memory is that of one module, not of a model.

Two averages of n adapters whose modules change a weight by ``s B_i A_i``:

- ``exact``: the mean of the changes themselves, ``s/n (B_1 A_1 + … + B_n A_n)``. Side by side, the factors are those of
  an adapter of rank ``n r``: nothing is rounded. On request it is cut back to a rank by singular values, the best that
  a matrix of that rank can be (Eckart and Young 1936); QR of the factors spares the product, which is as large as the
  weight.
- ``mean``: the mean of the A and the mean of the B factors, as the first-place solution did. ``mean(B) mean(A)`` is
  another matrix than ``mean(B A)``, and has a meaning only if all adapters started from the same factors.

Tensors that were trained whole, the classification head above all, are averaged as they are. Everything is computed
in float64 and written in float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from arena_distill.models.lora_file import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraAdapter, LoraPair
from arena_distill.models.merged_tensors import delta_rows, finite_tensor, load_tensor, row_blocks
from arena_distill.models.safetensors_file import StoredTensor, make_header
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError

Method = Literal["exact", "mean"]

_STORED = "F32"
_SAME_ENTRIES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "task_type")
_SAME_SETS = ("target_modules", "modules_to_save")


# Which adapters can be averaged


def require_alike(adapters: Sequence[LoraAdapter]) -> None:
    """Refuse adapters that change different modules, or change them in different ways.

    Raises:
        InputError: names the first adapter that differs from the first of all, and in what.
    """
    first = adapters[0]
    for other in adapters[1:]:
        for name in (*_SAME_ENTRIES, *_SAME_SETS):
            ours, theirs = (_comparable(name, adapter.config.get(name)) for adapter in (first, other))
            if ours != theirs:
                file = other.directory / ADAPTER_CONFIG
                raise _not_alike(file, first, f"{name} {theirs}", str(ours))
        found = dict(_shapes(other))
        for name, shape in _shapes(first):
            if found.get(name) != shape:
                theirs = "lacks it" if name not in found else f"has {list(found[name])}"
                raise _not_alike(other.weights_file, first, f"{name}: {theirs}", str(list(shape)))
        if extra := sorted(found.keys() - {name for name, _ in _shapes(first)}):
            raise _not_alike(other.weights_file, first, extra[0], "no such tensor")
        for module, pair in first.pairs.items():
            if (pair.scaling, pair.transposed) != (other.pairs[module].scaling, other.pairs[module].transposed):
                raise _not_alike(other.directory / ADAPTER_CONFIG, first, f"another scaling of {module}", "")


def _comparable(name: str, value: Any) -> Any:
    if name in _SAME_SETS:
        return sorted(value) if isinstance(value, list) else value or None
    return value or None


def _shapes(adapter: LoraAdapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    for pair in adapter.pairs.values():
        yield pair.a.name, pair.a.shape
        yield pair.b.name, pair.b.shape
    for tensor in adapter.replacements.values():
        yield tensor.name, tensor.shape


def _not_alike(file: Path, first: LoraAdapter, theirs: str, ours: str) -> InputError:
    than = f" ({ours})" if ours else ""
    return InputError(
        f"{file}: {theirs}, another than in {first.directory}{than} -> train all folds with the same base and the same "
        "settings"
    )


# The average


def write_average(adapters: Sequence[LoraAdapter], directory: Path, method: Method, rank: int = 0) -> None:
    """Write weights and configuration of the average into an existing directory; plain PEFT loads it.

    Args:
        adapters: alike (see ``require_alike``), at least one.
        directory: receives ``adapter_model.safetensors`` and ``adapter_config.json``.
        method: see above.
        rank: of ``exact``: cut back to this rank; 0: keep all.

    Raises:
        InputError: a tensor holds NaN or infinity.
    """
    first = adapters[0]
    ranks = {module: averaged_rank(pair, len(adapters), method, rank) for module, pair in first.pairs.items()}
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for module, pair in first.pairs.items():
        entries.append((pair.a.name, _STORED, (ranks[module], pair.a.shape[1])))
        entries.append((pair.b.name, _STORED, (pair.b.shape[0], ranks[module])))
    entries += [(tensor.name, _STORED, tensor.shape) for tensor in first.replacements.values()]
    with (directory / ADAPTER_WEIGHTS).open("wb") as stream:
        stream.write(make_header(entries, {"format": "pt"}))
        for module in first.pairs:
            for factor in _averaged_factors([adapter.pairs[module] for adapter in adapters], method, rank):
                stream.write(_bytes(factor))
        for name in first.replacements:
            for block in _averaged_tensor([adapter.replacements[name] for adapter in adapters]):
                stream.write(_bytes(block))
        stream.flush()
        os.fsync(stream.fileno())
    scalings = {module: _scaling(pair, len(adapters), method, rank) for module, pair in first.pairs.items()}
    config = _config(first.config, ranks, {module: scalings[module] * ranks[module] for module in ranks})
    write_atomically(directory / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def averaged_rank(pair: LoraPair, count: int, method: Method, rank: int = 0) -> int:
    """Rank of a module in the average of ``count`` adapters."""
    if method == "mean":
        return pair.a.shape[0]
    whole = count * pair.a.shape[0]
    return min(rank, whole, pair.a.shape[1], pair.b.shape[0]) if rank else whole


def _scaling(pair: LoraPair, count: int, method: Method, rank: int) -> float:
    if method == "mean":
        return pair.scaling
    return 1.0 if rank else pair.scaling / count


def _averaged_factors(pairs: Sequence[LoraPair], method: Method, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the average, float64."""
    factors = [finite_factors(pair) for pair in pairs]
    if method == "mean":
        return _mean([a for a, _ in factors]), _mean([b for _, b in factors])
    a, b = torch.cat([a for a, _ in factors]), torch.cat([b for _, b in factors], dim=1)
    if not rank:
        return a, b
    return _cut_back(a, b * (pairs[0].scaling / len(pairs)), averaged_rank(pairs[0], len(pairs), method, rank))


def finite_factors(pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B in float64.

    Raises:
        InputError: one holds NaN or infinity.
    """
    return finite_tensor(pair.a).double(), finite_tensor(pair.b).double()


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total / len(tensors)


def _averaged_tensor(tensors: Sequence[StoredTensor]) -> Iterator[torch.Tensor]:
    for first, last in row_blocks(tensors[0].shape):
        yield _mean([finite_tensor(tensor, first, last).double() for tensor in tensors])


def _cut_back(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the matrix of ``rank`` that is nearest to ``b @ a``; the singular values are shared between both."""
    left, left_core = torch.linalg.qr(b)
    right, right_core = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = singular[:rank].sqrt()
    return root[:, None] * (v[:rank] @ right.T), (left @ u[:, :rank]) * root


def _bytes(values: torch.Tensor) -> memoryview:
    return values.float().contiguous().view(-1).view(torch.uint8).numpy().data


def _config(config: Mapping[str, Any], ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The configuration of an adapter like this one with other ranks and alphas, which count alpha / rank."""
    # PEFT takes the first key that a module's name ends with: longer names stand before their own ends.
    modules = sorted(ranks, key=len, reverse=True)
    rank, alpha = (_most_frequent(values[module] for module in modules) for values in (ranks, alphas))
    targets = config.get("target_modules")
    return {
        **config,
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {_literal(module): ranks[module] for module in modules if ranks[module] != rank},
        "alpha_pattern": {_literal(module): _plain(alphas[module]) for module in modules if alphas[module] != alpha},
        "use_rslora": False,
        "init_lora_weights": True,  # how the folds began is no matter any more
        "inference_mode": True,
    }


def _most_frequent(values: Iterable[Any]) -> Any:
    found = list(values)
    return max(dict.fromkeys(found), key=found.count)


def _literal(module: str) -> str:
    return module.replace(".", r"\.")  # PEFT reads it as a regular expression


def _plain(number: float) -> float | int:
    """A whole number without the rounding that a division left on it; else as it is."""
    whole = round(number)
    return whole if abs(number - whole) <= 1e-9 * max(1.0, abs(number)) else number


# What is between an average and what it should be


@dataclass(frozen=True)
class AverageError:
    """How far an adapter as written is from the average of others, each the largest of all modules."""

    frobenius: float  # norm of the difference / norm of the average
    largest_entry: float  # largest difference / largest entry of the average
    module: str  # of the largest of both


def average_error(written: LoraAdapter, adapters: Sequence[LoraAdapter], method: Method) -> AverageError:
    """Compare the weight changes of an adapter, in float32 as a model makes them, with the averages in float64.

    Dense, one block of one module at a time. Tensors that were trained whole are compared too.

    Args:
        written: the average.
        adapters: what it was made of.
        method: ``exact``: beside the mean of the weight changes; ``mean``: beside the product of the mean factors.
    """
    errors = [
        _module_error(module, pair, [adapter.pairs[module] for adapter in adapters], method)
        for module, pair in written.pairs.items()
    ]
    for name, tensor in written.replacements.items():
        error = TensorError(name)
        others = [adapter.replacements[name] for adapter in adapters]
        for (first, last), expected in zip(row_blocks(tensor.shape), _averaged_tensor(others), strict=True):
            error.add(load_tensor(tensor, first, last).double(), expected)
        errors.append(error)
    worst = max(errors, key=lambda error: max(error.frobenius, error.largest_entry))
    return AverageError(
        max(error.frobenius for error in errors), max(error.largest_entry for error in errors), worst.name
    )


def _module_error(module: str, written: LoraPair, pairs: Sequence[LoraPair], method: Method) -> TensorError:
    error = TensorError(module)
    own_a, own_b = (load_tensor(factor).float() for factor in (written.a, written.b))
    factors = [finite_factors(pair) for pair in pairs]
    if method == "mean":
        factors = [(_mean([a for a, _ in factors]), _mean([b for _, b in factors]))]
    for first, last in row_blocks(written.weight_shape):
        expected = _mean([delta_rows(pairs[0], a, b, first, last) for a, b in factors])
        error.add(delta_rows(written, own_a, own_b, first, last).double(), expected)
    return error


class TensorError:
    """Difference of two tensors that come in blocks, beside the size of what is expected."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._squares, self._extremes = [0.0, 0.0], [0.0, 0.0]  # of the difference, of what is expected

    def add(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        """The next block of both."""
        for k, values in enumerate((found - expected, expected)):
            self._squares[k] += float(values.square().sum())
            self._extremes[k] = max(self._extremes[k], float(values.abs().max()) if values.numel() else 0.0)

    @property
    def frobenius(self) -> float:
        """Norm of the difference / norm of what is expected."""
        return _ratio(*(square**0.5 for square in self._squares))

    @property
    def largest_entry(self) -> float:
        """Largest difference / largest entry of what is expected."""
        return _ratio(*self._extremes)


def _ratio(difference: float, size: float) -> float:
    return difference / size if size else float("inf") if difference else 0.0


@dataclass(frozen=True)
class Distance:
    """How far two adapters' weight changes are apart, as a share of the first one's; Frobenius norms."""

    overall: float  # all modules as one vector
    largest: float  # of a module
    module: str  # that one


def relative_distance(one: LoraAdapter, two: LoraAdapter) -> Distance:
    """``|d1 - d2| / |d1|`` of the weight changes of two adapters of the same modules, without making either.

    The difference is itself a product of factors, ``[s1 B1, -s2 B2] [A1; A2]``, and QR reduces its norm to that of a
    matrix no larger than the ranks. (Norms and inner products by Gram matrices would do the same, but subtract squares:
    half of the digits would be lost where the two are close.)
    """
    distances: dict[str, float] = {}
    squares = [0.0, 0.0]
    for module, pair in one.pairs.items():
        a1, b1 = finite_factors(pair)
        a2, b2 = finite_factors(two.pairs[module])
        b1, b2 = b1 * pair.scaling, b2 * two.pairs[module].scaling
        size = _product_norm(b1, a1)
        difference = _product_norm(torch.cat([b1, -b2], dim=1), torch.cat([a1, a2]))
        distances[module] = _ratio(difference, size)
        squares = [squares[0] + difference**2, squares[1] + size**2]
    module = max(distances, key=distances.__getitem__)
    return Distance(_ratio(*(square**0.5 for square in squares)), distances[module], module)


def _product_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Frobenius norm of ``b @ a``."""
    left, right = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))

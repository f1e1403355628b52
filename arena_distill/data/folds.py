"""Folds and splits that keep equal prompts together and every label's share equal."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arena_distill.data.identity import rows_sha256
from arena_distill.data.records import Rows
from arena_distill.runtime.artifacts import sha256_file, write_atomically
from arena_distill.runtime.errors import DataError, SettingsError

FOLDS_SCHEMA_VERSION = 1


def grouped_stratified_folds(labels: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Assign each row to a fold, whole groups at a time.

    Groups with the same label counts are interchangeable, so each such kind is shuffled and dealt out evenly; the
    few left over from each kind go, largest first, to the fold that they bring closest to the mean label counts.
    This is vectorised (a million rows take about a second) and balances at least as well as a greedy pass over groups.

    Args:
        labels: class index of each row, int ``[N]``.
        groups: group key of each row, numbers or texts, ``[N]``.
        n_folds: number of folds, at least 2.
        seed: of the shuffle.

    Returns:
        Fold of each row, int8 ``[N]``.

    Raises:
        SettingsError: there are fewer groups than folds, or ``n_folds`` is out of bounds.
    """
    if not 2 <= n_folds <= 100:
        raise SettingsError(f"number of folds must be between 2 and 100, not {n_folds}")
    # Numbers by first appearance, so that folds depend on the rows and not on how prompts happen to hash.
    group = by_first_appearance(groups)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < n_folds:
        raise SettingsError(f"{n_folds} folds need at least as many distinct prompts, and there are {n_groups}")
    n_classes = int(labels.max()) + 1
    counts = np.zeros((n_groups, n_classes), dtype=np.int64)
    np.add.at(counts, (group, labels), 1)

    shuffled = np.random.default_rng(seed).permutation(n_groups)
    kind = group_kinds(counts[shuffled])
    by_kind = np.argsort(kind, kind="stable")  # shuffled groups, one kind after the other
    starts = np.flatnonzero(np.diff(kind[by_kind], prepend=-1))
    sizes = np.diff(starts, append=n_groups)
    place = np.arange(n_groups) - np.repeat(starts, sizes)  # of each group among its kind
    dealt = place < np.repeat(sizes - sizes % n_folds, sizes)
    fold_of_group = np.full(n_groups, -1, dtype=np.int8)
    fold_of_group[shuffled[by_kind[dealt]]] = place[dealt] % n_folds

    loads = np.array([counts[fold_of_group == fold].sum(axis=0) for fold in range(n_folds)], dtype=np.float64)
    share = 1.0 / np.maximum(counts.sum(axis=0), 1)  # a rare label weighs as much as a common one
    left = shuffled[by_kind[~dealt]]
    for index in left[np.argsort(-counts[left].sum(axis=1), kind="stable")]:
        cost = ((loads + counts[index]) * share) ** 2 - (loads * share) ** 2
        fold = int(np.lexsort((loads.sum(axis=1), cost.sum(axis=1).round(12)))[0])
        fold_of_group[index] = fold
        loads[fold] += counts[index]
    return fold_of_group[group]


def by_first_appearance(keys: np.ndarray) -> np.ndarray:
    """Number distinct keys from 0 in the order in which they first appear; ``[N]`` -> int64 ``[N]``."""
    return pa.array(keys).dictionary_encode().indices.to_numpy().astype(np.int64)


def group_kinds(counts: np.ndarray) -> np.ndarray:
    """A number for each group, equal for groups with equal label ``counts``; int ``[G, C]`` -> int ``[G]``.

    Numbers are ordered as the counts are, the last label first. Where groups are small, as prompts' are, the numbers
    are too, and sort in no time.
    """
    spans = [int(column.max(initial=0)) + 1 for column in counts.T]
    small = math.prod(spans) <= np.iinfo(np.int16).max
    kind = np.zeros(len(counts), dtype=np.int16 if small else np.int64)
    for column, span in zip(counts.T[::-1], spans[::-1], strict=True):
        kind = (kind * span + column).astype(kind.dtype)
        if not small:  # so that numbers stay below G times the largest count, which fits int64 for any real data
            kind = np.unique(kind, return_inverse=True)[1]
    return kind


@dataclass(frozen=True)
class Folds:
    """Which fold holds out each base row, and of which data."""

    fold: np.ndarray  # int8 [N], by base_idx
    n_folds: int
    seed: int
    rows_sha256: str  # of the rows that were folded, see identity.rows_sha256

    def check_count(self, n_folds: int, file: Path) -> None:
        """Refuse to take a part of the folds for all of them.

        Raises:
            SettingsError: another number of folds was asked for.
        """
        if n_folds != self.n_folds:
            raise SettingsError(f"N_FOLDS={n_folds}, but {file} has {self.n_folds} -> set N_FOLDS={self.n_folds}")

    def check(self, rows: Rows, file: Path) -> None:
        """Refuse to go on if these folds were made of other rows than ``rows`` (base rows in ``base_idx`` order).

        Raises:
            DataError: names the folds file.
        """
        if rows_sha256(rows) != self.rows_sha256:
            raise DataError(
                f"these folds were made of other data ({len(self.fold):,} rows; the data at hand has {len(rows):,})",
                file=file,
                hint="make the folds again for this data file",
            )


def make_folds(rows: Rows, n_folds: int = 5, seed: int = 42) -> Folds:
    """Stratified folds of base rows, grouped by normalised prompt."""
    labels = rows["label"].to_numpy().astype(np.int64)
    fold = grouped_stratified_folds(labels, rows["prompt_hash"].to_numpy(), n_folds, seed)
    return Folds(fold, n_folds, seed, rows_sha256(rows))


def save_folds(folds: Folds, path: Path, data_file: Path) -> None:
    """Write ``folds`` as JSON with the hash of the data file they were made of."""
    document = {
        "schema_version": FOLDS_SCHEMA_VERSION,
        "n_folds": folds.n_folds,
        "seed": folds.seed,
        "data": {
            "file": data_file.name,
            "sha256": sha256_file(data_file),
            "rows": len(folds.fold),
            "rows_sha256": folds.rows_sha256,
        },
        "fold": folds.fold.tolist(),
    }
    write_atomically(path, json.dumps(document))


def load_folds(path: Path) -> Folds:
    """Read a folds file.

    Raises:
        DataError: it is missing, broken or of another schema version.
    """
    if not path.is_file():
        raise DataError("no such folds file", file=path, hint="make the folds first: step2_make_folds.sh")
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if document["schema_version"] != FOLDS_SCHEMA_VERSION:
            problem = f"schema version {document['schema_version']}, expected {FOLDS_SCHEMA_VERSION}"
            raise DataError(problem, file=path, hint="make the folds again")
        fold = np.asarray(document["fold"])
        if fold.dtype.kind != "i":
            raise ValueError("fold numbers must be whole")
        folds = Folds(
            fold.astype(np.int8), int(document["n_folds"]), int(document["seed"]), str(document["data"]["rows_sha256"])
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"broken folds file ({error!r})", file=path, hint="make the folds again") from error
    if fold.ndim != 1 or not len(fold) or fold.min() < 0 or fold.max() >= folds.n_folds:
        raise DataError(f"fold numbers must lie in 0 … {folds.n_folds - 1}", file=path, hint="make the folds again")
    return folds

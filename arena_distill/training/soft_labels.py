"""What teachers say of the base rows, read from step 4's table or from .npy files, and checked against the data.

Imports no torch: a wrong file must show in a second, not after a model is loaded.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import kaggle_log_loss, log_softmax, softmax
from arena_distill.inference.oof_table import OofFamily
from arena_distill.runtime.artifacts import read_manifest, sha256_file
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.stages import ENSEMBLE, INFER_TEACHER_LOGITS

SUM_TOLERANCE = 1e-3
CHI_SQUARE = 10.83  # 99.9 % of it lie below, with one degree of freedom
SMALLEST = float(np.finfo(np.float32).tiny)  # probability whose logarithm float32 can hold


@dataclass(frozen=True)
class SoftLabels:
    """Raw logits of K teachers for each of the N base rows."""

    names: tuple[str, ...]  # [K]
    logits: np.ndarray  # float32 [N, K, 3] by base_idx; a whole-row NaN: this teacher has no say on the row
    weights: tuple[float, ...]  # [K], positive

    def of(self, rows: Rows) -> np.ndarray:
        """What is said of some rows, float32 ``[n, K, 3]``; NaN throughout for extra rows."""
        index = rows["base_idx"].to_numpy()
        out = np.full((len(rows), *self.logits.shape[1:]), np.nan, dtype=np.float32)
        base = index >= 0
        out[base] = self.logits[index[base]]
        return out

    def heard(self, rows: Rows) -> np.ndarray:
        """Of which rows any teacher says something, bool ``[n]``."""
        return np.asarray(_speaks(self.of(rows)).any(axis=1))

    def report(self, rows: Rows) -> str:
        """One line a teacher: on how many base rows it has a say, and how well it foretells their votes.

        Args:
            rows: all base rows in ``base_idx`` order.
        """
        votes, speaks = targets(rows), _speaks(self.logits)
        lines = []
        for k, name in enumerate(self.names):
            said, known = self.logits[speaks[:, k], k], votes[speaks[:, k]]
            loss = kaggle_log_loss(softmax(said), known)
            prior = kaggle_log_loss(np.tile(known.mean(axis=0), (len(known), 1)), known)
            line = f"teacher       {name}: {len(said):,} of {len(rows):,} rows, log loss {loss:.4f} (prior {prior:.4f})"
            if not _informs(said, known):
                line += (
                    "\nWARNING: at no temperature does this teacher foretell the votes better than chance. Is its file "
                    "of other data, or of these rows in another order?"
                )
            lines.append(line)
        return "\n".join(lines)


def _informs(logits: np.ndarray, votes: np.ndarray) -> bool:
    """Whether logits say more of the votes than chance would.

    Class shares and the teacher's own preferences are taken out; what is left, at its best scale, must improve the
    likelihood of the shares by more than noise does (a likelihood ratio test with one degree of freedom, p < 0.001).

    Args:
        logits: ``[N, 3]``.
        votes: ``[N, 3]``.
    """
    from scipy.optimize import minimize_scalar

    centred = logits.astype(np.float64) - logits.mean(axis=1, keepdims=True, dtype=np.float64)
    centred -= centred.mean(axis=0)
    spread = float(centred.std())
    if spread < SMALLEST:
        return False
    centred /= spread
    shares = np.log(np.maximum(votes.mean(axis=0), 1 / (len(votes) + 3)))

    def loss(scale: float) -> float:
        return float(-(votes * log_softmax(shares + scale * centred)).sum())

    best = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded")
    return bool(best.x > 0 and 2 * (loss(0.0) - best.fun) > CHI_SQUARE)


def labels_of_families(
    families: dict[str, OofFamily], weights: dict[str, float], table: Path, setting: str
) -> SoftLabels:
    """The teachers of step 4's table.

    Args:
        families: what ``read_oof_table`` gave; its ensemble is left out.
        weights: of each family to listen to; empty: of all, alike.
        table: for messages.
        setting: that ``weights`` came from.

    Raises:
        SettingsError: a weight is for a family that the table does not have.
    """
    found = [name for name in families if name != ENSEMBLE]
    if unknown := sorted(weights.keys() - set(found)):
        raise SettingsError(f"{setting}: {table} has no teacher {unknown[0]!r} -> it has {', '.join(found)}")
    chosen = [name for name in found if name in weights or not weights]
    logits = np.stack([families[name].logits for name in chosen], axis=1)
    return SoftLabels(tuple(chosen), logits, tuple(weights.get(name, 1.0) for name in chosen))


def find_label_files(patterns: str | Sequence[str], setting: str) -> list[Path]:
    """The files that paths and globs (a list of them, or a comma list) name, in order, each once.

    Raises:
        InputError: one of them names nothing.
    """
    files: list[Path] = []
    given = patterns.split(",") if isinstance(patterns, str) else patterns
    for pattern in filter(None, (part.strip() for part in given)):
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        if not found:
            raise InputError(
                f"{setting}: {pattern} matches no file -> step 4 writes them as "
                "model_save/[RUN/]teacher_logits/NAME_fold_K/teacher_logits_fold_K.npy"
            )
        files += [Path(name) for name in found]
    if not files:
        raise InputError(f"{setting}={patterns}: names no file -> give paths or globs of .npy files, comma list")
    return list({path.resolve(): path for path in files}.values())


def read_label_files(files: Sequence[Path], rows: Rows, train_file: Path, probabilities: bool = False) -> SoftLabels:
    """The teachers of .npy files, each raw logits ``[N, 3]`` for all N usable base rows.

    Files of one teacher that never speak of the same row, as those of its folds, count as one teacher.

    Args:
        files: from ``find_label_files``.
        rows: all base rows in ``base_idx`` order.
        train_file: where they were read from.
        probabilities: the files hold probabilities instead, on purpose.

    Raises:
        InputError: a file cannot be used; names it and what is wrong.
    """
    names: list[str] = []
    merged: list[np.ndarray] = []
    for path in files:
        logits = _read_array(path, len(rows), train_file, probabilities)
        _check_origin(path, train_file)
        speaks = _speaks(logits)
        family = path.parent.name.rpartition("_fold_")[0]
        place = next(
            (k for k, name in enumerate(names) if family and name == family and not _speaks(merged[k])[speaks].any()),
            None,
        )
        if place is None:
            names.append(family or path.stem)
            merged.append(logits)
        else:
            merged[place][speaks] = logits[speaks]
    return SoftLabels(tuple(names), np.stack(merged, axis=1), (1.0,) * len(merged))


def _read_array(path: Path, count: int, train_file: Path, probabilities: bool) -> np.ndarray:
    wanted = f"raw logits of shape ({count}, 3), one row for each of the {count:,} usable rows of {train_file.name}"
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header or archive can raise nearly anything
        raise InputError(f"{path}: not a readable .npy file ({str(error)[:100]}) -> expected {wanted}") from error
    if not isinstance(array, np.ndarray):  # an .npz archive
        raise InputError(f"{path}: is an archive of arrays -> save one array with numpy.save; expected {wanted}")
    if array.dtype.kind != "f":
        raise InputError(f"{path}: has dtype {array.dtype}, not floating point -> expected {wanted}")
    if array.shape != (count, 3):
        raise InputError(
            f"{path}: has shape {array.shape} -> expected {wanted}; was it made from another file, or are rows missing?"
        )
    with np.errstate(over="ignore"):  # told below
        values = array.astype(np.float32)
    silent = np.isnan(values).all(axis=1)
    if (bad := ~silent & ~np.isfinite(values).all(axis=1)).any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{path}: row {row} (from 0) holds {array[row].tolist()} -> a row is three finite numbers, or all NaN "
            "where the teacher has no say, within the range of float32; run step 4 again for this teacher"
        )
    if silent.all():
        raise InputError(f"{path}: every row is NaN: this teacher has no say on any -> run step 4 again")
    said = values[~silent]
    looks = bool((said >= 0).all() and (said <= 1).all() and (np.abs(said.sum(axis=1) - 1) < SUM_TOLERANCE).all())
    if looks and not probabilities:
        raise InputError(
            f"{path}: WARNING: these are probabilities (all within 0 and 1, every row sums to 1), not raw logits; "
            "softmax over them again would make every label nearly uniform -> give teacher_logits_fold_K.npy and not "
            "teacher_probs_fold_K.npy, or say --distill-teacher-values probabilities if you have nothing else"
        )
    if probabilities:
        if not looks:
            raise InputError(
                f"{path}: holds no probabilities (within 0 and 1, rows that sum to 1) -> leave out "
                "--distill-teacher-values"
            )
        values = np.log(np.maximum(values, SMALLEST))
    return values


def _check_origin(path: Path, train_file: Path) -> None:
    """Where step 4 left a manifest beside the array: that it is the array, and of this data file."""
    manifest = read_manifest(path.parent)
    if manifest is None or manifest["stage"] != INFER_TEACHER_LOGITS.name:
        print(f"note: {path} comes without step 4's manifest, so that its rows are in order is taken on trust")
        return
    if manifest["outputs"].get(path.name) != sha256_file(path):
        raise InputError(f"{path}: was changed since step 4 wrote it -> run step 4 again (INFER_FORCE_REGEN=1)")
    if manifest["inputs"].get("train_csv") != sha256_file(train_file):
        raise InputError(
            f"{path}: was made from another data file than {train_file} -> give the file that step 4 was run with, or "
            "run step 4 with this one"
        )


def _speaks(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(logits).all(axis=-1))

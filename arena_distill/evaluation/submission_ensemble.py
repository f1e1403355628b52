"""Submission files of the same test rows made into one file, with a manifest beside it that says of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from arena_distill.evaluation.ensemble import Space, combine, equal_weights
from arena_distill.evaluation.metrics import row_gaps
from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.runtime.artifacts import require_writable, sha256_file, write_manifest
from arena_distill.runtime.errors import DataError, InputError, SettingsError

STAGE = "ensemble"


@dataclass(frozen=True)
class Submissions:
    """M submissions of the same N test rows, in one order."""

    paths: list[Path]
    ids: list[str]
    probabilities: np.ndarray  # float64 [M, N, 3]
    test_csv: Path | None = None


def manifest_path(out: Path) -> Path:
    """Where the manifest of the file ``out`` is."""
    return out.with_suffix(".manifest.json")


def read_submissions(paths: Sequence[Path], test_csv: Path | None = None) -> Submissions:
    """Read the members of an ensemble.

    Args:
        paths: the submission files, each once.
        test_csv: its ids, in its order, are those that every member must have; None: those of the first member.

    Raises:
        InputError: there is no file, or one is given twice (links are followed).
        DataError: a file cannot be used, or has other ids; names it.
    """
    if not paths:
        raise InputError("there is nothing to ensemble -> give at least one submission file")
    from arena_distill.data.loading import load_test

    first_name: dict[Path, Path] = {}
    for path in paths:
        if same := first_name.get(path.resolve()):
            known = f" (as {same})" if same != path else ""
            raise InputError(f"{path}: is given twice{known} -> name it once; --weights can give it twice the say")
        first_name[path.resolve()] = path
    expected = None if test_csv is None else load_test(test_csv).rows["id"].to_pylist()
    members: list[np.ndarray] = []
    for path in paths:
        try:
            expected, p = read_submission(path, expected)
        except DataError as error:
            if test_csv is not None or not members:
                raise
            read_submission(path)  # what is wrong with the file itself is said as it is
            asked = f"its ids were compared with those of {paths[0]}: --test-csv FILE says which of the two is wrong"
            raise InputError(f"{error} ({asked})") from error
        members.append(p)
    assert expected is not None
    return Submissions(list(paths), expected, np.stack(members), test_csv)


def refuse_overwriting(out: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse an output that is one of the inputs, or whose manifest would be; links are followed.

    Raises:
        InputError: names both.
    """
    for written in (out, manifest_path(out)):
        for given in inputs:
            if given is not None and written.resolve() == given.resolve():
                raise InputError(f"{out}: would overwrite the input {given} -> choose another place for the output")


def parse_weights(text: str, count: int) -> np.ndarray:
    """Weights such as ``1,2,1`` for ``count`` members, float64 ``[count]``, divided by their sum.

    Raises:
        SettingsError: not ``count`` finite positive numbers.
    """
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise SettingsError(f"--weights {text!r}: is not a list of numbers -> write it as 1,2,1") from None
    if len(values) != count:
        raise SettingsError(f"--weights {text!r}: {len(values)} weights for {count} files -> give one a file")
    if not (np.isfinite(values) & (values > 0)).all():
        raise SettingsError(f"--weights {text!r}: weights must be positive -> leave out a file that has no say")
    values = values / values.max()
    return np.asarray(values / values.sum())


def mean_distance(members: np.ndarray) -> float:
    """How far members ``[M, N, 3]`` are apart: L1 distance, 0 to 2, mean over pairs of members and rows."""
    gaps = [row_gaps(p, q).mean() for p, q in combinations(members, 2)]
    return float(np.mean(gaps)) if gaps else 0.0


def write_ensemble(
    out: Path,
    members: Submissions,
    weights: np.ndarray,
    space: Space,
    *,
    started: float,
    settings: Mapping[str, Any],
    inputs: Sequence[Path] = (),
    table: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Combine, write the submission and its manifest, and say so.

    Args:
        out: the submission to write.
        members: what to combine.
        weights: ``[M]``.
        space: how, see ``ensemble.combine``.
        started: ``time.time()`` at the start, for the manifest.
        settings: what was asked for, beside weights and space.
        inputs: what else the weights were made of; their hashes go into the manifest.
        table: for each member what the manifest should say of it, beside file and weight.
        details: what else the manifest should hold.

    Raises:
        InputError: the output cannot be written.
    """
    require_writable(out)
    write_submission(out, members.ids, combine(members.probabilities, weights, space))
    known = [*members.paths, *inputs, *([members.test_csv] if members.test_csv else [])]
    rows = [
        {"file": str(path), "weight": float(weight)} | dict(said)
        for path, weight, said in zip(members.paths, weights, table or [{}] * len(weights), strict=True)
    ]
    write_manifest(
        out,
        path=manifest_path(out),
        stage=STAGE,
        settings=dict(settings) | {"weights": [float(weight) for weight in weights], "space": space},
        inputs={str(path): sha256_file(path) for path in known},
        started=started,
        details={"rows": len(members.ids), "members": rows} | dict(details or {}),
    )
    print(f"{out}: {len(members.ids):,} rows written")


def ensemble_files(
    out: Path,
    paths: Sequence[Path],
    *,
    weights: str | None,
    space: Space,
    test_csv: Path | None,
    started: float,
) -> None:
    """What ``scripts/ensemble_submissions.py`` does.

    Raises:
        SettingsError: the weights are not one positive number a file.
        InputError: see ``read_submissions``, ``refuse_overwriting`` and ``write_ensemble``.
    """
    shares = parse_weights(weights, len(paths)) if weights is not None else equal_weights(len(paths))
    refuse_overwriting(out, [*paths, test_csv])
    members = read_submissions(paths, test_csv)
    for path, share in zip(paths, shares, strict=True):
        print(f"{share:.4f}  {path}")
    if len(paths) > 1:
        print(f"mean L1 distance between members: {mean_distance(members.probabilities):.4f} (0 to 2)")
    write_ensemble(out, members, shares, space, started=started, settings={})

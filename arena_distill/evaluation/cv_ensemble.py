"""The folds of one or several cross-validated runs made into one submission, weighted by held-out predictions.

Within a run every row is held out by one fold, so the folds have no row in common and no optimum over them exists:
they are weighted by inverse held-out log loss. Over all its folds a run predicts every row out of fold, so several
runs can be weighted against each other on the rows that they share.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from arena_distill.evaluation.calibration_file import weights_sha256
from arena_distill.evaluation.ensemble import (
    Space,
    combine,
    cross_fitted_loss,
    equal_weights,
    inverse_loss_weights,
    simplex_weights,
)
from arena_distill.evaluation.heldout import HELDOUT_FILE, HeldOut, read_heldout
from arena_distill.evaluation.metrics import kaggle_log_loss
from arena_distill.evaluation.submission_ensemble import (
    manifest_path,
    read_submissions,
    refuse_overwriting,
    write_ensemble,
)
from arena_distill.runtime.artifacts import MANIFEST, read_manifest, read_manifest_file
from arena_distill.runtime.errors import InputError, SettingsError

Method: TypeAlias = Literal["auto", "equal", "inverse", "optimal"]

FEW_ROWS = 50
"""With fewer common rows than this, an optimum over runs would say more about the rows than about the runs."""

N_PARTS = 5
"""Parts of the cross-fitting; with fewer distinct prompts there is no optimum either."""

MAX_FOLDS = 100

NOTE = (
    "note: a distilled student's held-out rows were seen by the other folds' teachers (a second-order leak): "
    "use these figures as weights, and a test set for the score"
)
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class FoldMember:
    """The student of one fold, its submission, and what it says of rows that it did not learn from."""

    run: str
    fold: int
    directory: Path
    submission: Path
    held_out: HeldOut

    @property
    def name(self) -> str:
        """For tables and messages."""
        return f"{self.run} fold {self.fold}".lstrip()

    @cached_property
    def loss(self) -> float:
        """Kaggle log loss on its held-out rows."""
        return kaggle_log_loss(self.held_out.probabilities, self.held_out.targets)


@dataclass(frozen=True)
class CommonRows:
    """Out-of-fold predictions of R runs for the N rows that all of them hold out."""

    members: np.ndarray  # float64 [R, N, 3]
    targets: np.ndarray  # float64 [N, 3]
    prompt_hash: np.ndarray  # uint64 [N]


def read_run(output_dir: Path, run: str, student: str) -> list[FoldMember]:
    """The folds of one run, in order.

    Args:
        output_dir: where ``model_save/`` and ``sub/`` are.
        run: its name; may be empty.
        student: name of the student's directories, without ``_fold_K``.

    Raises:
        SettingsError: a name is not one.
        InputError: a fold, its submission or its held-out predictions are missing or damaged; manifests contradict
            their directories or each other; two folds hold out the same row.
    """
    if run and not re.fullmatch(_NAME, run):
        raise SettingsError(f"--run {run!r}: is not a run name -> letters, digits, dot, dash and underscore")
    if not re.fullmatch(_NAME, student):
        raise SettingsError(f"--student {student!r}: is not a directory's name -> letters, digits, dot, dash …")
    models = output_dir / "model_save" / run
    n_folds = _n_folds(models, student)
    where = {fold: models / f"{student}_fold_{fold}" for fold in range(n_folds or 1)}
    if missing := [fold for fold, directory in where.items() if read_manifest(directory) is None]:
        fold = missing[0]
        also = f" (and so are {', '.join(map(str, missing[1:]))})" if missing[1:] else ""
        raise InputError(f"{where[fold]}: fold {fold} is missing{also}{_remedy(output_dir, run, fold)}")
    members = []
    for fold, directory in where.items():
        submission = output_dir / "sub" / f"{run}{'_' if run else ''}student_submission_fold_{fold}.csv"
        if not submission.is_file():
            raise InputError(f"{submission}: the submission of fold {fold} is missing{_remedy(output_dir, run, fold)}")
        written = read_manifest_file(manifest_path(submission)) or {}
        if (by := written.get("weights_sha256")) and by != weights_sha256(directory):
            problem = f"was written by an earlier student than the one in {directory}"
            raise InputError(f"{submission}: {problem}{_remedy(output_dir, run, fold)}")
        members.append(FoldMember(run, fold, directory, submission, read_heldout(directory / HELDOUT_FILE)))
    _refuse_shared_rows(members)
    _refuse_other_tests(members)
    return members


def _refuse_other_tests(members: Sequence[FoldMember]) -> None:
    """Refuse predictions of different files, whose rows may carry the same ids."""
    first: tuple[Path, str] | None = None
    for member in members:
        written = read_manifest_file(manifest_path(member.submission)) or {"inputs": {}}
        test = written["inputs"].get("test_csv")
        if test is None:
            continue
        if first is not None and test != first[1]:
            raise InputError(
                f"{member.submission}: predicts another test file than {first[0]} -> predict one file with every fold"
            )
        first = first or (member.submission, test)


def common_rows(runs: Sequence[Sequence[FoldMember]]) -> CommonRows:
    """The rows that every run holds out in one of its folds, by ``base_idx``.

    Raises:
        InputError: two runs have other texts or other votes for one ``base_idx``, so their data files differ.
    """
    tables = [_out_of_fold(members) for members in runs]
    common = tables[0].base_idx
    for table in tables[1:]:
        common = np.intersect1d(common, table.base_idx, assume_unique=True)
    places = [np.searchsorted(table.base_idx, common) for table in tables]  # each table is sorted by base_idx
    first, at = tables[0], places[0]
    for members, table, place in zip(runs[1:], tables[1:], places[1:], strict=True):
        texts = np.array(first.row_hash)[at] != np.array(table.row_hash)[place]
        votes = (np.abs(first.targets[at] - table.targets[place]) > 1e-9).any(axis=1)
        for differs, what in ((texts, "texts"), (votes, "votes")):
            if differs.any():
                raise InputError(
                    f"{members[0].directory.parent}: the run {members[0].run!r} has other {what} for base_idx "
                    f"{common[differs][0]} than the run {runs[0][0].run!r}: they were trained on different data files "
                    "-> ensemble them with --weights equal, or train both on one file"
                )
    return CommonRows(
        np.stack([table.probabilities[place] for table, place in zip(tables, places, strict=True)]),
        first.targets[at],
        first.prompt_hash[at],
    )


def run_weights(
    runs: Sequence[Sequence[FoldMember]], method: Method, space: Space
) -> tuple[np.ndarray, dict[str, float]]:
    """What each run weighs against the others, and the losses that speak for it.

    Args:
        runs: the folds of each run.
        method: ``auto`` and ``optimal``: the optimum on the common rows, or inverse losses if those are too few (then
            it says so); ``inverse``: by each run's loss on all its held-out rows.
        space: how the runs' predictions are combined.

    Returns:
        Weights ``[R]`` that sum to 1, and log losses on the common rows by name; none where there is no optimum.

    Raises:
        SettingsError: the optimum of a single run was asked for.
        InputError: see ``common_rows``.
    """
    if method == "optimal" and len(runs) == 1:
        raise SettingsError(
            "--weights optimal: the folds of one run hold out disjoint rows, so no optimum over them exists "
            "-> use --weights inverse, or give several runs"
        )
    if len(runs) == 1:
        return equal_weights(1), {}
    if method != "inverse":
        rows = common_rows(runs)
        prompts = len(np.unique(rows.prompt_hash))
        if len(rows.targets) >= FEW_ROWS and prompts >= N_PARTS:
            weights = simplex_weights(rows.members, rows.targets, space)
            return weights, _figures([members[0].run for members in runs], rows, weights, space)
        print(
            f"note: the runs have only {len(rows.targets)} held-out rows ({prompts} prompts) in common, too few for an "
            "optimum; the runs are weighted by inverse held-out log loss"
        )
    tables = [_out_of_fold(members) for members in runs]
    return inverse_loss_weights([kaggle_log_loss(t.probabilities, t.targets) for t in tables]), {}


def ensemble_runs(
    out: Path,
    runs: Sequence[str],
    *,
    output_dir: Path,
    student: str,
    method: Method,
    space: Space,
    test_csv: Path | None,
    started: float,
) -> None:
    """What ``scripts/ensemble_from_cv.py`` does: read, weigh, print the tables, write.

    ``equal`` gives every fold of every run the same weight. Otherwise a fold's weight is its run's (see
    ``run_weights``) times its share of the run by inverse held-out log loss.

    Raises:
        SettingsError: a name is malformed, a run is given twice, or the method does not suit the number of runs.
        InputError: see ``read_run``, ``common_rows`` and ``submission_ensemble``.
    """
    if twice := [run for index, run in enumerate(runs) if run in runs[:index]]:
        raise SettingsError(f"--run {twice[0]!r}: is given twice -> name each run once")
    folds = [read_run(output_dir, run, student) for run in runs]
    members = [member for run in folds for member in run]
    tables = [member.directory / HELDOUT_FILE for member in members]
    manifests = [member.directory / MANIFEST for member in members]
    refuse_overwriting(out, [*(member.submission for member in members), *tables, *manifests, test_csv])
    for member in members:
        if out.resolve().is_relative_to(member.directory.resolve()):
            raise InputError(f"{out}: lies inside a student -> choose another place for the output")
    figures: dict[str, float] = {}
    if method == "equal":
        weights = equal_weights(len(members))
    else:
        shares, figures = run_weights(folds, method, space)
        inside = [inverse_loss_weights([member.loss for member in run]) for run in folds]
        weights = np.concatenate([share * part for share, part in zip(shares, inside, strict=True)])
    submissions = read_submissions([member.submission for member in members], test_csv)
    print(_member_table(members, weights))
    if figures:
        print("\nLog loss on the held-out rows that the runs have in common")
        print(_aligned([[name, f"{loss:.4f}"] for name, loss in figures.items()]))
    print(NOTE)
    write_ensemble(
        out,
        submissions,
        weights,
        space,
        started=started,
        settings={"runs": list(runs), "student": student, "method": method},
        inputs=tables,
        table=[
            {"run": m.run, "fold": m.fold, "heldout_rows": len(m.held_out.ids), "heldout_log_loss": m.loss}
            for m in members
        ],
        details={"common_log_loss": figures} if figures else None,
    )


def _n_folds(models: Path, student: str) -> int:
    """How many folds the run has, by its manifests; 0 where none is there yet."""
    pattern = re.compile(re.escape(student) + r"_fold_(\d+)")
    found = sorted(models.iterdir()) if models.is_dir() else []
    said: dict[Path, int] = {}
    for directory, match in ((path, pattern.fullmatch(path.name)) for path in found):
        if match is None or (manifest := read_manifest(directory)) is None:
            continue
        fold, n_folds = manifest.get("fold"), manifest.get("n_folds")
        if type(fold) is not int or type(n_folds) is not int:
            raise InputError(f"{directory}: its manifest names no fold -> train it as a fold: job_distill.sh")
        if directory.name != f"{student}_fold_{fold}":
            raise InputError(f"{directory}: its manifest says fold {fold} -> it was copied or renamed; train it again")
        if not 0 <= fold < n_folds <= MAX_FOLDS:
            raise InputError(f"{directory}: its manifest says fold {fold} of {n_folds} -> train it again")
        said[directory] = n_folds
    if len(set(said.values())) > 1:
        one, other = (next(path for path, count in said.items() if count == n) for n in sorted(set(said.values()))[:2])
        raise InputError(
            f"{other}: is one of {said[other]} folds, but {one.name} is one of {said[one]} -> keep the folds of one "
            "division in a run, and train the others under another RUN"
        )
    return next(iter(said.values()), 0)


def _remedy(output_dir: Path, run: str, fold: int) -> str:
    place = f"OUTPUT_DIR={shlex.quote(str(output_dir))} " if output_dir != Path() else ""
    return f" -> {place}FOLD={fold} {f'RUN={run} ' if run else ''}sbatch job_distill.sh"


def _refuse_shared_rows(members: Sequence[FoldMember]) -> None:
    base_idx = np.concatenate([member.held_out.base_idx for member in members])
    owner = np.repeat(np.arange(len(members)), [len(member.held_out.base_idx) for member in members])
    order = np.argsort(base_idx, kind="stable")
    again = np.flatnonzero(np.diff(base_idx[order]) == 0)
    if again.size:
        first, second = (members[owner[order[again[0] + step]]] for step in (0, 1))
        row = base_idx[order[again[0]]]
        raise InputError(
            f"{second.directory / HELDOUT_FILE}: fold {second.fold} holds out base_idx {row}, and "
            f"so does fold {first.fold}: they are not folds of one division -> train all folds with one folds file"
        )


def _out_of_fold(members: Sequence[FoldMember]) -> HeldOut:
    """The held-out predictions of all folds of a run, by ``base_idx``."""
    parts = [member.held_out for member in members]
    base_idx = np.concatenate([part.base_idx for part in parts])
    order = np.argsort(base_idx)
    ids, hashes = ([text for part in parts for text in getattr(part, name)] for name in ("ids", "row_hash"))
    return HeldOut(
        ids=[ids[index] for index in order],
        row_hash=[hashes[index] for index in order],
        base_idx=base_idx[order],
        prompt_hash=np.concatenate([part.prompt_hash for part in parts])[order],
        probabilities=np.concatenate([part.probabilities for part in parts])[order],
        targets=np.concatenate([part.targets for part in parts])[order],
    )


def _figures(names: Sequence[str], rows: CommonRows, weights: np.ndarray, space: Space) -> dict[str, float]:
    losses = {
        f"run {name} (weight {weight:.4f})": kaggle_log_loss(p, rows.targets)
        for name, weight, p in zip(names, weights, rows.members, strict=True)
    }
    equal = combine(rows.members, equal_weights(len(names)), space)
    optimum = combine(rows.members, weights, space)
    return losses | {
        "equal weights": kaggle_log_loss(equal, rows.targets),
        "optimal weights, in sample": kaggle_log_loss(optimum, rows.targets),
        "optimal weights, cross-fitted": cross_fitted_loss(
            rows.members, rows.targets, rows.prompt_hash, space, n_parts=N_PARTS
        ),
    }


def _member_table(members: Sequence[FoldMember], weights: np.ndarray) -> str:
    lines = [["member", "held-out rows", "held-out log loss", "weight"]]
    for member, weight in zip(members, weights, strict=True):
        lines.append([member.name, f"{len(member.held_out.ids):,}", f"{member.loss:.4f}", f"{weight:.4f}"])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True))])
        for name, *numbers in lines
    )

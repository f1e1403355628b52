"""Step 2: divide the base rows into folds and write each fold's training and validation rows. Imports no torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arena_distill.data.find_file import find_file
from arena_distill.data.fold_files import fold_csv, write_fold_csv
from arena_distill.data.fold_rows import FoldRows, fold_rows
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.folds import Folds, load_folds, make_folds, save_folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import is_extra, shares_prompt
from arena_distill.data.reading import data_sha256
from arena_distill.data.records import Rows
from arena_distill.data.scratch_copy import copy_to_scratch, require_room
from arena_distill.runtime.artifacts import (
    MANIFEST,
    fingerprint,
    is_up_to_date,
    locked,
    partial_directory,
    publish,
    read_manifest,
    recover,
    require_replaceable,
    sha256_file,
    write_atomically,
    write_manifest,
)
from arena_distill.runtime.errors import DataError, InputError, SettingsError
from arena_distill.runtime.progress import Progress
from arena_distill.runtime.stages import MAKE_FOLDS

STAGE = MAKE_FOLDS.name
FILES_VERSION = 1  # of the layout of the fold files; another number makes them again


def run(settings: FoldSettings) -> None:
    """Make the folds, unless they are there already, and their copy on scratch.

    Raises:
        SettingsError: an output would replace an input, or there are fewer distinct prompts than folds.
        InputError: an input cannot be used, or an output cannot be written.
    """
    stage = FoldStage.plan(settings)
    with locked(stage.final):
        recover(stage.final)
        require_replaceable(stage.final, STAGE)
        if not settings.force and stage.is_up_to_date():
            print(f"up to date: {stage.final}")
        else:
            stage.make()
        if settings.scratch_folds:
            stage.copy_to(settings.scratch_folds)


@dataclass(frozen=True)
class FoldCounts:
    """Rows of one fold, and the share of each label in its validation part."""

    fold: int
    train_base: int
    train_extra: int
    held_out_extra: int
    val: int
    val_a: float
    val_b: float
    val_tie: float

    HEADER: ClassVar[str] = "fold  train base  train extra  held-out extra      val      A      B    tie"

    @classmethod
    def of(cls, fold: int, parts: FoldRows) -> FoldCounts:
        """Count."""
        extra = int(is_extra(parts.train).sum())
        shares = np.bincount(parts.val["label"].to_numpy(), minlength=3) / len(parts.val)
        return cls(
            fold, len(parts.train) - extra, extra, parts.held_out_extra, len(parts.val), *shares.round(4).tolist()
        )

    def __str__(self) -> str:
        shares = "  ".join(f"{share:.3f}" for share in (self.val_a, self.val_b, self.val_tie))
        return (
            f"{self.fold:4}  {self.train_base:10,}  {self.train_extra:11,}  {self.held_out_extra:14,}  "
            f"{self.val:7,}  {shares}"
        )


@dataclass(frozen=True)
class FoldStage:
    """One making of folds: its inputs, and what determines its output."""

    settings: FoldSettings
    base_file: Path
    inputs: dict[str, str]  # input -> sha256

    @classmethod
    def plan(cls, settings: FoldSettings) -> FoldStage:
        """Find the inputs and hash them.

        Raises:
            SettingsError: an output directory holds an input, the folds file or the other output.
            InputError: an input is missing or of an unknown kind.
        """
        base_file = find_file(settings.train_csv, "train", "--train-csv")
        _refuse_overlap(settings, base_file)
        inputs = {"train_csv": data_sha256(base_file)}
        inputs |= {f"extra_data_{number}": data_sha256(path) for number, path in enumerate(settings.extra_paths)}
        return cls(settings, base_file, inputs)

    @property
    def final(self) -> Path:
        """Directory of the fold files."""
        return self.settings.fold_data

    @property
    def decisive(self) -> dict[str, Any]:
        """What determines the output besides the inputs."""
        return {"n_folds": self.settings.n_folds, "seed": self.settings.seed, "files_version": FILES_VERSION}

    def is_up_to_date(self) -> bool:
        """Whether the fold files are there, made of these inputs and of the folds file that is there."""
        manifest, folds_file = read_manifest(self.final), self.settings.folds_path
        return (
            manifest is not None
            and is_up_to_date(self.final, fingerprint(self.decisive, self.inputs))
            and folds_file.is_file()
            and sha256_file(folds_file) == manifest.get("folds_json_sha256")
        )

    def make(self) -> None:
        """Load the rows, make or keep the folds, and write everything; what was there stays until all is written."""
        started = time.time()
        loaded = [load_labelled(path) for path in (self.base_file, *self.settings.extra_paths)]
        for one in loaded:
            print(one.summary)
        base, *extras = (one.rows for one in loaded)
        partial = partial_directory(self.final)
        shutil.rmtree(partial, ignore_errors=True)  # making it takes seconds: there is nothing to resume
        partial.mkdir(parents=True)
        try:
            folds_file = self._folds_file(base, partial)
            folds = load_folds(folds_file)
            counts = self._write_folds(base, extras, folds, partial)
            folds_json = folds_file.read_bytes()
            write_manifest(
                partial,
                stage=STAGE,
                settings=self.decisive,
                inputs=self.inputs,
                started=started,
                details={
                    "all_settings": self.settings.dump(),
                    "rows": {"base": len(base), "extra": sum(map(len, extras))},
                    "rows_sha256": folds.rows_sha256,
                    "folds_json": self.settings.folds_path.name,
                    "folds_json_sha256": sha256_file(folds_file),
                    "folds": [asdict(one) for one in counts],
                    "loading": [one.summary.as_dict() for one in loaded],
                },
            )
            if folds_file != self.settings.folds_path:
                folds_file.unlink()
                write_atomically(self.settings.folds_path, folds_json)
            publish(partial, self.final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        print(f"wrote {self.final} and {self.settings.folds_path} in {time.time() - started:.1f} s")

    def _folds_file(self, base: Rows, partial: Path) -> Path:
        """The folds file that is there, if it is good for ``base``; else a new one, hidden in ``partial``."""
        path, settings = self.settings.folds_path, self.settings
        old = _read_folds(path)
        wanted = (rows_sha256(base), settings.n_folds, settings.seed)
        fits = old is not None and (old.rows_sha256, old.n_folds, old.seed) == wanted
        if fits and not settings.force:
            print(f"kept {path}")
            return path
        new = make_folds(base, settings.n_folds, settings.seed)
        if fits and old is not None and np.array_equal(old.fold, new.fold):
            return path
        if replaced := self._replaced(old, new):
            print(f"note: {replaced} are replaced, and teachers trained on them do not fit these {len(base):,} rows")
        fresh = partial / ".folds.json"
        save_folds(new, fresh, self.base_file)
        return fresh

    def _replaced(self, old: Folds | None, new: Folds) -> str:
        """In words: the folds whose place the new ones take; empty if there are none, or equal ones."""
        if old is not None:
            return f"the {old.n_folds} folds of {len(old.fold):,} rows (seed {old.seed}) in {self.settings.folds_path}"
        manifest = read_manifest(self.final)
        if manifest is None:
            return ""
        rows, n_folds, seed = manifest["rows"]["base"], manifest["settings"]["n_folds"], manifest["settings"]["seed"]
        if (manifest["rows_sha256"], n_folds, seed) == (new.rows_sha256, new.n_folds, new.seed):
            return ""
        return f"the {n_folds} folds of {rows:,} rows (seed {seed}) in {self.final}"

    def _write_folds(self, base: Rows, extras: list[Rows], folds: Folds, directory: Path) -> list[FoldCounts]:
        size = sum(rows.nbytes for rows in (base, *extras))
        require_room(directory, folds.n_folds * size)
        counts = []
        print(FoldCounts.HEADER)
        with Progress("write folds", folds.n_folds * (len(base) + sum(map(len, extras)))) as progress:
            for fold in range(folds.n_folds):
                parts = fold_rows(base, extras, folds, fold)
                _require_no_leak(parts, fold)
                write_fold_csv(parts.train, fold_csv(directory, fold, "train"))
                write_fold_csv(parts.val, fold_csv(directory, fold, "val"))
                counts.append(FoldCounts.of(fold, parts))
                print(counts[-1])
                progress.update(len(parts.train) + len(parts.val))
        return counts

    def copy_to(self, scratch: Path) -> None:
        """Copy the finished fold files, their manifest and the folds file to ``scratch``, unless they are there.

        Raises:
            InputError: there is no room, the disk fails, or ``scratch`` holds something else.
        """
        try:
            with locked(scratch):
                recover(scratch)
                require_replaceable(scratch, STAGE)
                files = self._files_for_scratch()
                if _is_copied(files, scratch):
                    print(f"up to date: {scratch}")
                    return
                copy_to_scratch(files, scratch)
                print(f"copied to {scratch}")
        except OSError as error:
            raise InputError(
                f"{scratch}: cannot be written ({error.strerror or error}) -> give another SCRATCH_BASE; "
                f"the folds in {self.final} are complete"
            ) from error

    def _files_for_scratch(self) -> dict[str, tuple[Path, str]]:
        """Name in the copy -> file and sha256."""
        manifest = read_manifest(self.final)
        assert manifest is not None, "copied before it was made"
        files = {name: (self.final / name, sha256) for name, sha256 in manifest["outputs"].items()}
        name = f"folds_{self.settings.n_folds}_seed{self.settings.seed}.json"
        files[name] = (self.settings.folds_path, manifest["folds_json_sha256"])
        files[MANIFEST] = (self.final / MANIFEST, sha256_file(self.final / MANIFEST))
        return files


def _is_copied(files: Mapping[str, tuple[Path, str]], scratch: Path) -> bool:
    """Whether the copy holds all files in their sizes, with the same manifest and thus the same hashes."""
    copies = [(path, scratch / name) for name, (path, _) in files.items()]
    if not all(copy.is_file() and copy.stat().st_size == path.stat().st_size for path, copy in copies):
        return False
    return sha256_file(scratch / MANIFEST) == files[MANIFEST][1]


def _read_folds(path: Path) -> Folds | None:
    """The folds that are there; None where nothing is.

    Raises:
        DataError: there is something else, which is not ours to replace.
    """
    if not path.exists():
        return None
    try:
        return load_folds(path)
    except DataError as error:
        hint = "move it away, or name another file with --folds-json"
        raise DataError(
            f"would be replaced, but holds no folds of ours ({error.problem})", file=path, hint=hint
        ) from error


def _require_no_leak(parts: FoldRows, fold: int) -> None:
    if shares_prompt(parts.val, parts.train).any():
        raise RuntimeError(f"internal error: fold {fold} would have held-out prompts in its training rows")


def _refuse_overlap(settings: FoldSettings, base_file: Path) -> None:
    directories = [path for path in (settings.fold_data, settings.scratch_folds) if path]
    files = [base_file, *settings.extra_paths, settings.folds_path]
    for place, directory in enumerate(directories):
        for other in (*files, *directories[:place], *directories[place + 1 :]):
            if other.resolve().is_relative_to(directory.resolve()):
                raise SettingsError(
                    f"{other} lies in {directory}, which is replaced as a whole -> choose another place for one of them"
                )

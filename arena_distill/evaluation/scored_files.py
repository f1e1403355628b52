"""Which files a submission is evaluated with: itself, its members, logits, votes; and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arena_distill.evaluation.eval_rows import NONE
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.evaluation.logits_file import submission_beside
from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.runtime.artifacts import read_manifest_file, sha256_file
from arena_distill.runtime.errors import InputError

_SAID_OF_MEMBERS = ("run", "fold")


@dataclass(frozen=True)
class Member:
    """A submission that the evaluated one was made of."""

    path: Path
    weight: float
    said: dict[str, Any]  # run and fold, where its ensemble's manifest names them


@dataclass(frozen=True)
class ScoredFiles:
    """What an evaluation reads. Every file in ``paths`` exists."""

    submission: Path
    test: Path
    labels: Path
    truth: Path | None
    train: Path | None
    logits: Path | None
    members: tuple[Member, ...]
    notes: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        """All of them, each once."""
        given = [*self._submissions, *self.manifests, self.test, self.labels, self.truth, self.train, self.logits]
        return list(dict.fromkeys(path for path in given if path))

    @property
    def manifests(self) -> list[Path]:
        """Those of the submissions."""
        return [path for path in map(manifest_path, self._submissions) if path.is_file()]

    @property
    def _submissions(self) -> list[Path]:
        beside = [submission_beside(self.logits)] if self.logits else []
        return [self.submission, *(member.path for member in self.members), *beside]

    @cached_property
    def sha256(self) -> dict[Path, str]:
        """Hash of each file."""
        return {path: sha256_file(path) for path in self.paths}


def find_files(settings: EvaluationSettings, test: Path, labels: Path) -> ScoredFiles:
    """Find what there is to evaluate with.

    Args:
        settings: name the submission, and what else is not in its default place.
        test: the test rows.
        labels: their votes.

    Raises:
        InputError: a file is missing; the submission, a member or the logits' submission predicts another test file;
            a member is not what it was when the ensemble was made.
    """
    submission = settings.submission_file
    for path, remedy in ((submission, "make it, or name another with --submission"), (test, "mend TEST_CSV")):
        if not path.is_file():
            raise InputError(f"{path}: no such file -> {remedy}")
    members, notes = _members(submission)
    logits, more = _logits(settings, [submission, *(member.path for member in members)])
    beside = [submission_beside(logits)] if logits else []
    _refuse_other_tests([submission, *(member.path for member in members), *beside], test)
    return ScoredFiles(
        submission, test, labels, settings.truth_file, settings.train_file, logits, members, (*notes, *more)
    )


def _members(submission: Path) -> tuple[tuple[Member, ...], list[str]]:
    manifest = read_manifest_file(manifest_path(submission))
    if manifest is None or not manifest.get("members"):
        return (), []
    if manifest["outputs"].get(submission.name) != sha256_file(submission):
        return (), [f"note: {submission} is not the file that its manifest is of: its members are left out"]
    found = []
    for entry in manifest["members"]:
        path = _where(Path(entry["file"]), submission)
        if sha256_file(path) != manifest["inputs"].get(entry["file"]):
            raise InputError(f"{path}: has changed since {submission} was made of it -> make the ensemble again")
        said = {name: entry[name] for name in _SAID_OF_MEMBERS if name in entry}
        found.append(Member(path, float(entry["weight"]), said))
    return tuple(found), []


def _where(named: Path, submission: Path) -> Path:
    """A member as its ensemble's manifest names it, or of that name beside the ensemble: it may have been moved."""
    for path in (named, submission.with_name(named.name)):
        if path.is_file():
            return path
    raise InputError(f"{named}: {submission} was made of it, and it is gone -> make the ensemble again")


def _logits(settings: EvaluationSettings, scored: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """Logits that were given, or the default ones if they are of what is scored."""
    if settings.evaluation_logits == NONE:
        return None, []
    given = Path(settings.evaluation_logits) if settings.evaluation_logits else None
    path = given or settings.default_logits
    if given and not given.is_file():
        raise InputError(f"EVALUATION_LOGITS={given}: no such file -> check the path, or say none")
    if not path.is_file():
        return None, []
    beside = submission_beside(path)
    if not beside.is_file():
        raise InputError(f"{beside}: missing beside {path} -> run step 8 again, or say EVALUATION_LOGITS=none")
    if given or beside.resolve() in {one.resolve() for one in scored}:
        return path, []
    note = f"note: {path} is not of this submission: no position bias, calibration and views (EVALUATION_LOGITS={path})"
    return None, [note]


def _refuse_other_tests(submissions: Iterable[Path], test: Path) -> None:
    """Refuse predictions of another file, whose rows may carry the same ids."""
    digest = sha256_file(test)
    for path in dict.fromkeys(submissions):
        predicted = (read_manifest_file(manifest_path(path)) or {"inputs": {}})["inputs"].get("test_csv")
        if predicted not in (None, digest):
            raise InputError(
                f"{path}: predicts another test file than {test} -> give the one that it predicts with TEST_CSV"
            )

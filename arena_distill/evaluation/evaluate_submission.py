"""How good a submission is, by the votes on its rows: scores with intervals, slices, biases, and its members."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.calibration_file import view_names
from arena_distill.evaluation.classwise import confusion_matrix, per_class
from arena_distill.evaluation.comparison import LEVEL, row_losses
from arena_distill.evaluation.eval_rows import NONE, EvalRows, load_eval_rows
from arena_distill.evaluation.evaluation_file import (
    SCHEMA_VERSION,
    changed_files,
    finished_evaluation,
    name_of,
    read_evaluation,
    write_evaluation,
)
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.evaluation.evaluation_tables import format_evaluation
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.logits_file import ViewLogits, read_temperature, read_view_logits
from arena_distill.evaluation.metrics import kaggle_log_loss, score, softmax
from arena_distill.evaluation.position_bias import position_bias
from arena_distill.evaluation.reliability import calibration_effect, ece_if_calibrated, reliability_bins
from arena_distill.evaluation.scored_files import ScoredFiles, find_files
from arena_distill.evaluation.slices import slice_scores, slicings
from arena_distill.evaluation.submission import read_submission
from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.runtime.artifacts import fingerprint, locked, require_writable
from arena_distill.runtime.errors import InputError


def evaluate(settings: EvaluationSettings) -> None:
    """What ``scripts/evaluate.py`` does: score, print the tables, write ``evaluation.json``.

    Without votes it says so and does nothing.

    Raises:
        InputError, DataError: a file is missing, cannot be used, or does not belong to the others; names it.
    """
    started = time.time()
    out = settings.out_file
    labels = _labels_file(settings)
    if labels is None:
        _say_that_there_are_no_votes(settings)
        return
    files = find_files(settings, settings.test_file, labels)
    _refuse_overwriting(out, files)
    require_writable(out)
    names = {path: name_of(path, settings.output_dir) for path in files.paths}
    hashes = {names[path]: digest for path, digest in files.sha256.items()}
    # Manifests say when they were written: of them counts only what is read in them.
    inputs = {names[path]: files.sha256[path] for path in files.paths if path not in files.manifests}
    determining = {
        "schema_version": SCHEMA_VERSION,
        "submission": names[files.submission],
        "members": {names[member.path]: member.weight for member in files.members},
        "temperature": read_temperature(files.logits) if files.logits else None,
        "evaluation_resamples": settings.evaluation_resamples,
        "seed": settings.seed,
    }
    with locked(out):
        older = None if settings.force else finished_evaluation(out, fingerprint(determining, inputs))
        document = (older or _evaluation(settings, files, names)) | {"files": hashes}
        if document != older:
            write_evaluation(out, document, settings=determining, inputs=inputs, started=started)
    print(format_evaluation(document))
    print(f"{out}: {'up to date' if older else f'written in {time.time() - started:.1f} s'}")


def _labels_file(settings: EvaluationSettings) -> Path | None:
    """The votes, if there are any.

    Raises:
        InputError: a file that was given is missing.
    """
    if settings.test_csv and not settings.test_file.is_file():
        raise InputError(f"TEST_CSV={settings.test_csv}: no such file -> check the path")
    try:
        return None if settings.labels_csv == NONE else settings.labels_file
    except InputError:
        if settings.test_csv or settings.labels_csv:
            raise
        return None  # there is no test file in the default places either


def _say_that_there_are_no_votes(settings: EvaluationSettings) -> None:
    rows = f" on {settings.test_csv}" if settings.test_csv else ""
    print(f"no votes{rows} at hand, so nothing to evaluate with -> LABELS_CSV=file, or FILE_labels.csv beside FILE.csv")
    out = settings.out_file
    with suppress(InputError):
        if (older := read_evaluation(out)) is not None and changed_files(older, settings.output_dir):
            print(f"note: {out} is of earlier files")


def _refuse_overwriting(out: Path, files: ScoredFiles) -> None:
    for written in (out, manifest_path(out)):
        for path in files.paths:
            if written.resolve() == path.resolve():
                raise InputError(f"{out}: would overwrite the input {path} -> choose another --evaluation-out")


def _evaluation(settings: EvaluationSettings, files: ScoredFiles, names: Mapping[Path, str]) -> dict[str, Any]:
    """The whole document but for ``files``, ready for JSON."""
    data = load_eval_rows(settings)
    assert data.votes is not None  # there is a labels file
    votes = data.votes
    _, p = read_submission(files.submission, data.ids)
    members = [(member, read_submission(member.path, data.ids)[1]) for member in files.members]
    logits = read_view_logits(files.logits, data.ids) if files.logits else None
    train = load_labelled(files.train).rows if files.train else None
    notes = [*files.notes, *_shared_rows(data, train, files.train)]
    bootstrap = PromptBootstrap(data.prompts, settings.evaluation_resamples, settings.seed)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": settings.run,
        "submission": names[files.submission],
        "test": names[files.test],
        "labels": names[files.labels],
        "logits": names[files.logits] if files.logits else None,
        "rows": len(votes),
        "prompts": len(np.unique(data.prompts)),
        "bootstrap": {"resamples": settings.evaluation_resamples, "seed": settings.seed, "level": LEVEL},
        "notes": notes,
        "scores": {name: interval.as_dict() for name, interval in bootstrap.scores(p, votes).items()},
        "ece_if_calibrated": ece_if_calibrated(p, settings.seed),
        "baselines": _baselines(data.rows, train, p, votes, bootstrap),
        **_against_truth(p, votes, data.truth, bootstrap),
        "per_class": per_class(p, votes),
        "confusion": confusion_matrix(p, votes).tolist(),
        "slices": slice_scores(slicings(data.rows, files.test), p, votes, bootstrap),
        "reliability": reliability_bins(p, votes),
        **_of_logits(logits, votes, bootstrap),
        "members": [
            {"file": names[member.path], "weight": member.weight, **member.said, **score(q, votes).as_dict()}
            for member, q in members
        ],
    }


def _shared_rows(data: EvalRows, train: Rows | None, train_file: Path | None) -> list[str]:
    """What the test rows have in common with those that the baselines are fitted on.

    Raises:
        InputError: most of them are among those.
    """
    if train is None:
        return []
    shared, same = (
        int(pc.sum(pc.is_in(data.rows[name], train[name].combine_chunks())).as_py())
        for name in ("prompt_hash", "row_hash")
    )
    if 2 * same > len(data.rows):
        raise InputError(
            f"{train_file}: holds {same:,} of the {len(data.rows):,} rows of {data.test_file}, so baselines fitted on "
            "it would know their votes -> give other training rows with TRAIN_CSV, or TRAIN_CSV=none"
        )
    if not shared:
        return []
    whole = f", {same:,} of them with the same answers" if same else ""
    return [f"note: {shared:,} of {len(data.rows):,} test rows have a prompt of the training file{whole}"]


def _baselines(
    rows: Rows, train: Rows | None, p: np.ndarray, votes: np.ndarray, bootstrap: PromptBootstrap
) -> dict[str, dict[str, Any]]:
    """Scores of each baseline, and the submission's log loss minus its own on the same draws."""
    if train is None:
        return {}
    from arena_distill.evaluation.baselines import fit_baselines

    own = row_losses(p, votes)
    predicted = {name: model.predict(rows) for name, model in fit_baselines(train).items()}
    return {
        name: score(q, votes).as_dict() | {"difference": bootstrap.mean(own - row_losses(q, votes)).as_dict()}
        for name, q in predicted.items()
    }


def _against_truth(
    p: np.ndarray, votes: np.ndarray, truth: np.ndarray | None, bootstrap: PromptBootstrap
) -> dict[str, Any]:
    """Where the votes' true probabilities are known: their own scores, and cross entropies against them."""
    if truth is None:
        return {"truth": None, "expected_log_loss": None}
    return {
        "truth": score(truth, votes).as_dict() | {"expected_log_loss": kaggle_log_loss(truth, truth)},
        "expected_log_loss": bootstrap.mean(row_losses(p, truth)).as_dict(),
    }


def _of_logits(found: ViewLogits | None, votes: np.ndarray, bootstrap: PromptBootstrap) -> dict[str, Any]:
    if found is None:
        return {"position_bias": None, "calibration": None, "tta": None}
    probabilities = softmax(found.logits, found.temperature)
    return {
        "position_bias": position_bias(found.views, probabilities, bootstrap),
        "calibration": calibration_effect(found.logits, found.temperature, votes),
        "tta": _views_apart(found, votes),
    }


def _views_apart(found: ViewLogits, votes: np.ndarray) -> list[dict[str, Any]]:
    """Scores of each view alone, of each length in all its orders, and of all views; each set of views once."""
    numbers = range(len(found.views))
    by_length = groupby(sorted(numbers, key=lambda v: found.views[v].max_length), lambda v: found.views[v].max_length)
    sets = [*((v,) for v in numbers), *(tuple(group) for _, group in by_length), tuple(numbers)]
    table = []
    for chosen in dict.fromkeys(sets):
        scores = score(view_probabilities(found.logits[list(chosen)], found.temperature), votes)
        table.append({"views": list(view_names([found.views[v] for v in chosen])), **scores.as_dict()})
    return table

"""``calibration.json`` beside a student's weights: its temperature, and what that holds for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.data.prompts import View
from arena_distill.evaluation.calibration import load_calibration
from arena_distill.runtime.artifacts import sha256_file, write_atomically
from arena_distill.runtime.errors import InputError

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class SavedCalibration:
    """What a ``calibration.json`` says."""

    temperature: float
    views: tuple[str, ...]  # names of the views that it was fitted with; empty where unknown
    figures: Mapping[str, Any]


def view_names(views: Sequence[View]) -> tuple[str, ...]:
    """``512``, ``512 swapped`` …"""
    return tuple(f"{view.max_length}{' swapped' if view.swap else ''}" for view in views)


def write_calibration(
    directory: Path, report: Mapping[str, Any], views: Sequence[View], weights: str | None = None
) -> None:
    """Keep ``report`` with what it holds for: the weights in ``directory``, and these views.

    Args:
        directory: of the student.
        report: temperature and figures.
        views: that the logits were of.
        weights: what ``weights_sha256`` was when the logits were made; default: what it is now.

    Raises:
        InputError: there are no weights, or others than those.
    """
    now = weights_sha256(directory)
    if weights not in (None, now):
        raise InputError(f"{directory}: was trained again in the meantime -> run student-calibrate again")
    document = {**report, "views": view_names(views), "weights_sha256": now}
    write_atomically(directory / CALIBRATION_FILE, json.dumps(document, indent=2) + "\n")


def read_calibration(directory: Path, weights: str | None = None) -> SavedCalibration | None:
    """The calibration of the student in ``directory``; None if there is none.

    Args:
        directory: of the student.
        weights: its ``weights_sha256``, where that is known already.

    Raises:
        InputError: it is broken, or was fitted on other weights.
    """
    path = directory / CALIBRATION_FILE
    if not path.is_file():
        return None
    calibration = read_calibration_file(path)
    fitted_on = calibration.figures.get("weights_sha256")
    if fitted_on is not None and fitted_on != (weights or weights_sha256(directory)):
        raise InputError(f"{path}: was fitted on other weights -> run student-calibrate again")
    return calibration


def read_calibration_file(path: Path) -> SavedCalibration:
    """What a calibration file says, whichever weights it is of.

    Raises:
        InputError: it is missing or broken.
    """
    temperature = load_calibration(path)
    document = json.loads(path.read_text("utf-8-sig"))
    views = document.get("views") or []
    if not isinstance(views, list):
        raise InputError(f"{path}: 'views' must be a list, not {views!r:.40} -> run student-calibrate again")
    return SavedCalibration(temperature, tuple(map(str, views)), document)


def temperature_for(calibration: SavedCalibration | None, views: Sequence[View], file: Path, advice: str) -> float:
    """The temperature to predict with, or 1 where none was fitted; says so where views differ, or none is there.

    Args:
        calibration: what was found.
        views: that will be averaged over.
        file: where the calibration is, or would be.
        advice: what to do for a temperature of these views.
    """
    if calibration is None:
        print(f"{file}: missing, so probabilities are not calibrated (see student-calibrate)")
        return 1.0
    used = view_names(views)
    if calibration.views and calibration.views != used:
        print(
            f"note: the temperature was fitted with the views {', '.join(calibration.views)} and is used with "
            f"{', '.join(used)}; {advice}"
        )
    return calibration.temperature


def weights_sha256(directory: Path) -> str:
    """What tells the weights in ``directory`` from others.

    Raises:
        InputError: there are none.
    """
    whole = [sha256_file(path) for path in sorted(directory.glob("*.safetensors"))]
    if not whole:
        raise InputError(f"{directory}: no weights (*.safetensors) -> train the student again")
    return "+".join(whole)

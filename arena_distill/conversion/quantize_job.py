"""What step 7 is to make, and whether it is there already. Imports no torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.prompts import TextFormat
from arena_distill.data.reading import data_sha256
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE, read_calibration_file
from arena_distill.evaluation.eval_rows import eval_files
from arena_distill.inference.predict_job import student_identity
from arena_distill.models.quantized import is_quantized
from arena_distill.models.safetensors_file import read_checkpoint
from arena_distill.runtime.artifacts import (
    fingerprint,
    nearest_existing,
    read_manifest,
    recover,
    require_replaceable,
    sha256_file,
)
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import LORA_ENSEMBLE, QUANTIZE

STAGE = QUANTIZE.name
DISK_MARGIN = 1 << 26  # bytes left free beyond what is written
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")

_COMPARED_ON = ("test_csv", "labels_csv", "truth_parquet")  # inputs that earlier conversions were proved on
_DECISIVE = (
    "seed", "quant_bits", "quant_group_size", "quant_max_calib_samples", "quant_method", "quant_max_logloss_increase",
    "quant_min_agreement", "quant_eval_rows",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QuantizeJob(Job):
    """A quantization as its manifest will record it."""

    model: Path
    manifest: dict[str, Any]  # of the model; empty where it has none
    tokenizer: Path
    calibration_file: Path  # texts for GPTQ
    max_length: int  # tokens
    has_test: bool  # else rows of the calibration file are set aside
    temperature: float | None  # None: the model is not calibrated

    @property
    def passed_on(self) -> dict[str, Any]:
        """What the quantized model's manifest says as the model's own does."""
        names = ("n_folds", "folds", "base_model", "teachers", "second_order_leak")
        return {"max_length": self.max_length} | {name: self.manifest[name] for name in names if name in self.manifest}


def plan_quantization(settings: QuantizeSettings) -> QuantizeJob:
    """The work, after a look at all inputs.

    Raises:
        InputError: an input is missing, unfinished or of a wrong kind, or the output would replace what is not ours.
        SettingsError: the length limit is too small.
    """
    model, out = settings.model_path, settings.out_path
    recover(model)
    manifest = _checked_model(model)
    tokenizer = settings.tokenizer_path
    if not any(file for pattern in VOCABULARIES for file in tokenizer.glob(pattern)):
        raise InputError(f"{tokenizer}: holds no tokenizer -> give the directory of one in TOKENIZER_DIR")
    _refuse_overlap(model, out)
    recover(out)
    require_replaceable(out, STAGE)
    max_length = settings.quant_max_length or _trained_length(manifest, model)
    TextFormat.load(model).check_limit(max_length, "--max-length (or QUANT_MAX_LENGTH)")
    texts = settings.calibration_file
    calibration = model / CALIBRATION_FILE
    files = _eval_files(settings)
    inputs = {
        "model": student_identity(model),
        "tokenizer": _tokenizer_identity(tokenizer),
        "calib_csv": data_sha256(texts),
        "calibration": sha256_file(calibration) if calibration.is_file() else "none",
        **files,
    }
    _refuse_seen(files, inputs, manifest, texts)
    return QuantizeJob(
        settings={name: settings.dump()[name] for name in _DECISIVE} | {"max_length": max_length},
        inputs=inputs,
        final=out,
        model=model,
        manifest=manifest,
        tokenizer=tokenizer,
        calibration_file=texts,
        max_length=max_length,
        has_test="test_csv" in files,
        temperature=read_calibration_file(calibration).temperature if calibration.is_file() else None,
    )


def _checked_model(model: Path) -> dict[str, Any]:
    """The manifest of a plain classifier whose weights are all there."""
    if not model.is_dir():
        raise InputError(f"{model}: no such directory -> run {LORA_ENSEMBLE.script} first, or name it in MODEL_DIR")
    if (model / "adapter_config.json").is_file():
        raise InputError(f"{model}: is an adapter -> merge it first ({LORA_ENSEMBLE.script}, scripts/lora_merge.py)")
    if is_quantized(model):
        raise InputError(f"{model}: is quantized already -> name the model that it was made from in MODEL_DIR")
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
        kind = str((config.get("architectures") or ["a model of unknown kind"])[0])
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{model}: no model there (config.json: {error}) -> give a student's directory") from error
    if (model / "label_tokens.json").is_file() or not kind.endswith("ForSequenceClassification"):
        raise InputError(f"{model}: is {kind}, no sequence classifier -> give the directory of a student")
    TextFormat.load(model)
    read_checkpoint(model)
    manifest = read_manifest(model) or {}
    for name, size in manifest.get("output_bytes", {}).items():
        file = model / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f"{file}: missing or cut off -> make the model again")
    return manifest


def _trained_length(manifest: dict[str, Any], model: Path) -> int:
    length = manifest.get("max_length") or (manifest.get("all_settings") or {}).get("student_max_length")
    if not length:
        raise SettingsError(f"{model}: does not say at which length it was trained -> give --max-length, in tokens")
    return int(length)


def _refuse_overlap(model: Path, out: Path) -> None:
    source, target = model.resolve(), out.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise InputError(f"{out}: lies in {model}, or the other way round -> choose another OUT_DIR")


def _eval_files(settings: QuantizeSettings) -> dict[str, str]:
    """Hashes of test file, votes and truth; none if no test file is named and none lies in its place."""
    if not settings.test_csv:
        try:
            settings.test_file  # noqa: B018 (asks whether there is one)
        except InputError:
            return {}
    return eval_files(settings)


def _refuse_seen(files: dict[str, str], inputs: dict[str, str], manifest: dict[str, Any], texts: Path) -> None:
    """A comparison on rows that calibration or training saw would flatter the quantized model."""
    test = files.get("test_csv")
    if test is None:
        return
    if test == inputs["calib_csv"]:
        raise InputError(f"{texts}: CALIB_CSV is the test file -> calibrate on training texts")
    made_of = manifest.get("inputs") or {}
    if test in (digest for name, digest in made_of.items() if name not in _COMPARED_ON):
        raise InputError("TEST_CSV: is a file that the model was made from -> give rows that nothing was trained on")


def _tokenizer_identity(directory: Path) -> str:
    return fingerprint({}, {file.name: sha256_file(file) for file in tokenizer_files(directory)})


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of the tokenizer in a directory."""
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()})


def require_space(job: QuantizeJob) -> None:
    """Refuse before the work if the disk cannot take the result.

    Raises:
        InputError: it is too full.
    """
    files = read_checkpoint(job.model).files
    needed = sum((job.model / name).stat().st_size for name in files) + DISK_MARGIN
    free = shutil.disk_usage(nearest_existing(job.final)).free
    if free < needed:
        raise InputError(
            f"{job.final}: the quantized model may take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free -> free "
            "some space, or choose another OUT_DIR"
        )

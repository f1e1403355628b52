"""The work of step 7: quantize a classifier, prove it on held-out rows, and publish it only if it lost little."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arena_distill.conversion.calibration_texts import choose_calibration
from arena_distill.conversion.quantization_report import (
    REPORT_FILE,
    compare,
    layer_errors,
    refusal,
    report_text,
    weight_bytes,
)
from arena_distill.conversion.quantize_job import STAGE, QuantizeJob, require_space, tokenizer_files
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.loading import load_texts
from arena_distill.data.prompts import TEXT_FORMAT_FILE, Sequences, TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE, view_names, weights_sha256
from arena_distill.evaluation.eval_rows import load_eval_rows
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.gptq import GptqUnsupported, is_decoder, quantize_gptq, usable_group_size
from arena_distill.models.head_file import head_sha256, read_head, save_head
from arena_distill.models.int8 import quantize_int8
from arena_distill.models.probe import PROBE_LENGTH, check_probe, write_probe
from arena_distill.models.quantized import BITSANDBYTES, GPTQ, QUANTIZATION_FILE, TORCHAO
from arena_distill.models.release import release_memory
from arena_distill.runtime.artifacts import locked, publish, require_recorded, write_atomically, write_manifest
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from arena_distill.runtime.stages import LORA_ENSEMBLE

PROBE_CANDIDATES = 64  # rows that the probe's are picked from
SET_ASIDE = 5  # without a test file one in this many of the calibration rows is kept for the comparison
LEAST_ROWS = 16  # pairs that calibration and comparison need


@dataclass(frozen=True)
class _Material:
    """Rows to compare on, rows to calibrate with."""

    rows: Rows
    votes: np.ndarray | None
    rows_are: str
    texts: Rows


@dataclass(frozen=True)
class _Machine:
    """Where and in what the models compute."""

    device: str
    dtype: str


def quantize(settings: QuantizeSettings, job: QuantizeJob) -> None:
    """Make ``job.final``.

    Raises:
        ArenaError: an input cannot be used, or the quantized model lost more than the settings allow; nothing is
            published then.
    """
    started = time.time()
    with locked(job.final):
        if not settings.force and job.is_up_to_date():  # made by another job in the meantime
            print(f"{job.final}: up to date")
            return
        require_space(job)
        material = _material(settings, job)
        machine = _machine(settings)
        _require_own_head(job)
        require_recorded(job.model, ".safetensors")
        shutil.rmtree(job.partial, ignore_errors=True)  # of a killed run: there is nothing to go on with
        job.open_partial()
        try:
            details = _convert(settings, job, material, machine)
            write_manifest(
                job.partial,
                stage=STAGE,
                settings=job.settings,
                inputs=job.inputs,
                started=started,
                details=job.passed_on | details | {"all_settings": settings.dump()},
            )
            publish(job.partial, job.final)
        except BaseException:
            shutil.rmtree(job.partial, ignore_errors=True)
            raise
    print(f"{job.final}: {details['quantization']['method']}, {details['quantization']['bits']} bits, published")


def _convert(settings: QuantizeSettings, job: QuantizeJob, material: _Material, machine: _Machine) -> dict[str, Any]:
    out = job.partial
    with _source(job) as source:
        before = _load(source, settings, job, machine)
        views = tta_views([job.max_length], swap=True)  # as students are calibrated and scored
        logits = before.view_logits(material.rows, views)
        probes = _probe_sequences(before, material.rows, job.max_length)
        del before
        release_memory()
        quantization = _quantize(settings, job, source, material.texts, machine.device)
        for file in tokenizer_files(source):
            shutil.copyfile(file, out / file.name)
    shutil.copyfile(job.model / TEXT_FORMAT_FILE, out / TEXT_FORMAT_FILE)
    quantization["head_sha256"] = _export_head(job)
    _write_json(out / QUANTIZATION_FILE, quantization)
    release_memory()
    after = _load(out, settings, job, machine)
    report: dict[str, Any] = {
        **compare(logits, after.view_logits(material.rows, views), job.temperature or 1.0, material.votes),
        "views": list(view_names(views)),
        "rows_are": material.rows_are,
        "size_bytes": _sizes(job),
        "bound": settings.quant_max_logloss_increase,
        "layers": layer_errors(after.model, job.model),
        "dtype": machine.dtype,
    }
    print(report_text(report, [str(job.model), f"{quantization['method']}, {quantization['bits']} bits"]))
    if reason := refusal(report, settings.quant_max_logloss_increase, settings.quant_min_agreement):
        raise ArenaError(
            f"{job.final}: {reason} -> nothing was published; use 8 bits, more calibration texts or a smaller group "
            "size, or allow more"
        )
    _write_json(out / REPORT_FILE, report)
    write_probe(after, probes, out)
    check_probe(after, out)
    _keep_calibration(job)
    return {
        "head_sha256": quantization["head_sha256"],
        "quantization": quantization,
        "evaluation": {name: value for name, value in report.items() if name != "layers"},
    }


def _material(settings: QuantizeSettings, job: QuantizeJob) -> _Material:
    """Read all rows before any model is loaded: a broken file should show at once."""
    rng = np.random.default_rng(settings.seed)
    texts = load_texts(job.calibration_file)
    limit = settings.quant_eval_rows
    if job.has_test:
        test = load_eval_rows(settings)
        texts = _without(texts, test.rows, job.calibration_file)
        picked = _draw(rng, len(test.rows), limit)
        votes = None if test.votes is None else test.votes[picked]
        if votes is None:
            print("note: no votes on the test rows, so the bound holds for the mean KL divergence instead of log loss")
        rows, rows_are = test.rows.take(picked), f"test rows that nothing saw ({test.test_file.name})"
    else:
        aside = _draw(rng, len(texts), min(limit or len(texts), len(texts) // SET_ASIDE))
        rows, votes = texts.take(aside), None
        texts = texts.take(np.setdiff1d(np.arange(len(texts)), aside))
        rows_are = f"rows of {job.calibration_file.name} that calibration did not see, but training may have"
        print(f"note: no test file, so the comparison is on {rows_are}; without votes the bound holds for the mean KL")
    if len(texts) < LEAST_ROWS or not len(rows):
        raise InputError(
            f"{job.calibration_file}: {len(texts)} pairs are too few to calibrate and compare on -> give a file with "
            f"{LEAST_ROWS * 2} or more in CALIB_CSV"
        )
    return _Material(rows, votes, rows_are, texts)


def _without(texts: Rows, test: Rows, file: Path) -> Rows:
    """The texts to calibrate on that are not to be scored on too."""
    both = np.isin(texts["row_hash"].to_numpy(zero_copy_only=False), test["row_hash"].to_numpy(zero_copy_only=False))
    if both.any():
        print(f"note: {int(both.sum()):,} rows of {file} are test rows, and do not calibrate")
    return texts.take(np.flatnonzero(~both))


def _draw(rng: np.random.Generator, count: int, limit: int) -> np.ndarray:
    """Some of ``count`` rows, in their order; all if there is no limit."""
    if not limit or limit >= count:
        return np.arange(count)
    return np.sort(rng.choice(count, limit, replace=False))


def _machine(settings: QuantizeSettings) -> _Machine:
    gpu = torch.cuda.is_available()
    if settings.quant_device == "cuda" and not gpu:
        raise SettingsError("--quant-device cuda: no CUDA GPU is visible -> use auto or cpu")
    device = settings.quant_device if settings.quant_device != "auto" else "cuda" if gpu else "cpu"
    dtype = settings.quant_dtype if settings.quant_dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    return _Machine(device, dtype)


def _require_own_head(job: QuantizeJob) -> None:
    """Refuse a model without its head, or with another than its manifest names."""
    found = head_sha256(read_head(job.model))
    if found != job.manifest.get("head_sha256", found):
        raise InputError(
            f"{job.model}: its head is not the one that its manifest names: a foreign or random head -> make the model "
            f"again (FORCE=1 bash {LORA_ENSEMBLE.script})"
        )


@contextmanager
def _source(job: QuantizeJob) -> Iterator[Path]:
    """The model's directory; if its tokenizer is elsewhere, one of links to both."""
    if job.tokenizer.resolve() == job.model.resolve():
        yield job.model
        return
    with tempfile.TemporaryDirectory(prefix="quantize-") as name:
        view = Path(name)
        replaced = {file.name for file in tokenizer_files(job.model)}
        files = [file for file in job.model.iterdir() if file.is_file() and file.name not in replaced]
        for file in (*files, *tokenizer_files(job.tokenizer)):
            (view / file.name).symlink_to(file.resolve())
        yield view


def _load(directory: Path, settings: QuantizeSettings, job: QuantizeJob, machine: _Machine) -> ClassifierJudge:
    judge = load_judge(directory, max_length=job.max_length, dtype=machine.dtype, device=machine.device, probe=False)
    judge.max_batch_tokens = max(settings.quant_batch_tokens, job.max_length)
    return judge


def _probe_sequences(judge: ClassifierJudge, rows: Rows, max_length: int) -> Sequences:
    view = View(min(max_length, max(PROBE_LENGTH, judge.layout.shortest_budget)))
    return assemble(tokenize_rows(rows.slice(0, PROBE_CANDIDATES), judge.tokenizer), judge.layout, [view])[0]


def _quantize(settings: QuantizeSettings, job: QuantizeJob, source: Path, texts: Rows, device: str) -> dict[str, Any]:
    """Write the weights; returns what ``quantization_config.json`` says of them."""
    method = settings.quant_method
    if method == "gptq" or (method == "auto" and is_decoder(source)):
        try:
            return _gptq(settings, job, source, texts, device)
        except GptqUnsupported as error:
            if method == "gptq":
                raise SettingsError(f"{error} -> QUANT_METHOD=int8 takes any classifier") from error
            print(f"note: {error}; int8 instead")
            shutil.rmtree(job.partial)
            job.partial.mkdir()
    if settings.quant_bits != 8:
        raise SettingsError(
            f"--bits {settings.quant_bits}: {job.model} is no decoder that GPTQ supports, and int8 has 8 bits only -> "
            "use --bits 8"
        )
    named = {"torchao-int8": TORCHAO, "bitsandbytes-int8": BITSANDBYTES}
    chosen = named.get(method, BITSANDBYTES if device == "cuda" else TORCHAO)
    quantize_int8(source, job.partial, chosen, device)
    package = chosen.removesuffix("-int8")
    return {"method": chosen, "bits": 8, "package": f"{package} {version(package)}"}


def _gptq(settings: QuantizeSettings, job: QuantizeJob, source: Path, texts: Rows, device: str) -> dict[str, Any]:
    group_size = usable_group_size(source, settings.quant_group_size)
    if group_size != settings.quant_group_size:
        now = "one scale a row" if group_size == -1 else f"groups of {group_size}"
        print(f"note: {now} instead of groups of {settings.quant_group_size}, which a layer cannot be divided into")
    tokenizer = load_tokenizer(str(source))
    examples = choose_calibration(
        texts,
        tokenizer,
        TextFormat.load(source),
        max_length=job.max_length,
        count=settings.quant_max_calib_samples,
        seed=settings.seed,
    )
    print(f"{job.calibration_file}: {examples.summary()}")
    ids = examples.sequences.ids
    quantize_gptq(
        source,
        job.partial,
        bits=settings.quant_bits,
        group_size=group_size,
        examples=[ids[number].tolist() for number in range(len(ids))],
        device=device,
    )
    return {
        "method": GPTQ,
        "bits": settings.quant_bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "calibration_texts": len(examples),
        "package": f"gptqmodel {version('gptqmodel')}",
    }


def _export_head(job: QuantizeJob) -> str:
    """Put the head apart, and prove that quantization left every bit of it as it was."""
    save_head(job.partial)
    own, kept = read_head(job.model), read_head(job.partial)
    same = own.keys() == kept.keys() and all(
        tensor.dtype == kept[name].dtype and torch.equal(tensor, kept[name]) for name, tensor in own.items()
    )
    if not same:
        raise ArenaError(f"{job.final}: quantization changed the head -> nothing was published; report this")
    return head_sha256(own)


def _sizes(job: QuantizeJob) -> dict[str, float]:
    before, after = weight_bytes(job.model), weight_bytes(job.partial)
    return {"before": before, "after": after, "ratio": after / before}


def _keep_calibration(job: QuantizeJob) -> None:
    """The temperature of the model before, said of these weights: within the bound it is theirs too."""
    file = job.model / CALIBRATION_FILE
    if not file.is_file():
        print(f"note: {file} is missing, so the quantized model is not calibrated either")
        return
    document = json.loads(file.read_text("utf-8-sig"))
    _write_json(job.partial / CALIBRATION_FILE, document | {"weights_sha256": weights_sha256(job.partial)})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=2) + "\n")

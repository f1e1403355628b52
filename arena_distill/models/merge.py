"""Merge a LoRA adapter into its base model, tensor by tensor: memory stays small however large the model is.

The output has the base's division into files. Arithmetic is that of PEFT's ``merge_and_unload`` on a CPU: the factors
in float32, ``W += scaling * B @ A``, rounded once to the type of ``W``. Without work to do, nothing heavy is imported.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arena_distill.models.backbone import is_same_model, local_directory, model_identity
from arena_distill.models.lora_file import read_adapter
from arena_distill.models.merge_plan import DTYPES, MergePlan, OutputTensor, plan_merge
from arena_distill.models.merged_tensors import count_zero_modules, output_pieces
from arena_distill.models.safetensors_file import INDEX_FILE, make_header
from arena_distill.runtime.artifacts import (
    fingerprint,
    is_up_to_date,
    locked,
    partial_directory,
    publish,
    read_manifest,
    recover,
    require_replaceable,
    sha256_path,
    write_manifest,
)
from arena_distill.runtime.errors import InputError, SettingsError

STAGE = "lora-merge"
DISK_MARGIN = 1 << 24  # bytes left free beyond what is written

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
_TOKENIZER_FILES = (
    *_VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    classifier: bool  # a new classification head made it a sequence classifier
    modules: int  # that were adapted
    zero_modules: int  # of these, how many the adapter leaves as they were: its B factors are zero
    replaced: list[str]  # tensors that were trained whole
    dropped: list[str]  # tensors of the base that a classifier has no place for
    files: int
    weight_bytes: int
    base_checked: bool  # the adapter's manifest names the base, and it is this one
    up_to_date: bool = False

    def summary(self) -> str:
        """One line for the log."""
        if self.up_to_date:
            return "up to date"
        parts = [f"{self.modules} modules merged, {self.weight_bytes / 1e9:.2f} GB in {self.files} file(s)"]
        if self.zero_modules:
            parts.append(f"{self.zero_modules} of the modules untrained (B = 0)")
        if self.classifier:
            parts.append("a sequence classifier with its trained head")
        if not self.base_checked:
            parts.append("the adapter does not record which weights it was trained on")
        return "; ".join(parts)


Verify = Callable[[Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class StageOutput:
    """What a merged model's manifest says where it is an output of a stage, and not of a merge alone."""

    stage: str
    settings: Mapping[str, Any]  # all that determine it
    inputs: Mapping[str, str]
    complete: Callable[[Path], Mapping[str, Any]]
    """Called with the finished directory before it is published; writes into it what else belongs there, and returns
    details of the manifest. If it raises, nothing is published."""


def merge_adapter(
    base: str,
    adapter_dir: Path,
    out_dir: Path,
    *,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
    force: bool = False,
    verify: Verify | None = None,
    output: StageOutput | None = None,
) -> MergeReport:
    """Write ``base`` with the adapter merged into it to ``out_dir``, which appears whole or stays as it was.

    Args:
        base: model directory or hub name, with safetensors weights.
        adapter_dir: LoRA adapter as PEFT saves it.
        out_dir: a model directory that plain transformers loads.
        dtype: ``float16``, ``bfloat16`` or ``float32``; by default every tensor keeps its type.
        labels: names of the classes of a new classification head, by default A, B and tie.
        force: merge again even if ``out_dir`` is up to date.
        verify: called with the finished directory before it is published; if it raises, nothing is. What it returns
            stands in the manifest under ``verified``.
        output: the stage that the merged model is an output of; by default a merge is a stage of its own.

    Raises:
        SettingsError: an unknown ``dtype``.
        InputError: base or adapter cannot be used or do not belong together, or the disk is too small.
        ArenaError: another job is writing ``out_dir``.
    """
    started = time.time()
    _check_dtype(dtype)
    read_adapter(adapter_dir)
    _refuse_own_input(out_dir, base, adapter_dir)
    stage = output.stage if output else STAGE
    with locked(out_dir):
        recover(out_dir)
        settings: Mapping[str, Any]
        inputs: Mapping[str, str]
        if output:
            settings, inputs = output.settings, output.inputs
        else:
            settings = {"dtype": dtype, "labels": list(labels) if labels else None}
            inputs = {"base_model": model_identity(base), "adapter": sha256_path(adapter_dir)}
        if not force and (finished := _finished_report(out_dir, stage, fingerprint(settings, inputs))):
            return finished
        require_replaceable(out_dir, stage)
        partial = partial_directory(out_dir)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            report = write_merged(base, adapter_dir, partial, dtype=dtype, labels=labels)
            details: dict[str, Any] = {"merge": asdict(report)}
            if verify is not None:
                details["verified"] = verify(partial)
            if output is not None:
                details |= output.complete(partial)
            write_manifest(partial, stage=stage, settings=settings, inputs=inputs, started=started, details=details)
            publish(partial, out_dir)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in _DISK_ERRORS:
                raise InputError(
                    f"{out_dir}: the disk filled up during the merge ({error.strerror}); what stood there is untouched "
                    "-> free some space, or choose another place"
                ) from error
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return report


def write_merged(
    base: str, adapter_dir: Path, directory: Path, *, dtype: str | None = None, labels: Sequence[str] | None = None
) -> MergeReport:
    """Write the merged model into an existing, empty ``directory``; arguments and errors as of ``merge_adapter``.

    All that can be checked is checked before the first byte is written.
    """
    _check_dtype(dtype)
    adapter = read_adapter(adapter_dir)
    base_checked = check_base(adapter_dir, base)
    base_dir = local_directory(base)
    plan = plan_merge(base_dir, adapter, dtype, labels)
    copies = _files_to_copy(base_dir, adapter_dir, plan)
    require_space(directory, plan.weight_bytes + sum(file.stat().st_size for file in copies))
    zero_modules = count_zero_modules(adapter)
    for file in copies:
        shutil.copyfile(file, directory / file.name)
    for name, tensors in plan.files.items():
        _write_file(directory / name, tensors, plan.base.metadata[name])
    if plan.base.index is not None:
        _write_json(directory / INDEX_FILE, _index(plan))
    if plan.config is not None:
        _write_json(directory / "config.json", _with_padding(plan, directory))
    return MergeReport(
        classifier=plan.classifier,
        modules=len(adapter.pairs),
        zero_modules=zero_modules,
        replaced=plan.replaced,
        dropped=plan.dropped,
        files=len(plan.files),
        weight_bytes=plan.weight_bytes,
        base_checked=base_checked,
    )


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype}: unknown -> use one of {', '.join(DTYPES)}, or none to keep the base's")


def _refuse_own_input(out_dir: Path, base: str, adapter_dir: Path) -> None:
    out = out_dir.resolve()
    for name in (Path(base), adapter_dir):
        if name.is_dir() and name.resolve().is_relative_to(out):
            raise InputError(f"{out_dir}: would replace {name}, which it is made from -> choose another place")
    if out.is_relative_to(adapter_dir.resolve()):  # and would count as a part of it from then on
        raise InputError(f"{out_dir}: lies in the adapter's directory -> choose another place")


def _finished_report(out_dir: Path, stage: str, expected: str) -> MergeReport | None:
    manifest = read_manifest(out_dir)
    if manifest is None or manifest["stage"] != stage or not is_up_to_date(out_dir, expected):
        return None
    try:
        return replace(MergeReport(**manifest["merge"]), up_to_date=True)
    except (KeyError, TypeError):  # written by another version of ours
        return None


def check_base(adapter_dir: Path, base: str) -> bool:
    """Whether the adapter's manifest confirms the base; a hub name and a directory cannot be compared."""
    inputs = (read_manifest(adapter_dir) or {}).get("inputs") or {}
    known = str(inputs.get("base_model") or inputs.get("student_model") or "")  # of step 5's students the latter
    same = is_same_model(known, model_identity(base))
    if same is False:
        raise InputError(
            f"{adapter_dir}: adapter of another base than {base} is now -> give the base model that it was trained on"
        )
    return bool(same)


def _files_to_copy(base_dir: Path, adapter_dir: Path, plan: MergePlan) -> list[Path]:
    """Configuration, tokenizer and what else belongs to the model; the trained adapter's tokenizer wins."""
    tokenizer_dir = adapter_dir if _matching(adapter_dir, _VOCABULARIES) else base_dir
    own = () if plan.config is not None else ("config.json",)
    generation = () if plan.classifier else ("generation_config.json",)
    return [
        *_matching(base_dir, (*own, *generation, "*.py")),
        *tokenizer_files(tokenizer_dir),
        *_matching(adapter_dir, ("label_tokens.json",)),
    ]


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of a directory that are its tokenizer's."""
    return _matching(directory, _TOKENIZER_FILES)


def _matching(directory: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})


def require_space(directory: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        InputError: fewer than ``needed`` bytes and a margin are free.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + DISK_MARGIN:
        raise InputError(
            f"{place}: the model needs {(needed + DISK_MARGIN) / 1e9:.2f} GB and {free / 1e9:.2f} GB are free "
            "-> free some space, or choose another place"
        )


def _write_file(file: Path, tensors: Sequence[OutputTensor], metadata: Mapping[str, str]) -> None:
    entries = [(tensor.name, tensor.dtype, tensor.source.shape) for tensor in tensors]
    with file.open("wb", buffering=0) as stream:
        _write_all(stream, make_header(entries, {"format": "pt", **metadata}))
        for tensor in tensors:
            for piece in output_pieces(tensor):
                _write_all(stream, piece)
        os.fsync(stream.fileno())  # a full disk may tell only now


def _write_all(stream: Any, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[stream.write(view) :]


def _index(plan: MergePlan) -> dict[str, Any]:
    assert plan.base.index is not None
    known = plan.base.index.get("metadata") or {}
    numbers = {"total_size": plan.weight_bytes}
    if "total_parameters" in known:
        outputs = [tensor for tensors in plan.files.values() for tensor in tensors]
        numbers["total_parameters"] = sum(math.prod(tensor.source.shape) for tensor in outputs)
    places = {tensor.name: file for file, tensors in plan.files.items() for tensor in tensors}
    return {**plan.base.index, "metadata": {**known, **numbers}, "weight_map": dict(sorted(places.items()))}


def _with_padding(plan: MergePlan, directory: Path) -> dict[str, Any]:
    """The new configuration; a classifier learns its padding token from the tokenizer if it does not know it.

    Without it a decoder cannot tell the last token of a row in a batch.
    """
    assert plan.config is not None
    config = dict(plan.config)
    if plan.classifier and config.get("pad_token_id") is None and _matching(directory, _VOCABULARIES):
        from arena_distill.models.classifier import load_tokenizer

        _write_json(directory / "config.json", config)  # the tokenizer's class is looked up by it
        config["pad_token_id"] = load_tokenizer(str(directory)).pad_token_id
    return config


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

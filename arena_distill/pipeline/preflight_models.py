"""The models that the chain starts from: where they are, whether they are whole, whether they fit their settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_job import VOCABULARIES
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.folds import load_folds
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.inference.tta_lengths import lengths_of
from arena_distill.models.architecture import KNOWN, Architecture
from arena_distill.models.backbone import check_backbone
from arena_distill.models.safetensors_file import read_checkpoint
from arena_distill.pipeline.preflight_chain import Chain, gigabytes, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic
from arena_distill.pipeline.preflight_hub import (
    HubModel,
    ask_hub,
    cached_directory,
    fetch_advice,
    is_hub_name,
    is_offline,
)
from arena_distill.runtime.errors import ArenaError, InputError
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)
from arena_distill.training.clean_base import require_clean_base
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings

MODELS = Topic("models")

# Models with a table of positions, beyond which they cannot read; with the positions that padding takes.
_TABLES = {
    **dict.fromkeys(("bert", "distilbert", "electra", "albert", "mobilebert", "gpt2"), 0),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), 2),
}
_ENCODERS = (*(kind for kind in _TABLES if kind != "gpt2"), "deberta", "deberta-v2", "modernbert")
_OUR_DIRECTORIES = (("model_save",), ("data",), ("sub",), ("conf",), ("logs",))
_TINY_ARCHITECTURE = Architecture("llama", 128, 2, 4, 2, 32, 384, 4000, False)
_ENCODER_SIZES = {  # ours -> names in config.json
    "hidden": ("hidden_size", "dim", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "intermediate": ("intermediate_size", "hidden_dim", "n_inner"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Use:
    """What a step wants of a model."""

    step: int
    setting: str  # that names it
    causal: bool = False  # its own output head is used: an encoder will not do
    label_words: tuple[str, ...] = ()  # that must be one token each
    lengths: Mapping[str, int] = field(default_factory=dict)  # setting -> tokens


@dataclass(frozen=True)
class Model:
    """A model, as far as it is known."""

    name: str
    directory: Path | None = None  # of its files, if they are on this machine
    tokenizer: Path | None = None  # of its tokenizer's files, likewise
    made_by: int = 0  # the step that will make it
    architecture: Architecture | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0  # on the disk; 0: unknown
    download_bytes: int = 0  # still to be fetched, at least; 0: nothing, or unknown
    to_fetch: bool = False


@dataclass(frozen=True)
class Models:
    """All models of the chain by name, and what is to be said of them."""

    by_name: Mapping[str, Model]
    uses: Mapping[str, Sequence[Use]]
    findings: tuple[Finding, ...]

    def get(self, name: str) -> Model:
        """A model; of one that no step to run starts from, what can be told without looking for it."""
        if name in self.by_name:
            return self.by_name[name]
        try:
            return read_model(Path(name), name) if Path(name).is_dir() else _of_known(name)
        except InputError:
            return Model(name)


def find_models(chain: Chain) -> Models:
    """Look for every model that the stages name; ask the hub about those that are not here."""
    uses, tokenizers = _uses(chain)
    found: dict[str, Model] = {}
    findings: list[Finding] = []
    absent: list[str] = []
    for name in uses:
        try:
            model = _find(chain, name, uses[name][0].setting)
        except (ArenaError, OSError) as error:
            findings.append(_missing(chain, uses[name], name, error))
            found[name] = _of_known(name)
            continue
        found[name] = model
        if model.directory is None and not model.made_by:
            absent.append(name)
    offline = is_offline(chain.variables)
    answers = {} if offline else ask_hub(absent)
    for name in absent:
        found[name], finding = _from_hub(chain, uses[name], found[name], None if offline else answers[name])
        findings.append(finding)
    for name, tokenizer in tokenizers.items():
        found[name] = replace(found[name], tokenizer=tokenizer)
    found = _with_step_1(chain, found)
    for name, model in found.items():
        if model.directory is not None or model.made_by:
            findings += _checked(chain, model, uses[name])
        findings += _fits(model, uses[name])
        findings += _cannot_be_quantized(chain, model, uses[name])
    return Models(found, uses, tuple(findings))


def _uses(chain: Chain) -> tuple[dict[str, list[Use]], dict[str, Path]]:
    """Who wants which model, and tokenizers that are elsewhere than their models."""
    uses: dict[str, list[Use]] = {}
    tokenizers: dict[str, Path] = {}
    post, teachers, student = chain.of(PostPretrainSettings), chain.of(TeacherSettings), chain.of(DistillSettings)
    if post is not None and chain.runs(POST_PRETRAIN):
        words = tuple(post.postpre_label_words.split(",")) if post.postpre_objective == "preference" else ()
        for plan in post.plans:
            use = Use(1, plan.setting, True, words, {"POSTPRE_MAXLEN": post.postpre_maxlen})
            uses.setdefault(chain.base(plan.base), []).append(use)
            if plan.tokenizer:
                tokenizers[chain.base(plan.base)] = Path(plan.tokenizer)
    if teachers is not None and chain.runs(TRAIN_TEACHERS):
        scored = _scored_length(chain)
        for name, (setting, base) in teachers.families.items():
            own = teachers.of_family(name)
            label = own.teacher_head == "label"
            words = tuple(own.teacher_label_words.split(",")) if label else ()
            length = teachers.length_setting(name).rpartition("or ")[2].rstrip(")")
            uses.setdefault(base, []).append(Use(3, setting, label, words, {length: own.teacher_maxlen} | scored))
    if student is not None and chain.runs(DISTILL_STUDENT):
        lengths = {"STUDENT_MAXLEN": student.student_maxlen} | predicted_lengths(chain)
        uses.setdefault(student.student_model_name, []).append(Use(5, "STUDENT_MODEL_NAME", lengths=lengths))
    average = chain.of(AverageSettings)
    if average is not None and chain.runs(LORA_ENSEMBLE) and average.base_model:
        uses.setdefault(average.base_model, []).append(Use(6, "BASE_MODEL"))
    return uses, tokenizers


def _scored_length(chain: Chain) -> dict[str, int]:
    oof = chain.of(OofSettings)
    if oof is None or not chain.runs(INFER_TEACHER_LOGITS) or not oof.infer_max_seq_len:
        return {}
    return {"INFER_MAX_SEQ_LEN": oof.infer_max_seq_len}


def predicted_lengths(chain: Chain) -> dict[str, int]:
    """Longest texts that the student will have to read."""
    lengths = {}
    quantize, predict = chain.of(QuantizeSettings), chain.of(PredictSettings)
    if quantize is not None and chain.runs(QUANTIZE) and quantize.quant_max_length:
        lengths["QUANT_MAX_LENGTH"] = quantize.quant_max_length
    if predict is not None and chain.runs(INFER_TTA) and (given := lengths_of(predict.tta_lengths)):
        lengths["TTA_LENGTHS"] = max(min(length, predict.max_length or length) for length in given)
    return lengths


def _find(chain: Chain, name: str, setting: str) -> Model:
    """A model that is here, or will be made; else one without a directory.

    Raises:
        InputError: the name stands for nothing, or for a directory without a model.
    """
    if chain.is_tiny(name):
        there = Path(name) if (Path(name) / "config.json").is_file() else None
        if there is None:
            return Model(
                name, made_by=1, architecture=_TINY_ARCHITECTURE, weight_bytes=4 * _TINY_ARCHITECTURE.parameters
            )
        return replace(read_model(there), made_by=1)
    if name in _merged_by_step_1(chain):
        return Model(name, made_by=1)
    path = Path(name).expanduser()
    if not path.is_dir() and (path.parts[:1] in _OUR_DIRECTORIES or not is_hub_name(name)):
        raise InputError(f"{setting}={name}: no such directory, and no name of the hub")
    if Path(check_backbone(name, setting)).is_dir():
        return read_model(path, name)
    directory = cached_directory(name, chain.variables)
    if directory is None:
        return _of_known(name)
    try:
        return read_model(directory, name)
    except InputError:
        if is_offline(chain.variables):
            raise
        return _of_known(name)  # begun, and to be fetched on


def _merged_by_step_1(chain: Chain) -> set[str]:
    post = chain.of(PostPretrainSettings)
    if post is None or not chain.runs(POST_PRETRAIN):
        return set()
    return {str(plan.merged) for plan in post.plans if plan.merged}


def _with_step_1(chain: Chain, found: Mapping[str, Model]) -> dict[str, Model]:
    """What step 1 merges has the size of its base."""
    out = dict(found)
    post = chain.of(PostPretrainSettings)
    for plan in post.plans if post is not None else ():
        merged = str(plan.merged)
        if merged in out and out[merged].made_by and chain.base(plan.base) in out:
            base = out[chain.base(plan.base)]
            out[merged] = replace(base, name=merged, directory=None, made_by=1, to_fetch=False, download_bytes=0)
    return out


def read_model(directory: Path, name: str = "") -> Model:
    """A model's directory, after checking that all of its files are there, in their lengths.

    Raises:
        InputError: something is missing or broken.
    """
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise InputError(f"{directory}: is an adapter -> name the model that it belongs to, or merge it first")
    config = read_config(directory)
    if config.get("quantization_config"):
        raise InputError(f"{directory}: is quantized -> name the model that it was made from")
    checkpoint = read_checkpoint(directory)
    weights = sum((directory / file).stat().st_size for file in checkpoint.files)
    return Model(
        name or str(directory), directory, directory, architecture=dimensions(config), config=config,
        weight_bytes=weights,
    )  # fmt: skip


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a model.

    Raises:
        InputError: it is missing or broken.
    """
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}) -> copy or download the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds no JSON object -> copy or download the model again")
    return config


def dimensions(config: Mapping[str, Any]) -> Architecture | None:
    """What a model's size depends on; of an encoder as if its MLP had a gate, which is a little too much."""
    try:
        return Architecture.from_config(config)
    except InputError:
        sizes = {
            ours: next((config[key] for key in keys if key in config), None) for ours, keys in _ENCODER_SIZES.items()
        }
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        return None
    known = {name: int(size) for name, size in sizes.items() if size is not None}
    return Architecture(
        "mistral", known["hidden"], known["layers"], known["heads"], known["heads"],
        max(1, known["hidden"] // known["heads"]), known["intermediate"], known["vocabulary"], True,
    )  # fmt: skip


def _of_known(name: str) -> Model:
    architecture = {key.lower(): value for key, value in KNOWN.items()}.get(name.lower())
    return Model(name, architecture=architecture, weight_bytes=2 * architecture.parameters if architecture else 0)


def _missing(chain: Chain, uses: Sequence[Use], name: str, error: Exception) -> Finding:
    """Why a model cannot be used, and what it was probably meant to be."""
    path = Path(name)
    finding = MODELS.of_error(_subject(uses, name), error)
    if path.parent.name == "tiny" and chain.tiny_models:
        made = ", ".join(sorted(directory.name for directory in chain.tiny_models))
        return replace(finding, advice=f"TINY_FAMILIES makes {made}: add {path.name} to it, or correct the name")
    if not path.exists():
        return replace(
            finding,
            advice="check the path: it looks like a directory of this machine; or give a hub name like org/name",
        )
    return finding


def _from_hub(chain: Chain, uses: Sequence[Use], model: Model, answer: HubModel | None) -> tuple[Model, Finding]:
    """A model that is not on this machine, and what the hub says of it; None: nobody may ask."""
    subject, name = _subject(uses, model.name), model.name
    if answer is None:
        where = "not in the cache of the hub, and HF_HUB_OFFLINE is set"
        return model, MODELS.fix(subject, f"{name}: {where}", fetch_advice(name))
    if answer.problem:
        return model, MODELS.fix(subject, f"{name}: {answer.problem}", answer.advice)
    size = answer.weight_bytes or model.weight_bytes
    config = answer.config or model.config
    architecture = dimensions(config) or model.architecture
    model = replace(
        model, to_fetch=True, download_bytes=size, weight_bytes=size, config=config, architecture=architecture
    )
    said = f"{name}: on the hub, {gigabytes(size)} to be fetched"
    if chain.on_slurm:
        return model, MODELS.warning(
            subject, f"{said} by the first tasks, while they hold their GPUs",
            f"`hf download {name}` first; compute nodes without a network need it then",
        )  # fmt: skip
    return model, MODELS.ok(subject, said)


def _checked(chain: Chain, model: Model, uses: Sequence[Use]) -> Iterator[Finding]:
    """A model that is here or will be."""
    subject = _subject(uses, model.name)
    if model.made_by and model.directory is None:
        yield MODELS.ok(subject, f"{model.name}: step {model.made_by} makes it")
        return
    tokenizer = model.tokenizer or model.directory
    assert tokenizer is not None and model.directory is not None
    if not any(file for pattern in VOCABULARIES for file in tokenizer.glob(pattern)):
        yield MODELS.fix(subject, f"{tokenizer}: holds no tokenizer", "copy the model's tokenizer files into it")
        return
    seen = _refused_as_base(chain, model, uses)
    if seen is not None:
        yield seen
        return
    where = "" if str(model.directory) == model.name else " (cached)"
    yield MODELS.ok(subject, f"{model.name}{where}: whole, {gigabytes(model.weight_bytes)}")


def _refused_as_base(chain: Chain, model: Model, uses: Sequence[Use]) -> Finding | None:
    """What steps 3 and 5 refuse to start from, as far as the folds are there already."""
    settings = chain.of(FoldSettings)
    of_judges = [use for use in uses if use.step in (TRAIN_TEACHERS.number, DISTILL_STUDENT.number)]
    if not of_judges or settings is None or not settings.folds_path.is_file() or model.made_by:
        return None
    if chain.runs(MAKE_FOLDS) and not (settings.fold_data / "manifest.json").is_file():
        return None
    try:
        require_clean_base(str(model.directory), load_folds(settings.folds_path), of_judges[0].setting)
    except InputError as error:
        return MODELS.of_error(_subject(uses, model.name), error)
    return None


def _fits(model: Model, uses: Sequence[Use]) -> Iterator[Finding]:
    """Kind and length."""
    kinds = [str(kind) for kind in model.config.get("architectures") or ()]
    for use in uses:
        if use.causal and kinds and not any("CausalLM" in kind for kind in kinds):
            yield MODELS.fix(
                f"{use.setting} (step {use.step})", f"{model.name} is {kinds[0]}, without an output head of words",
                "name a causal LM; an encoder can be a teacher as ENCODER_FT_BASE, or with TEACHER_HEAD=seq_cls",
            )  # fmt: skip
        yield from too_long(model, use)


def _cannot_be_quantized(chain: Chain, model: Model, uses: Sequence[Use]) -> Iterator[Finding]:
    """GPTQ is for decoders."""
    settings = chain.of(QuantizeSettings)
    student = any(use.step == DISTILL_STUDENT.number for use in uses)
    if settings is None or not student or not chain.runs(QUANTIZE) or model.config.get("model_type") not in _ENCODERS:
        return
    if settings.quant_method == "gptq" or settings.quant_bits == 4:
        yield MODELS.fix(
            "QUANT_METHOD, QUANT_BITS", f"GPTQ quantizes no encoder, and {model.name} is one",
            "leave both out: an encoder gets int8, which has 8 bits",
        )  # fmt: skip


def too_long(model: Model, use: Use) -> Iterator[Finding]:
    """Lengths that the model cannot read, or was not made for."""
    positions = model.config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    table = model.config.get("model_type") in _TABLES
    limit = positions - _TABLES.get(str(model.config.get("model_type")), 0)
    for setting, length in use.lengths.items():
        if length > limit and table:
            yield MODELS.fix(
                setting, f"{length} tokens, and {model.name} has a table of {limit} positions", f"use {limit} or less"
            )
        elif length > limit:
            yield MODELS.warning(
                setting, f"{length} tokens, and {model.name} was made for {limit}", f"use {limit} or less"
            )


def _subject(uses: Sequence[Use], name: str) -> str:
    settings = ", ".join(dict.fromkeys(use.setting for use in uses))
    return f"{settings} ({steps([use.step for use in uses])})"

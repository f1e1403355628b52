"""An encoder beside the language models of step 3: its own settings, every weight trained, and a family in step 4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from arena_distill.data.records import targets
from arena_distill.evaluation.metrics import kaggle_log_loss
from arena_distill.inference.oof_table import read_oof_table
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.settings import parse_settings
from arena_distill.runtime.stages import ENSEMBLE, RESERVED_NAMES
from arena_distill.training.soft_labels import find_label_files, labels_of_families, read_label_files
from arena_distill.training.teacher_job import TeacherJob, plan_teachers
from arena_distill.training.teacher_settings import TeacherSettings
from tests.inference.oof_runs import (
    EXTRA,
    N_FOLDS,
    QUICK_TEACHER,
    adapter,
    arguments,
    array,
    folds_of,
    infer,
    logits_dir,
    make_folds,
    rows_of,
    table_path,
    train,
)

LLAMA, ENCODER = "llama", "tiny-bert"
ENCODER_SETTINGS: dict[str, Any] = {
    "encoder_name": ENCODER,
    "encoder_epochs": 3.0,
    "encoder_lr": 1e-2,
    "encoder_maxlen": 48,
    "encoder_per_device_bs": 4,
    "encoder_grad_accum": 2,
}


def settings_of(**given: object) -> TeacherSettings:
    """As the command line of step 3 resolves them."""
    words = arguments(Path(), **given)
    return parse_settings(TeacherSettings, words, program="x", description="")


# Settings


def test_the_encoder_takes_its_own_settings_and_the_others_keep_theirs() -> None:
    settings = settings_of(
        **QUICK_TEACHER, **ENCODER_SETTINGS, encoder_ft_base="some/bert", seed=9, teacher_quant="nf4"
    )
    own = settings.of_family(ENCODER)
    for key in ("epochs", "lr", "maxlen", "per_device_bs", "grad_accum"):
        assert (
            getattr(own, f"teacher_{key}") == ENCODER_SETTINGS[f"encoder_{key}"] != getattr(settings, f"teacher_{key}")
        )
    assert (own.teacher_head, own.teacher_lora_r, own.teacher_quant) == ("seq_cls", 0, "none")
    changed = {key for key, value in own.dump().items() if value != settings.dump()[key]}
    idle = {"teacher_lora_alpha", "teacher_lora_dropout", "teacher_label_words"}  # back at their defaults
    assert changed - idle == {
        *(f"teacher_{key}" for key in ("epochs", "lr", "maxlen", "per_device_bs", "grad_accum")),
        *("teacher_head", "teacher_lora_r", "teacher_quant"),
    }
    for name in (settings.llama_name, settings.qwen_name, settings.gemma_name, "encoder"):
        assert settings.of_family(name).dump() == settings.dump()


def test_without_an_encoder_its_name_means_nothing() -> None:
    settings = settings_of(**QUICK_TEACHER, **ENCODER_SETTINGS)
    assert settings.of_family(ENCODER).dump() == settings.dump()
    assert list(settings.families) == [settings.llama_name, settings.qwen_name]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {},
            {
                "llama3-70b": ("LLAMA_FT_BASE", "model_save/post_pretrain_llama"),
                "qwen2-72b": ("QWEN_FT_BASE", "model_save/post_pretrain_qwen"),
                "encoder": ("ENCODER_FT_BASE", "some/bert"),
            },
        ),
        ({"skip_llama": True, "skip_qwen": True}, {"encoder": ("ENCODER_FT_BASE", "some/bert")}),
        (
            {"skip_llama": True, "qwen_ft_base": "q", "skip_gemma": False, "encoder_name": "deberta"},
            {
                "qwen2-72b": ("QWEN_FT_BASE", "q"),
                "gemma2-9b": ("GEMMA_FT_BASE", "model_save/post_pretrain_gemma"),
                "deberta": ("ENCODER_FT_BASE", "some/bert"),
            },
        ),
    ],
    ids=["beside the usual two", "alone", "with others"],
)
def test_the_encoder_is_one_more_family_with_its_setting_and_base(
    given: dict[str, object], expected: dict[str, tuple[str, str]]
) -> None:
    families = settings_of(encoder_ft_base="some/bert", **given).families
    assert families == expected and list(families) == list(expected)


@pytest.mark.parametrize("other", ["llama_name", "qwen_name", "gemma_name"])
def test_a_name_that_another_family_has_is_refused(other: str) -> None:
    with pytest.raises(SettingsError, match="ENCODER_NAME must differ"):
        settings_of(encoder_ft_base="some/bert", encoder_name="same", **{other: "same"})


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_a_name_that_step_4s_table_needs_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"no teacher can be called {name}"):
        settings_of(encoder_ft_base="some/bert", encoder_name=name)


def test_without_any_family_there_is_nothing_to_train_and_an_encoder_is_one() -> None:
    none: dict[str, object] = {"skip_llama": True, "skip_qwen": True}
    with pytest.raises(SettingsError, match="leave no teacher to train"):
        settings_of(**none)
    assert list(settings_of(**none, encoder_ft_base="some/bert").families) == ["encoder"]


BAD_VALUES = [
    ("encoder_epochs", 0), ("encoder_lr", 0), ("encoder_lr", "fast"), ("encoder_maxlen", 15),
    ("encoder_per_device_bs", 0), ("encoder_grad_accum", 0), ("encoder_name", "a/b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_value_out_of_bounds_is_refused_by_its_setting(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} \\(or {name.upper()}\\)"):
        settings_of(encoder_ft_base="some/bert", **{name: value})


def test_a_misspelt_variable_is_refused_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER_MAXLENGTH", "512")
    with pytest.raises(SettingsError, match=r"unknown variable ENCODER_MAXLENGTH .* did you mean ENCODER_MAXLEN"):
        settings_of()


# What a teacher depends on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> Path:
    """Both families of all folds, trained for three steps, and scored by step 4; not to be changed."""
    root = tmp_path_factory.mktemp("encoder")
    shutil.copyfile(small_train_csv, root / "train.csv")
    make_folds(root)
    train(root, **run_settings(backbones))
    infer(root)
    return root


def run_settings(backbones: Path) -> dict[str, Any]:
    return {
        "llama_ft_base": backbones / "llama",
        "llama_name": LLAMA,
        "skip_qwen": True,
        "encoder_ft_base": backbones / "bert",
        **ENCODER_SETTINGS,
    }


def jobs_of(root: Path, backbones: Path, **changes: object) -> dict[str, list[TeacherJob]]:
    """The plan of step 3 by family; ``changes`` on top of what ``trained`` was made with."""
    given = {**QUICK_TEACHER, "extra_data": EXTRA, **run_settings(backbones), **changes}
    jobs = plan_teachers(parse_settings(TeacherSettings, arguments(root, **given), program="x", description=""))
    return {name: [job for job in jobs if job.name == name] for name in {job.name: None for job in jobs}}


OF_THE_ENCODER = [
    ("encoder_epochs", 4.0), ("encoder_lr", 2e-2), ("encoder_maxlen", 40), ("encoder_per_device_bs", 8),
    ("encoder_grad_accum", 1),
]  # fmt: skip
OF_THE_OTHERS = [
    ("teacher_epochs", 4.0), ("teacher_lr", 1e-2), ("teacher_maxlen", 72), ("teacher_per_device_bs", 4),
    ("teacher_grad_accum", 2), ("teacher_head", "seq_cls"), ("teacher_lora_r", 8), ("teacher_quant", "none"),
]  # fmt: skip
OF_BOTH = [
    ("seed", 7), ("teacher_max_steps", 4), ("teacher_label_smoothing", 0.1), ("teacher_swap_augment", True),
    ("teacher_weight_decay", 0.1), ("teacher_warmup_ratio", 0.5), ("teacher_subset_size", 50),
]  # fmt: skip


def stale(jobs: list[TeacherJob]) -> bool:
    """Whether all folds would be trained again (True) or none (False)."""
    answers = {not job.is_up_to_date() for job in jobs}
    assert len(jobs) == N_FOLDS and len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize(
    ("name", "value", "again"),
    [
        *((*change, {ENCODER}) for change in OF_THE_ENCODER),
        *((*change, {LLAMA}) for change in OF_THE_OTHERS),
    ],
)
def test_a_setting_of_one_family_leaves_the_other_one_finished(
    name: str, value: object, again: set[str], trained: Path, backbones: Path
) -> None:
    jobs = jobs_of(trained, backbones, **{name: value})
    assert {family for family in (LLAMA, ENCODER) if stale(jobs[family])} == again


@pytest.mark.parametrize(("name", "value"), OF_BOTH)
def test_a_setting_of_both_families_trains_both_again(name: str, value: object, trained: Path, backbones: Path) -> None:
    # folds of another seed have another name
    folds = trained / "data" / "processed_data" / f"folds_{N_FOLDS}_seed42.json"
    jobs = jobs_of(trained, backbones, folds_json=folds, **{name: value})
    assert stale(jobs[LLAMA]) and stale(jobs[ENCODER])


def test_with_unchanged_settings_all_are_finished_and_an_encoder_more_or_less_changes_nothing(
    trained: Path, backbones: Path
) -> None:
    jobs = jobs_of(trained, backbones)
    assert not stale(jobs[LLAMA]) and not stale(jobs[ENCODER])
    alone = jobs_of(trained, backbones, encoder_ft_base="")
    assert list(alone) == [LLAMA] and not stale(alone[LLAMA])
    assert [job.fingerprint for job in alone[LLAMA]] == [job.fingerprint for job in jobs[LLAMA]]
    other = jobs_of(trained, backbones, encoder_ft_base=backbones / "distilbert")
    assert not stale(other[LLAMA]) and stale(other[ENCODER]), "its base counts by content"
    same = jobs_of(trained, backbones, skip_llama=True)
    assert list(same) == [ENCODER] and not stale(same[ENCODER])


def test_an_encoder_is_a_whole_model_and_the_others_are_adapters(trained: Path, backbones: Path) -> None:
    jobs = jobs_of(trained, backbones)
    for fold in range(N_FOLDS):
        whole, lora = jobs[ENCODER][fold], jobs[LLAMA][fold]
        assert whole.final == trained / "model_save" / f"{ENCODER}_fold_{fold}" and whole.merged is None
        assert lora.final == adapter(trained, LLAMA, fold) and lora.merged is not None
        assert (whole.fold, whole.base) == (fold, str(backbones / "bert"))
    with pytest.raises(InputError, match=r"ENCODER_FT_BASE=.*nowhere"):
        jobs_of(trained, backbones, encoder_ft_base="./nowhere")


def test_a_length_that_the_encoder_cannot_read_is_refused_by_the_setting_that_gave_it(
    trained: Path, backbones: Path, tmp_path: Path
) -> None:
    folds = trained / "data" / "processed_data" / f"folds_{N_FOLDS}_seed42.json"
    shutil.copyfile(trained / "train.csv", tmp_path / "train.csv")
    settings = run_settings(backbones) | {"skip_llama": True, "folds_json": folds, "teacher_folds": "0"}
    with pytest.raises(SettingsError, match="at most 512 tokens, not 600") as caught:
        train(tmp_path, **settings | {"encoder_maxlen": 600})
    assert "ENCODER_MAXLEN" in str(caught.value)


# What step 3 and step 4 make of it


def manifest(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return document


def test_every_weight_of_the_encoder_was_trained_with_its_own_settings(trained: Path, backbones: Path) -> None:
    base = load_file(backbones / "bert" / "model.safetensors")
    for fold in range(N_FOLDS):
        directory = trained / "model_save" / f"{ENCODER}_fold_{fold}"
        assert not (directory / "adapter_config.json").exists()
        weights = load_file(directory / "model.safetensors")
        assert weights.keys() == base.keys()
        still = {name for name in base if np.array_equal(weights[name], base[name])}
        assert not still, still
        record = manifest(directory)
        assert (record["family"], record["fold"], record["metrics"]["steps"]) == (ENCODER, fold, 3)
        assert (record["settings"]["teacher_maxlen"], record["settings"]["teacher_lr"]) == (48, 1e-2)
        llama = manifest(adapter(trained, LLAMA, fold))
        assert (llama["settings"]["teacher_maxlen"], llama["settings"]["teacher_lora_r"]) == (64, 4)
        assert not any(name.startswith("encoder_") for name in {**record["settings"], **llama["settings"]})


def test_step_4_scores_each_family_at_its_own_length(trained: Path) -> None:
    for family, length in ((ENCODER, 48), (LLAMA, 64)):
        for fold in range(N_FOLDS):
            record = manifest(logits_dir(trained) / f"{family}_fold_{fold}")
            assert record["settings"]["max_length"] == length
            held_out = folds_of(trained).fold == fold
            logits = array(trained, family, fold)
            np.testing.assert_array_equal(np.isfinite(logits).all(axis=1), held_out)
            teacher = (
                adapter(trained, LLAMA, fold) if family == LLAMA else trained / "model_save" / f"{family}_fold_{fold}"
            )
            known = manifest(teacher)["metrics"]["held_out"]["log_loss"]
            assert record["metrics"]["held_out"]["log_loss"] == pytest.approx(known, abs=1e-5)


def test_the_table_has_both_families_and_their_mean(trained: Path) -> None:
    rows = rows_of(trained)
    families = read_oof_table(table_path(trained), rows, folds_of(trained))
    assert set(families) == {LLAMA, ENCODER, ENSEMBLE}
    mean = np.mean([families[name].probabilities for name in (LLAMA, ENCODER)], axis=0)
    np.testing.assert_allclose(families[ENSEMBLE].probabilities, mean, atol=1e-6)
    losses = {name: kaggle_log_loss(family.probabilities, targets(rows)) for name, family in families.items()}
    assert losses[ENSEMBLE] <= (losses[LLAMA] + losses[ENCODER]) / 2, "cross-entropy is convex"
    for name in (LLAMA, ENCODER):
        for fold in range(N_FOLDS):
            own = folds_of(trained).fold == fold
            np.testing.assert_array_equal(families[name].logits[own], array(trained, name, fold)[own])


def test_students_hear_the_same_from_the_table_and_from_the_files(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(trained)
    families = read_oof_table(table_path(trained), rows, folds_of(trained))
    of_table = labels_of_families(families, {}, table_path(trained), "STUDENT_TEACHERS")
    files = find_label_files(f"{logits_dir(trained)}/*/teacher_logits_fold_*.npy", "--distill-teachers")
    assert len(files) == 2 * N_FOLDS
    of_files = read_label_files(files, rows, trained / "train.csv")
    assert "on trust" not in capsys.readouterr().out, "step 4's manifests vouch for every file"
    assert of_files.names == of_table.names and set(of_files.names) == {LLAMA, ENCODER}
    np.testing.assert_array_equal(of_files.logits, of_table.logits)
    probabilities = find_label_files(f"{logits_dir(trained)}/*/teacher_probs_fold_*.npy", "--distill-teachers")
    with pytest.raises(InputError, match="these are probabilities"):
        read_label_files(probabilities, rows, trained / "train.csv")


def test_merging_makes_copies_of_adapters_only(trained: Path, backbones: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "root", ignore=shutil.ignore_patterns(".*", "teacher_logits")))
    encoder = root / "model_save" / f"{ENCODER}_fold_0"
    before = {path.name: path.read_bytes() for path in encoder.iterdir()}
    train(root, **run_settings(backbones), teacher_folds="0", teacher_merge=1)
    assert (root / "model_save" / f"{LLAMA}_fold_0" / "model.safetensors").is_file()
    assert {path.name: path.read_bytes() for path in encoder.iterdir()} == before

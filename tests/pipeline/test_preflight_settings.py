"""Settings of all stages: every mistake at once, and those that show only when stages are held against each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.preflight_runs import look


def _with(profile: Path, **settings: object) -> Path:
    """The profile with these lines instead of its own of the same names."""
    lines = [line for line in profile.read_text().splitlines() if line.partition("=")[0] not in settings]
    lines += [f"{name}={value}" for name, value in settings.items()]
    changed = profile.with_name("changed.env")
    changed.write_text("\n".join(lines) + "\n")
    return changed


def test_every_mistake_is_named_at_once(profile: Path) -> None:
    profile = _with(profile, STUDENT_LEARNIN_RATE=1, TEACHER_LR="fast", NO_SUCH_THING=1)
    seen = look("--profile", str(profile), POSTPRE_EPOCHS=-1, STUDENT_ALPHA=2, TEACHER_FOLD=1, MAX_REQUEUES="many")
    assert seen.code == 2
    assert "did you mean STUDENT_LEARNING_RATE?" in seen.one("fix", "settings", "STUDENT_LEARNIN_RATE").advice
    assert "the profile" in seen.one("fix", "settings", "NO_SUCH_THING").said
    assert "did you mean TEACHER_FOLDS?" in seen.one("fix", "settings", "TEACHER_FOLD", "environment").advice
    assert "'fast'" in seen.one("fix", "settings", "TEACHER_LR").said
    assert "step 1" in seen.one("fix", "settings", "POSTPRE_EPOCHS").advice
    assert "step 5" in seen.one("fix", "settings", "STUDENT_ALPHA").advice
    seen.one("fix", "settings", "MAX_REQUEUES", "whole number")


def test_the_other_checks_go_on_beside_bad_settings(profile: Path, tmp_path: Path) -> None:
    seen = look("--profile", str(profile), STUDENT_LR="fast", TEST_CSV=tmp_path / "none.csv", STUDENT_LEARNIN_RATE=1)
    seen.one("fix", "data", "TEST_CSV", "no such file")
    seen.one("ok", "data", "TRAIN_CSV")
    seen.one("ok", "label tokens", "POSTPRE_LABEL_WORDS")


def test_mistakes_of_stages_that_will_not_run_are_none(profile: Path) -> None:
    assert look("--profile", str(profile), "--to", "4", STUDENT_ALPHA=2).code == 0
    assert look("--profile", str(profile), "--to", "5", STUDENT_ALPHA=2).code == 2


def test_a_setting_that_two_stages_share_is_named_once(profile: Path) -> None:
    line = look("--profile", str(profile), N_FOLDS="few").fixes
    assert len(line) == 1
    assert "N_FOLDS" in line[0]


@pytest.mark.parametrize(("name", "words"), [("absent", "no such profile"), ("broken.env", "NAME=value")])
def test_a_profile_that_cannot_be_read(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "broken.env").write_text("this is no line\n")
    seen = look("--profile", str(tmp_path / name) if name.endswith(".env") else name)
    assert seen.code == 2
    assert words in seen.one("fix", "settings").text


def test_a_profile_with_a_token_is_refused_and_the_token_not_shown(profile: Path) -> None:
    seen = look("--profile", str(_with(profile, HF_TOKEN="hf_secretsecret")))
    assert seen.code == 2
    assert "HF_TOKEN" in seen.one("fix", "settings").text
    assert "secretsecret" not in seen.one("fix", "settings").text


@pytest.mark.parametrize("flag", ["--stepp", "--from=12", "--folds=a", "--families=bert"])
def test_a_bad_flag(flag: str, profile: Path) -> None:
    seen = look("--profile", str(profile), flag)
    assert seen.code == 2
    assert len(seen.lines) <= 2


def test_the_environment_beats_the_profile(profile: Path, tmp_path: Path) -> None:
    assert look("--profile", str(_with(profile, STUDENT_LR="fast")), STUDENT_LR="1e-4").code == 0
    assert look(PROFILE=profile, STUDENT_LR="fast").code == 2
    assert look("--profile", str(profile), PROFILE=tmp_path / "none.env").code == 0


def test_variables_that_sbatch_would_take_or_not(profile: Path) -> None:
    seen = look("--profile", str(profile), SBATCH_PARTITON="x", SBATCH_EXPORT="NONE", SBATCH_ACCOUNT="y")
    assert "SBATCH_PARTITION" in seen.one("warning", "settings", "SBATCH_PARTITON").advice
    seen.one("warning", "settings", "SBATCH_EXPORT", "not passed on")
    assert seen.code == 0


def test_every_shipped_profile_is_known_and_consistent(tmp_path: Path) -> None:
    for profile in sorted((REPOSITORY / "conf" / "profiles").glob("*.env")):
        seen = look("--profile", str(profile), "--output-dir", str(tmp_path))
        assert not seen.of("fix", "settings"), (profile, seen.of("fix", "settings"))
        assert not seen.of("warning", "settings"), (profile, seen.of("warning", "settings"))


CONTRADICTIONS = [
    ("label words", {"POSTPRE_LABEL_WORDS": "A,B,D"}, "fix", ("A,B,D", "A,B,C")),
    ("no base for a teacher", {"SKIP_QWEN": 0}, "fix", ("QWEN_FT_BASE", "RUN_STAGE=llama,qwen")),
    ("base is not merged", {"POSTPRE_MERGE": 0}, "fix", ("LLAMA_FT_BASE", "POSTPRE_MERGE")),
    ("a base for nobody", {"RUN_STAGE": "llama,gemma"}, "warning", ("gemma", "no teacher")),
    ("unknown teacher heard", {"STUDENT_TEACHERS": "large:2"}, "fix", ("large", "small")),
    ("unknown teacher scored", {"INFER_MODELS": "small,large"}, "fix", ("large",)),
    ("other students", {"LORA_DIR_PREFIX": "model_save/x_"}, "fix", ("model_save/x_0", "distilled_student_fold_0")),
    ("students elsewhere", {"STUDENT_OUTDIR": "/tmp/elsewhere"}, "fix", ("/tmp/elsewhere_fold_0",)),
    ("students without adapters", {"STUDENT_LORA_R": 0}, "fix", ("STUDENT_LORA_R", "step 6")),
    ("folds that are not trained", {"FOLDS": "0,1", "--folds": "1"}, "fix", ("fold 0", "FOLDS=1")),
    ("folds that are not averaged", {"FOLDS": "0"}, "warning", ("fold 1", "leaves out")),
    ("another base to merge into", {"BASE_MODEL": "org/other"}, "fix", ("org/other", "STUDENT_MODEL_NAME")),
    ("merged elsewhere", {"OUT_MERGED": "/tmp/merged"}, "fix", ("/tmp/merged", "step 7")),
    ("quantized elsewhere", {"OUT_DIR": "/tmp/quantized"}, "fix", ("/tmp/quantized", "step 8")),
    ("a narrow fold", {"TEACHER_FOLDS": "0"}, "fix", ("TEACHER_FOLDS", "--folds")),
    ("no yes or no", {"USE_WEIGHTED": "maybe"}, "fix", ("USE_WEIGHTED",)),
]


@pytest.mark.parametrize(("settings", "level", "words"), [case[1:] for case in CONTRADICTIONS],
                         ids=[case[0] for case in CONTRADICTIONS])  # fmt: skip
def test_contradictions(settings: dict[str, object], level: str, words: tuple[str, ...], profile: Path) -> None:
    flags = [f"{name}={value}" for name, value in settings.items() if name.startswith("--")]
    variables = {name: value for name, value in settings.items() if not name.startswith("--")}
    seen = look("--profile", str(profile), *flags, **variables)
    seen.one(level, "settings", *words)
    assert bool(seen.of("fix", "settings")) == (level == "fix")
    assert seen.code == 2 or level != "fix"


def test_a_model_dir_for_step_7_steers_step_8_too(profile: Path, backbones: Path) -> None:
    model = backbones / "bert"
    seen = look("--profile", str(profile), "--from", "7", MODEL_DIR=model)
    assert "step 8 would predict" in seen.one("warning", "settings", "MODEL_DIR").said
    seen = look("--profile", str(profile), MODEL_DIR=model)
    seen.one("fix", "settings", "MODEL_DIR", "final_merged_model")
    alone = look("--profile", str(profile), "--from", "7", "--to", "7", MODEL_DIR=model)
    assert not [line for line in alone.of("warning", "settings") if "MODEL_DIR" in line.subject]


def test_folds_of_a_part_need_those_of_the_others(profile: Path) -> None:
    seen = look("--profile", str(profile), "--folds", "0")
    assert "FOLDS=0" in seen.one("fix", "settings", "step 6 averages", "fold 1").advice
    assert look("--profile", str(profile), "--folds", "0", "--to", "5").code == 0


def test_families_on_the_command_line_count(profile: Path, backbones: Path) -> None:
    seen = look("--profile", str(profile), "--families", "llama,qwen", QWEN_BASE=backbones / "qwen2", QWEN_NAME="q")
    assert seen.code == 0
    assert {line.subject for line in seen.of("ok", "models")} >= {"QWEN_BASE (step 1)", "QWEN_FT_BASE (step 3)"}

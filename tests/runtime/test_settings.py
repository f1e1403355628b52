"""Settings: precedence, strict names, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.settings import StageSettings, parse_settings
from tests.conftest import REPOSITORY


class Toy(StageSettings):
    """A stage with a few fields."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("TOY_",)

    toy_rate: float = Field(0.5, gt=0, description="a rate")
    toy_steps: int = Field(3, ge=0, description="a count")
    toy_fast: bool = Field(False, description="a switch")


def parse(*argv: str) -> Toy:
    return parse_settings(Toy, argv, program="toy", description="")


def test_command_line_beats_environment_beats_profile_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse().toy_rate == 0.5
    profile = tmp_path / "mine.env"
    profile.write_text("TOY_RATE=0.1\nTOY_STEPS=7\nTEACHER_LR=1e-5\n")
    monkeypatch.setenv("PROFILE", str(profile))
    assert (parse().toy_rate, parse().toy_steps) == (0.1, 7)
    monkeypatch.setenv("TOY_RATE", "0.2")
    assert (parse().toy_rate, parse().toy_steps) == (0.2, 7)
    assert parse("--toy-rate", "0.3").toy_rate == 0.3


@pytest.mark.parametrize("word", ["1", "true", "yes"])
def test_switches_are_flags_and_environment_words(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("--toy-fast").toy_fast is True
    monkeypatch.setenv("TOY_FAST", word)
    assert parse().toy_fast is True
    assert parse("--no-toy-fast").toy_fast is False


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_STEPS", "")
    assert parse().toy_steps == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--toy-rat", "1"], r"unknown flag --toy-rat -> did you mean --toy-rate\?"),
        (["--toy-steps", "many"], r"--toy-steps \(or TOY_STEPS\): .*'many'"),
        (["--toy-rate", "-1"], r"--toy-rate"),
        (["--toy-rate", "nan"], r"--toy-rate .*finite number"),
        (["--toy-rate", "inf"], r"--toy-rate .*finite number"),
        (["--toy-rate", "0"], r"--toy-rate .*greater than 0"),
        (["--toy-steps"], r"--toy-steps"),
        (["stray"], r"stray"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(*argv)


def test_a_misspelt_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_RAET", "1")
    with pytest.raises(SettingsError, match=r"TOY_RAET in the environment -> did you mean TOY_RATE\?"):
        parse()


def test_a_misspelt_profile_entry_is_refused_with_file_and_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "mine.env"
    profile.write_text("TOY_STEP=7\n")
    monkeypatch.setenv("PROFILE", str(profile))
    with pytest.raises(SettingsError, match=r"TOY_STEP in the .*mine\.env -> did you mean TOY_STEPS\?"):
        parse()


@pytest.mark.parametrize("content", [b"not a line at all\n", b'TOY_STEPS="1\n', b"\xff\xfe\x00"])
def test_a_broken_profile_is_refused_by_name(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "mine.env"
    profile.write_bytes(content)
    monkeypatch.setenv("PROFILE", str(profile))
    with pytest.raises(SettingsError, match=r"mine\.env"):
        parse()


def test_another_stages_variable_under_the_same_prefix_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Toy):
        owned_prefixes: ClassVar[tuple[str, ...]] = ("TEACHER_",)

    monkeypatch.setenv("TEACHER_LR", "1e-5")
    assert parse_settings(Other, [], program="toy", description="").toy_steps == 3
    monkeypatch.setenv("TEACHER_LRR", "1e-5")
    with pytest.raises(SettingsError, match=r"TEACHER_LRR .* did you mean TEACHER_LR\?"):
        parse_settings(Other, [], program="toy", description="")


def test_a_missing_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "nonesuch")
    with pytest.raises(SettingsError, match="PROFILE=nonesuch: no such profile"):
        parse()


def run_main(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, str(REPOSITORY / "main.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_main_help_lists_every_setting_without_importing_torch() -> None:
    from arena_distill.training.student_settings import StudentSettings

    script = "import sys; sys.argv = ['main.py', '--help']\nimport main\ntry: main.main()\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'transformers', 'pyarrow', 'sklearn'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    for name in StudentSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_main_refuses_an_unknown_flag_with_exit_code_2() -> None:
    done = run_main("--mode", "student-train", "--student-lerning-rate", "1")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown flag --student-lerning-rate -> did you mean --student-learning-rate?"


def test_main_refuses_a_misspelt_variable_with_exit_code_2() -> None:
    done = run_main("--mode", "student-train", STUDENT_LERNING_RATE="1")
    assert done.returncode == 2
    assert "did you mean STUDENT_LEARNING_RATE?" in done.stderr


def test_main_refuses_a_missing_file_with_exit_code_3() -> None:
    done = run_main("--mode", "student-train", "--train-csv", "nowhere.csv", "--student-model", str(REPOSITORY))
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_profile_line_that_no_stage_reads_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "mine.env"
    profile.write_text("TEACHER_LR=1e-4\nSKIP_QWN=1\n", "utf-8")
    monkeypatch.setenv("PROFILE", str(profile))
    with pytest.raises(SettingsError, match=r"SKIP_QWN.*did you mean SKIP_QWEN"):
        parse()


def test_a_profile_with_a_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "mine.env"
    profile.write_text("HF_TOKEN=not-for-files\n", "utf-8")
    monkeypatch.setenv("PROFILE", str(profile))
    with pytest.raises(SettingsError, match="holds HF_TOKEN") as caught:
        parse()
    assert "not-for-files" not in str(caught.value)

"""Preflight as a whole: a good run passes, nothing is written, nothing heavy imported, and nothing makes it break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arena_distill.pipeline.preflight_finding import Topic, as_table, exit_code, guarded
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, InputError
from tests.conftest import REPOSITORY
from tests.pipeline.preflight_runs import look, shown
from tests.pipeline.small_run import tree

CODE = """
import sys
from arena_distill.pipeline.preflight import preflight
code = preflight(sys.argv[1:])
print(sorted(name for name in ("torch", "transformers", "peft") if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the sample in it, in which paths like those of the profiles are found."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(REPOSITORY / "data" / "sample")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_run_has_nothing_to_fix(profile: Path) -> None:
    seen = look("--profile", str(profile))
    assert (seen.code, seen.fixes) == (0, [])
    topics = {line.topic for line in seen.lines}
    assert topics == {
        *("settings", "software", "places", "data", "outputs", "models", "label tokens", "disk", "memory", "cluster")
    }


def test_the_tiny_profile_passes_before_its_models_are_made(place: Path) -> None:
    seen = look("--profile", "tiny", "--output-dir", str(place))
    assert (seen.code, seen.fixes) == (0, [])
    assert "step 1 makes it" in seen.one("ok", "models", "STUDENT_MODEL_NAME").said
    assert not (place / "model_save").exists()


def test_a_70b_profile_names_all_that_is_missing_at_once(place: Path) -> None:
    seen = look("--profile", "llama3-70b", "--output-dir", str(place), AUTO_DOWNGRADE=0)
    assert seen.code in (2, 3)
    seen.one("fix", "data", "TRAIN_CSV", "data/train.csv")
    seen.one("fix", "data", "UT_DATA", "data/ultrafeedback.csv")
    seen.one("fix", "data", "TEST_CSV", "data/test.csv")
    assert "hf download meta-llama/Meta-Llama-3-70B-Instruct" in seen.one("fix", "models", "LLAMA_BASE").advice
    assert "hf download google/gemma-2-9b-it" in seen.one("fix", "models", "STUDENT_MODEL_NAME").advice
    assert "141 GB" in seen.one("ok", "disk", "step 1", "merged llama").said


def test_nothing_is_written(profile: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "out").mkdir()
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    assert look("--profile", str(profile), SCRATCH_BASE=scratch).code == 0
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


def test_the_repository_is_left_as_it_was(profile: Path) -> None:
    before = tree(REPOSITORY / "conf"), sorted(path.name for path in REPOSITORY.iterdir())
    look("--profile", str(profile))
    assert (tree(REPOSITORY / "conf"), sorted(path.name for path in REPOSITORY.iterdir())) == before


def test_no_heavy_library_is_imported(profile: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--profile", str(profile)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stdout + done.stderr


def test_what_a_command_says_does_not_stay_in_the_environment(profile: Path) -> None:
    before = dict(os.environ)
    look("--profile", str(profile), "--run", "x", "--n-folds", "3")
    assert dict(os.environ) == before


def test_the_table_fits_120_columns_and_says_what_the_document_says(place: Path) -> None:
    flags = ("--profile", "llama3-70b", "--output-dir", str(place / "a-directory-with-a-name" / ("n" * 200)))
    code, table = shown(*flags)
    seen = look(*flags)
    assert code == seen.code
    longest = max((line for line in table.splitlines() if "nnnn" not in line), key=len)
    assert len(longest) <= 120, longest
    said = " ".join(table.split())
    for line in seen.of("fix", "data") + seen.of("fix", "models"):
        assert line.said in said, line
        assert f"-> {line.advice}" in said, line
    counts = {level: len(seen.of(level)) for level in ("ok", "warning", "fix")}
    plural = "s" * (counts["warning"] != 1)
    assert table.rstrip().endswith(f"{counts['ok']} ok, {counts['warning']} warning{plural}, {counts['fix']} to fix")


def test_the_exit_code_tells_settings_from_input(profile: Path, tmp_path: Path) -> None:
    assert look("--profile", str(profile), TEST_CSV=tmp_path / "none.csv").code == 3
    assert look("--profile", str(profile), STUDENT_LR="fast").code == 2
    assert look("--profile", str(profile), STUDENT_LR="fast", TEST_CSV=tmp_path / "none.csv").code == 2


def test_a_check_that_breaks_is_a_line_like_any_other() -> None:
    topic = Topic("data")

    def breaks():  # type: ignore[no-untyped-def]
        yield topic.ok("first", "well")
        raise ZeroDivisionError("1 / 0")

    first, second = guarded(topic, "second", breaks)
    assert (first.level, second.level, second.subject) == ("ok", "fix", "second")
    assert "ZeroDivisionError" in second.said
    assert second.advice
    assert exit_code([first, second]) == 3


def test_an_error_of_ours_keeps_its_advice_and_its_exit_code() -> None:
    from arena_distill.runtime.errors import SettingsError

    finding = Topic("data").of_error("x", SettingsError("a is wrong -> b mends it"))
    assert (finding.said, finding.advice, finding.exit_code) == ("a is wrong", "b mends it", EXIT_BAD_SETTINGS)
    assert Topic("cluster", EXIT_BAD_SETTINGS).of_error("x", InputError("a -> b")).exit_code == 3


def test_no_secret_is_ever_shown(profile: Path, tmp_path: Path) -> None:
    secret = "hf_" + "s" * 30
    code, table = shown("--profile", str(profile), HF_TOKEN=secret, TEST_CSV=tmp_path / f"{secret}.csv")
    assert code == 3
    assert secret not in "".join(table.split())
    assert "<HF_TOKEN>" in "".join(table.split())


def test_a_finding_without_advice_is_no_warning() -> None:
    with pytest.raises(ValueError, match="advice"):
        Topic("data").warning("x", "odd", "")


PATHS = (
    *("TRAIN_CSV", "TEST_CSV", "EXTRA_DATA", "UT_DATA", "LABELS_CSV", "OUTPUT_DIR", "SCRATCH_BASE", "FOLDS_JSON"),
    *("LLAMA_BASE", "LLAMA_TOK", "STUDENT_MODEL_NAME", "HF_HOME", "CALIB_CSV"),
)
OTHERS = ("LLAMA_FT_BASE", "BASE_MODEL", "MODEL_DIR", "TTA_LENGTHS", "TEACHER_LABEL_WORDS", "STEP3_SBATCH", "N_FOLDS",
          "GPU_MEMORY_GB", "OUT_MERGED", "STUDENT_TEACHERS", "SBATCH_GRES")  # fmt: skip
NASTY = (
    *(
        "a" * 5000,
        "/dev/null/x",
        "/proc/self/mem",
        "..",
        "~nobody/x",
        "\N{SNOWMAN}",
        "a\nb",
        "'\"$(x)",
        "org/name/more",
    ),
    *("-", "0", ","),
)


@pytest.mark.parametrize("value", NASTY)
def test_no_path_makes_it_break(value: str, profile: Path) -> None:
    for settings in (PATHS, [name for name in PATHS if name != "OUTPUT_DIR"]):
        _is_unbroken(profile, dict.fromkeys(settings, value))


@pytest.mark.parametrize("setting", OTHERS)
def test_no_other_value_makes_it_break(setting: str, profile: Path) -> None:
    for value in NASTY[OTHERS.index(setting) % 4 :: 4]:
        _is_unbroken(profile, {setting: value})


def _is_unbroken(profile: Path, settings: dict[str, str]) -> None:
    seen = look("--profile", str(profile), **settings)
    assert not [line.text for line in seen.lines if "itself broke" in line.said], settings
    assert all(line.advice for line in seen.lines if line.level != "ok")


def test_as_table_wraps_long_words_without_losing_them() -> None:
    topic = Topic("models")
    table = as_table([topic.fix("NAME", "Q" * 300, "mend it"), topic.ok("A" * 150, "well")])
    assert "".join(table.split()).count("Q") == 300
    assert max(map(len, table.splitlines())) <= 120


def test_the_document_is_json_that_programs_can_read(profile: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--profile", str(profile), "--json"], capture_output=True, text=True, timeout=120
    )
    document = json.loads(done.stdout)
    assert document["exit_code"] == 0
    assert document["counts"]["fix"] == 0
    assert {"topic", "level", "subject", "said", "advice"} == set(document["findings"][0])

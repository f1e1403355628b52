"""Step 3 given what it cannot use: one clear line, the right exit code, and what was there before stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from arena_distill.runtime.artifacts import locked
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, ArenaError, InputError, SettingsError
from arena_distill.training.teacher_settings import TeacherSettings
from tests.training.teacher_runs import FOLDS, adapter_of, contents, flags, quick_step3, run_script, step2, step3


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> Path:
    """Output directory with folds and the Llama teacher of fold 1, adapter and merged copy."""
    output = tmp_path_factory.mktemp("finished")
    step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=output)
    step3(**quick_step3(small_train_csv, backbones / "llama", output) | {"teacher_merge": "1"})
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, which must be the same, byte by byte, after whatever the test does."""
    directory = shutil.copytree(finished, tmp_path / "out")
    before = contents(directory)
    yield directory
    after = contents(directory)
    assert {name: after.get(name) for name in before} == before
    left = {name for name in after.keys() - before.keys() if "/training/checkpoint-" not in name}
    assert not left, left


@pytest.fixture
def settings(output: Path, backbones: Path, small_train_csv: Path) -> dict[str, object]:
    """Of a teacher that is not up to date: another seed would replace the finished one."""
    folds = output / "data" / "processed_data" / f"folds_{FOLDS}_seed42.json"
    return quick_step3(small_train_csv, backbones / "llama", output) | {"seed": 7, "folds_json": folds}


def _refused(settings: dict[str, object], error: type[ArenaError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        step3(**settings)
    assert "\n" not in str(caught.value)


# Folds


def test_a_missing_folds_file_is_named(settings: dict[str, object], tmp_path: Path) -> None:
    _refused(settings | {"folds_json": tmp_path / "none.json"}, InputError, r"none\.json: no such folds file")


def test_folds_of_another_data_file_are_refused_by_name(
    settings: dict[str, object], small_test_csv: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    lines = small_train_csv.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "other.csv").write_text("".join(lines[:100]), "utf-8")
    _refused(settings | {"train_csv": tmp_path / "other.csv"}, InputError, r"folds_3_seed42\.json.*made of other data")


@pytest.mark.parametrize("folds", ["9", "0,3"])
def test_a_fold_that_does_not_exist_is_refused_with_the_ones_that_do(folds: str, settings: dict[str, object]) -> None:
    _refused(settings | {"teacher_folds": folds}, SettingsError, r"TEACHER_FOLDS.*0 … 2.*no fold [39]")


def test_folds_counted_otherwise_than_the_file_has_them_are_refused(settings: dict[str, object]) -> None:
    """Else ``all`` would quietly train two of the three folds, and a third of the rows would have no teacher."""
    _refused(settings | {"n_folds": 2, "teacher_folds": "all"}, SettingsError, r"N_FOLDS|folds_3_seed42")


# Bases


@pytest.mark.parametrize("name", ["./gone", "/nowhere/llama", "model_save/post_pretrain/llama", "~/no/such/model"])
def test_a_path_to_nothing_is_never_taken_for_a_hub_name(name: str, settings: dict[str, object]) -> None:
    _refused(settings | {"llama_ft_base": name}, InputError, "LLAMA_FT_BASE=.*no such model directory")


def test_a_hub_name_that_is_not_to_be_had_is_named(settings: dict[str, object]) -> None:
    _refused(settings | {"llama_ft_base": "nobody/no-such-model"}, InputError, "^nobody/no-such-model: ")


def test_without_step_1_and_without_a_base_both_ways_out_are_named(settings: dict[str, object]) -> None:
    del settings["llama_ft_base"]
    _refused(settings, InputError, "post_pretrain_llama: no base model.*step 1.*LLAMA_FT_BASE")


def test_a_base_without_tokenizer_is_refused(settings: dict[str, object], backbones: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(backbones / "llama", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    _refused(settings | {"llama_ft_base": bare}, InputError, "bare: holds no tokenizer")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_base_that_was_cut_off_is_refused_by_name(
    file: str, settings: dict[str, object], backbones: Path, tmp_path: Path
) -> None:
    cut = shutil.copytree(backbones / "llama", tmp_path / "cut")
    whole = (cut / file).read_bytes()
    (cut / file).write_bytes(whole[: len(whole) // 2])
    _refused(settings | {"llama_ft_base": cut}, InputError, "cut")


def test_a_base_that_lacks_a_layer_is_refused(settings: dict[str, object], backbones: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    holed = shutil.copytree(backbones / "llama", tmp_path / "holed")
    weights = load_file(holed / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, holed / "model.safetensors", {"format": "pt"})
    for head in ("label", "seq_cls"):
        with pytest.raises(InputError, match=r"holed.*up_proj"):
            step3(**settings | {"llama_ft_base": holed, "teacher_head": head})


def test_an_encoder_cannot_judge_by_label_tokens(settings: dict[str, object], backbones: Path) -> None:
    _refused(settings | {"llama_ft_base": backbones / "bert"}, InputError, "TEACHER_HEAD=seq_cls")


def test_a_word_of_several_tokens_is_refused_with_the_setting(settings: dict[str, object]) -> None:
    wrong = settings | {"teacher_label_words": "A,B,neither is better"}
    _refused(wrong, InputError, "'neither is better'.*TEACHER_LABEL_WORDS")


def test_a_length_too_short_for_the_question_is_refused(settings: dict[str, object]) -> None:
    _refused(settings | {"teacher_maxlen": 16}, SettingsError, "TEACHER_MAXLEN.*16 tokens are too few")


# Settings


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"teacher_lora_r": 0}, "TEACHER_LORA_R=0.*TEACHER_HEAD=seq_cls"),
        ({"teacher_lora_r": 0, "teacher_head": "seq_cls", "teacher_quant": "nf4"}, "TEACHER_QUANT=none"),
        ({"llama_name": "same", "qwen_name": "same"}, "LLAMA_NAME, QWEN_NAME, GEMMA_NAME and ENCODER_NAME must differ"),
        ({"skip_llama": True}, "SKIP_LLAMA.*no teacher"),
        ({"teacher_label_words": "A,B,A"}, "three different words"),
        ({"teacher_folds": "-1"}, "teacher-folds|TEACHER_FOLDS"),
        ({"teacher_lr": "0"}, "TEACHER_LR"),
        ({"teacher_lr": "nan"}, "TEACHER_LR"),
        ({"llama_name": "../elsewhere"}, "LLAMA_NAME"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    wrong: dict[str, object], match: str, settings: dict[str, object]
) -> None:
    with pytest.raises(SettingsError, match=match) as caught:
        step3(**settings | wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["TEACHER_LEARNIN_RATE", "TEACHER_LORA_RANK", "LLAMA_FT_BAES", "QWEN_FT_BSE"])
def test_a_misspelt_variable_is_refused_by_name(
    name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"unknown variable {name}"):
        step3(**settings)


def test_the_environment_gives_settings_and_the_command_line_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from arena_distill.runtime.settings import parse_settings

    monkeypatch.setenv("TEACHER_LR", "0.5")
    monkeypatch.setenv("SKIP_QWEN", "1")
    found = parse_settings(TeacherSettings, flags(teacher_folds="2, 0"), program="", description="")
    assert (found.teacher_lr, found.skip_qwen, found.fold_numbers) == (0.5, True, [2, 0])
    assert parse_settings(TeacherSettings, ["--teacher-lr", "1"], program="", description="").teacher_lr == 1


# Places, other jobs, and runs that go wrong


def test_what_another_stage_or_a_person_made_is_not_replaced(
    settings: dict[str, object], output: Path, finished: Path
) -> None:
    mine = adapter_of(output, 0)
    shutil.copytree(finished / "data" / "fold_data", mine)
    (mine / "thesis.txt").write_text("years of work")
    before = contents(mine)
    for force in (False, True):
        with pytest.raises(InputError, match="did not make"):
            step3(**settings | {"teacher_folds": "0", "force": force})
    assert contents(mine) == before
    shutil.rmtree(mine)


@pytest.mark.parametrize("kind", ["foreign", "full fine-tune"])
def test_a_merged_copy_that_could_not_be_written_is_refused_before_the_training(
    kind: str, settings: dict[str, object], output: Path, backbones: Path
) -> None:
    """Not after it: the training takes a day."""
    place = adapter_of(output, 0).with_name("tiny_fold_0")
    folds = {"teacher_folds": "0"}
    if kind == "foreign":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    else:
        step3(**settings | folds | {"teacher_lora_r": 0, "teacher_head": "seq_cls"})
    before = contents(place)
    with pytest.raises(InputError, match="did not make"):
        step3(**settings | folds | {"teacher_merge": "1"})
    trained = adapter_of(output, 0).exists()
    shutil.rmtree(adapter_of(output, 0), ignore_errors=True)
    assert contents(place) == before
    shutil.rmtree(place)
    assert not trained, "a day of training went before"


def test_a_second_job_on_the_same_teacher_is_refused(settings: dict[str, object], output: Path) -> None:
    with locked(adapter_of(output)):
        _refused(settings, ArenaError, "another job")


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_run_that_diverges_says_so_and_publishes_nothing(rate: float, settings: dict[str, object]) -> None:
    diverging = settings | {"teacher_lr": rate, "teacher_max_steps": 6, "teacher_warmup_ratio": 0}
    _refused(diverging, SettingsError, "diverged.*learning rate")


def test_a_merge_that_would_judge_otherwise_is_not_published(
    settings: dict[str, object], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged copy of a damaged merge never appears, and the adapter stays."""
    from safetensors.torch import load_file, save_file

    from arena_distill.models import merge
    from arena_distill.runtime.artifacts import sha256_file

    adapter = adapter_of(output, 2)
    whole = merge.write_merged

    def damage(base: str, adapter_dir: Path, directory: Path, **options: object) -> object:
        report = whole(base, adapter_dir, directory, **options)  # type: ignore[arg-type]
        weights = load_file(directory / "model.safetensors")
        weights["model.norm.weight"] *= -1
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return report

    monkeypatch.setattr(merge, "write_merged", damage)
    with pytest.raises(ArenaError, match=r"probabilities differ.*TEACHER_MERGE=0"):
        step3(**settings | {"teacher_folds": "2", "teacher_merge": "1"})
    written = json.loads((adapter / "manifest.json").read_text())["outputs"]
    assert all(sha256_file(adapter / name) == digest for name, digest in written.items())
    assert not adapter.with_name(adapter.name.removesuffix("_lora")).exists()
    shutil.rmtree(adapter)


def _worker(settings: dict[str, object], **environment: str) -> tuple[int, list[str]]:
    code, printed = run_script("train_teachers.py", environment=environment, **settings)
    assert "Traceback" not in printed
    return code, printed.splitlines()


@pytest.mark.slow
def test_the_worker_ends_with_the_exit_code_of_the_error_and_one_line(
    settings: dict[str, object], tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.json")
    for code, wrong, variables, words in (
        (EXIT_BAD_INPUT, {"folds_json": gone}, {}, "no such folds file"),
        (EXIT_BAD_SETTINGS, {"teacher_folds": "9"}, {}, "no fold 9"),
        (EXIT_BAD_SETTINGS, {}, {"TEACHER_LEARNIN_RATE": "1"}, "unknown variable TEACHER_LEARNIN_RATE"),
        (EXIT_BAD_SETTINGS, {"teacher_lr": 1e30, "teacher_warmup_ratio": 0}, {}, "diverged"),
    ):
        found, lines = _worker(settings | wrong, **variables)
        assert found == code, lines
        assert [line for line in lines if line.startswith("error: ")] == [lines[-1]]
        assert words in lines[-1]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_the_same_command_goes_on_when_there_is_room(
    finished: Path, backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("cannot mount a small disk")
    try:
        folds = finished / "data" / "processed_data" / f"folds_{FOLDS}_seed42.json"
        settings = quick_step3(small_train_csv, backbones / "llama", disk) | {"folds_json": folds}
        filler = disk / "filler"
        filler.write_bytes(bytes(280 << 10))
        code, lines = _worker(settings | {"teacher_save_steps": 1})
        assert code == EXIT_BAD_INPUT, lines
        assert lines[-1].startswith("error: ") and "disk" in lines[-1], lines
        assert not adapter_of(disk).exists()
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        code, lines = _worker(settings | {"teacher_save_steps": 1})
        assert code == 0, lines
        assert adapter_of(disk).is_dir()
    finally:
        subprocess.run(["umount", str(disk)], check=True)

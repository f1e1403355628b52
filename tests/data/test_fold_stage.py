"""Step 2 as its users meet it: what it writes, when it writes nothing, and what survives a bad disk or a kill."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arena_distill.data import fold_stage, scratch_copy
from arena_distill.data.fold_files import fold_csv, read_fold_csv
from arena_distill.data.fold_rows import fold_rows
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.folds import load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.runtime.artifacts import MANIFEST, sha256_file
from arena_distill.runtime.errors import ArenaError, DataError, InputError, SettingsError
from arena_distill.runtime.settings import parse_settings
from tests.conftest import REPOSITORY, SAMPLE

EXTRA = SAMPLE / "ultrafeedback.csv"
VARIABLES = ("EXTRA_DATA", "N_FOLDS", "FOLDS_JSON", "FOLDS_OUT_DIR", "SCRATCH_BASE", "REPO_ROOT")


@pytest.fixture(autouse=True)
def _no_fold_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def train(small_train_csv: Path, tmp_path: Path) -> Path:
    """A copy of the small training file that a test may change."""
    return Path(shutil.copy(small_train_csv, tmp_path / "train.csv"))


def step2(train: Path, *flags: str | Path) -> None:
    argv = ["--train-csv", str(train), "--output-dir", str(train.parent), *map(str, flags)]
    fold_stage.run(parse_settings(FoldSettings, argv, program="make_folds.py", description=""))


def state(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: equal exactly if nothing was written."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def folds_json(train: Path) -> Path:
    return train.parent / "data" / "processed_data" / "folds_5_seed42.json"


def fold_data(train: Path) -> Path:
    return train.parent / "data" / "fold_data"


# What it writes


def test_files_hold_the_folds_rows_and_the_manifest_counts_them(
    train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step2(train, "--extra-data", EXTRA)
    base, extra = load_labelled(train).rows, load_labelled(EXTRA).rows
    folds = load_folds(folds_json(train))
    manifest = json.loads((fold_data(train) / MANIFEST).read_text())
    assert manifest["rows"] == {"base": 160, "extra": 300}
    assert manifest["folds_json_sha256"] == sha256_file(folds_json(train))
    printed = capsys.readouterr().out
    for fold, counts in enumerate(manifest["folds"]):
        parts = fold_rows(base, [extra], folds, fold)
        for name, rows in (("train", parts.train), ("val", parts.val)):
            again = read_fold_csv(fold_csv(fold_data(train), fold, name))
            assert again.to_pylist() == rows.to_pylist()
        assert counts["train_base"] + counts["train_extra"] == len(parts.train)
        assert (counts["val"], counts["held_out_extra"]) == (len(parts.val), parts.held_out_extra)
        assert counts["val_tie"] == pytest.approx(parts.val["label"].to_pylist().count(2) / len(parts.val), abs=1e-4)
        assert f"{counts['train_base']:10,}  {counts['train_extra']:11,}" in printed
    assert sum(counts["held_out_extra"] for counts in manifest["folds"]) > 0
    assert sorted(path.name for path in train.parent.rglob(".*") if not path.name.endswith(".lock")) == []


def test_runs_stand_beside_each_other(train: Path) -> None:
    step2(train, "--run", "x")
    step2(train)
    before = state(train.parent / "data" / "fold_data_x")
    step2(train, "--force")
    assert state(train.parent / "data" / "fold_data_x") == before
    assert len(before) == 11
    assert (train.parent / "data" / "processed_data" / "x" / "folds_5_seed42.json").is_file()


def test_plain_default_files_are_found(train: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    train.rename(tmp_path / "data" / "train.csv")
    monkeypatch.chdir(tmp_path)
    fold_stage.run(parse_settings(FoldSettings, [], program="", description=""))
    assert Path("data/fold_data/fold_4_val.csv").is_file()


# When it writes nothing


def test_a_second_run_writes_nothing_and_reads_no_rows(
    train: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--extra-data", str(EXTRA), "--scratch-base", str(train.parent / "scratch"))
    step2(train, *flags)
    before = state(train.parent)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr(fold_stage, "load_labelled", refuse)
    started = time.monotonic()
    step2(train, *flags)
    assert time.monotonic() - started < 1
    assert state(train.parent) == before
    assert capsys.readouterr().out.count("up to date") == 2


@pytest.mark.parametrize("change", ["force", "seed", "extra", "missing csv", "short csv", "missing json", "other json"])
def test_what_changed_or_went_missing_is_made_again(change: str, train: Path) -> None:
    step2(train)
    before, wanted = state(fold_data(train)), folds_json(train).read_bytes()
    flags: dict[str, tuple[str, ...]] = {
        "force": ("--force",),
        "seed": ("--seed", "43"),
        "extra": ("--extra-data", str(EXTRA)),
    }
    if change == "missing csv":
        fold_csv(fold_data(train), 1, "val").unlink()
    elif change == "short csv":
        os.truncate(fold_csv(fold_data(train), 1, "val"), 100)
    elif change == "missing json":
        folds_json(train).unlink()
    elif change == "other json":
        folds_json(train).write_text(folds_json(train).read_text() + "\n")
    step2(train, *flags.get(change, ()))
    after = state(fold_data(train))
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())
    assert folds_json(train).read_bytes().strip() == wanted
    read_fold_csv(fold_csv(fold_data(train), 1, "val"))


def test_folds_that_are_there_are_kept_when_only_the_extra_data_changes(
    train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step2(train)
    before = state(folds_json(train).parent)
    step2(train, "--extra-data", EXTRA)
    assert state(folds_json(train).parent) == before
    assert "kept" in capsys.readouterr().out


def test_other_data_makes_new_folds_and_says_what_they_replace(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step2(train)
    shutil.copy(EXTRA, train)
    step2(train)
    said = capsys.readouterr().out
    assert "note: the 5 folds of 160 rows (seed 42)" in said
    assert "teachers trained on them do not fit these 300 rows" in said
    folds = load_folds(folds_json(train))
    folds.check(load_labelled(train).rows, train)
    assert len(folds.fold) == 300


def test_folds_of_another_seed_in_the_same_directory_are_named(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step2(train)
    assert "note:" not in capsys.readouterr().out
    step2(train, "--seed", "7")
    assert f"(seed 42) in {fold_data(train)}" in capsys.readouterr().out
    folds_json(train).with_name("folds_5_seed7.json").unlink()
    step2(train, "--seed", "7")
    assert "note:" not in capsys.readouterr().out


# What it refuses


def test_what_step_2_did_not_make_is_not_replaced(train: Path) -> None:
    mine = fold_data(train) / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="holds something that step2_make_folds did not make"):
        step2(train)
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]


def test_what_step_2_did_not_make_on_scratch_is_not_replaced_either(train: Path) -> None:
    mine = train.parent / "scratch" / "folds" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="holds something that step2_make_folds did not make"):
        step2(train, "--scratch-base", train.parent / "scratch")
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]
    assert fold_csv(fold_data(train), 4, "val").is_file()


def test_a_folds_json_that_is_something_else_is_not_replaced(train: Path) -> None:
    before = train.read_bytes()
    for flags in ((), ("--force",)):
        with pytest.raises(DataError, match="holds no folds of ours") as caught:
            step2(train, "--folds-json", train, *flags)
        assert caught.value.file == str(train)
    assert train.read_bytes() == before
    assert not fold_data(train).exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--folds-out-dir", "."),
        ("--folds-out-dir", "out", "--folds-json", "out/folds.json"),
        ("--scratch-base", "s", "--folds-out-dir", "s/folds"),
        ("--scratch-base", "s", "--folds-out-dir", "s/folds/x"),
        ("--scratch-base", "data/fold_data"),
        ("--scratch-base", "s", "--folds-json", "s/folds/folds_5_seed42.json"),
    ],
)
def test_an_output_directory_may_hold_no_input_and_no_other_output(
    flags: tuple[str, ...], train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(train.parent)
    with pytest.raises(SettingsError, match="is replaced as a whole"):
        step2(train, "--output-dir", ".", *flags)
    assert [path.name for path in train.parent.iterdir()] == ["train.csv"]


def test_more_folds_than_prompts_are_a_settings_error_and_leave_nothing(train: Path) -> None:
    train.write_text("\n".join(train.read_text().splitlines()[:1]) + "\n")
    with train.open("a") as stream:
        stream.writelines(f'{n},m,m,["p{n}"],["a"],["b"],1,0,0\n'.replace('["', '"[""').replace('"]', '""]"')
                          for n in range(3))  # fmt: skip
    with pytest.raises(SettingsError, match="5 folds need at least as many distinct prompts"):
        step2(train)
    assert not fold_data(train).exists()
    assert not folds_json(train).exists()


# Scratch


def test_the_copy_on_scratch_is_whole_and_made_again_alone(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = train.parent / "scratch"
    step2(train, "--scratch-base", base)
    copy = base / "folds"
    originals = {path.name: path.read_bytes() for path in (*fold_data(train).iterdir(), folds_json(train))}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == originals
    before = state(train.parent / "data")
    for damage in ("all", "one", "short", "of another making"):
        if damage == "all":
            shutil.rmtree(base)
        elif damage == "one":
            (copy / "folds_5_seed42.json").unlink()
        elif damage == "short":
            os.truncate(copy / "fold_2_train.csv", 10)
        else:
            (copy / MANIFEST).write_text((copy / MANIFEST).read_text().replace('"seed": 42', '"seed": 41'))
        capsys.readouterr()
        step2(train, "--scratch-base", base)
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == originals
        assert state(train.parent / "data") == before
        assert f"up to date: {fold_data(train)}" in (said := capsys.readouterr().out)
        assert f"copied to {copy}" in said


def test_the_copy_follows_new_folds(train: Path) -> None:
    base = train.parent / "scratch"
    step2(train, "--scratch-base", base)
    step2(train, "--seed", "1", "--extra-data", EXTRA, "--scratch-base", base)
    assert (base / "folds" / "folds_5_seed1.json").is_file()
    assert not (base / "folds" / "folds_5_seed42.json").exists()
    assert (base / "folds" / MANIFEST).read_bytes() == (fold_data(train) / MANIFEST).read_bytes()


@pytest.mark.parametrize("fault", ["error", "torn"])
def test_a_passing_fault_of_the_scratch_disk_is_overcome(
    fault: str, train: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, faults = shutil.copyfile, []

    def flaky(source: Path, target: Path) -> Path:
        if target.name == "fold_1_train.csv" and len(faults) < scratch_copy.ATTEMPTS - 1:
            faults.append(target)
            if fault == "error":
                raise OSError(errno.EIO, "Input/output error")
            target.write_bytes(source.read_bytes().replace(b"e", b"f"))
            return target
        return sound(source, target)

    monkeypatch.setattr(scratch_copy, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(shutil, "copyfile", flaky)
    step2(train, "--scratch-base", train.parent / "scratch")
    assert len(faults) == scratch_copy.ATTEMPTS - 1
    assert capsys.readouterr().out.count("fold_1_train.csv did not arrive") == len(faults)
    name = "fold_1_train.csv"
    assert (train.parent / "scratch" / "folds" / name).read_bytes() == (fold_data(train) / name).read_bytes()


def test_a_scratch_disk_that_goes_on_failing_is_named_and_the_old_copy_stays(train: Path) -> None:
    base = train.parent / "scratch"
    step2(train, "--scratch-base", base)
    step2(train, "--seed", "1")
    before = state(base)
    script = (
        "import sys\nfrom arena_distill.data import scratch_copy\nscratch_copy.PAUSE_SECONDS = 0\n"
        "sys.path.insert(0, 'scripts')\nimport make_folds\nfrom arena_distill.runtime.errors import run_command\n"
        "sys.exit(run_command(make_folds.main))\n"
    )
    flags = ["--train-csv", train, "--output-dir", train.parent, "--seed", "1", "--scratch-base", base]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),  # a real error while writing
    )
    assert done.returncode == 3, done.stderr
    assert f"{base}: fold_0_train.csv cannot be copied there (File too large, 3 attempts)" in done.stderr
    assert state(base) == before
    assert not list(base.glob(".*partial*"))
    assert "up to date" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_scratch_disk_is_refused_before_the_first_byte_and_costs_nothing(
    train: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=rf"{small_disk}: .* MB are needed and .* MB free"):
        step2(train, "--scratch-base", small_disk)
    assert not list(small_disk.glob(".*partial*"))
    capsys.readouterr()
    step2(train, "--scratch-base", train.parent / "roomy")
    assert f"up to date: {fold_data(train)}" in capsys.readouterr().out


def test_a_full_disk_for_the_folds_themselves_is_refused_by_name(train: Path, small_disk: Path) -> None:
    with pytest.raises(InputError, match=r"make room"):
        step2(train, "--folds-out-dir", small_disk / "folds")
    assert [path.name for path in small_disk.iterdir()] == [".folds.lock"]
    assert not folds_json(train).exists()


def test_a_scratch_base_that_cannot_be_made_is_an_input_error(train: Path) -> None:
    (train.parent / "file").write_text("")
    with pytest.raises(InputError, match=r"the folds in .* are complete"):
        step2(train, "--scratch-base", train.parent / "file")
    assert (fold_data(train) / MANIFEST).is_file()


# Kills and rivals


def test_a_kill_in_the_middle_leaves_the_old_folds(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step2(train)
    before = state(train.parent / "data")
    flags = ["--train-csv", train, "--output-dir", train.parent, "--extra-data", EXTRA, "--n-folds", "100"]
    worker = subprocess.Popen([sys.executable, REPOSITORY / "scripts" / "make_folds.py", *flags], stdout=-3, stderr=-3)
    partial = fold_data(train).with_name(".fold_data.partial")
    while not fold_csv(partial, 3, "train").exists():
        assert worker.poll() is None, "it was done before it could be killed"
        time.sleep(0.001)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert partial.is_dir()
    after = {path: found for path, found in state(train.parent / "data").items() if ".partial" not in path}
    assert after == before
    capsys.readouterr()
    step2(train)
    assert capsys.readouterr().out.startswith("up to date")
    step2(train, "--n-folds", "100", "--extra-data", EXTRA)
    assert fold_csv(fold_data(train), 99, "val").is_file()
    assert not partial.exists()


def test_two_jobs_do_not_write_one_directory(train: Path) -> None:
    from filelock import FileLock

    step2(train)
    with FileLock(train.parent / "data" / ".fold_data.lock"), pytest.raises(ArenaError, match="another job"):
        step2(train, "--force")


# The script


def run_script(tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / "step2_make_folds.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})


def test_the_script_takes_its_settings_from_the_environment_in_any_directory(train: Path) -> None:
    out = train.parent / "elsewhere"
    done = run_script(
        train.parent,
        TRAIN_CSV=str(train),
        EXTRA_DATA=f"data/sample/{EXTRA.name}, {SAMPLE / 'ultrafeedback_ties.csv'}",
        RUN="x",
        N_FOLDS="3",
        OUTPUT_DIR=str(train.parent),
        FOLDS_OUT_DIR=str(out),
        SCRATCH_BASE=str(train.parent / "scratch"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob("fold_*.csv"))) == 6
    assert (train.parent / "scratch" / "folds_x" / "folds_3_seed42.json").is_file()
    assert (train.parent / "data" / "processed_data" / "x" / "folds_3_seed42.json").is_file()
    assert json.loads((out / MANIFEST).read_text())["rows"] == {"base": 160, "extra": 400}


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"FOLDS_OUTDIR": "x"}, 2, "did you mean FOLDS_OUT_DIR?"),
        ({"N_FOLDS": "1"}, 2, "--n-folds (or N_FOLDS)"),
        ({"TRAIN_CSV": "nowhere.csv"}, 3, "nowhere.csv: no such file"),
        ({"TRAIN_CSV": "data/sample/test.csv"}, 3, "no label columns"),
    ],
)
def test_the_script_ends_with_the_workers_exit_code(
    environment: dict[str, str], code: int, message: str, tmp_path: Path
) -> None:
    done = run_script(tmp_path, **{"OUTPUT_DIR": str(tmp_path), **environment})
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; sys.argv = ['x', '--help']; sys.path.insert(0, 'scripts')\nimport make_folds\n"
    script += "try: make_folds.main()\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    for name in FoldSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_the_stage_imports_no_torch() -> None:
    script = "import sys\nfrom arena_distill.data import fold_stage\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)

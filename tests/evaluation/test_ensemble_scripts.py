from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.cv_ensemble import NOTE, common_rows, ensemble_runs, read_run
from arena_distill.evaluation.ensemble import Space
from arena_distill.evaluation.heldout import HELDOUT_FILE, write_heldout
from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.evaluation.submission_ensemble import ensemble_files, mean_distance, parse_weights
from arena_distill.runtime.artifacts import MANIFEST, sha256_file, write_manifest
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, ArenaError, InputError, SettingsError

ROOT = Path(__file__).resolve().parents[2]
IDS = ["10", "9", "a,b", "2"]
N_TRAIN, N_FOLDS = 200, 4


def run_script(name: str, *arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / name, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def dirichlet(seed: int, rows: int = len(IDS)) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), size=rows)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def members(tmp_path: Path) -> tuple[list[Path], np.ndarray]:
    """Three submissions of the same ids, the second in another order."""
    p = np.stack([dirichlet(seed) for seed in range(3)])
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    write_submission(paths[0], IDS, p[0])
    write_submission(paths[1], IDS[::-1], p[1][::-1])
    write_submission(paths[2], IDS, p[2])
    return paths, p


def geometric(p: np.ndarray, weights: list[float]) -> np.ndarray:
    product = np.prod([member**w for member, w in zip(p, np.array(weights) / sum(weights), strict=True)], axis=0)
    return np.asarray(product / product.sum(axis=1, keepdims=True))


def test_the_script_averages_with_weights_and_says_what_it_did(
    tmp_path: Path, members: tuple[list[Path], np.ndarray]
) -> None:
    paths, p = members
    out = tmp_path / "new" / "ensemble.csv"
    done = run_script("ensemble_submissions.py", out, *paths, "--weights", "1,2,1")
    assert done.returncode == 0, done.stderr
    ids, found = read_submission(out)
    assert ids == IDS
    np.testing.assert_allclose(found, 0.25 * p[0] + 0.5 * p[1] + 0.25 * p[2], atol=1e-12)
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"{w}  {path}" for w, path in zip(("0.2500", "0.5000", "0.2500"), paths, strict=True)]
    pairs = [np.abs(p[i] - p[j]).sum(axis=1).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert lines[3] == f"mean L1 distance between members: {np.mean(pairs):.4f} (0 to 2)"
    assert lines[4:] == [f"{out}: 4 rows written"]

    manifest = json.loads((out.parent / "ensemble.manifest.json").read_text())
    assert manifest["stage"] == "ensemble"
    assert manifest["settings"] == {"weights": [0.25, 0.5, 0.25], "space": "mean"}
    assert manifest["inputs"] == {str(path): sha256_file(path) for path in paths}
    assert manifest["outputs"] == {"ensemble.csv": sha256_file(out)}
    assert manifest["rows"] == 4
    assert [(m["file"], m["weight"]) for m in manifest["members"]] == [
        *zip(map(str, paths), (0.25, 0.5, 0.25), strict=True)
    ]
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["ensemble.csv", "ensemble.manifest.json"]


def ensemble(out: Path, paths: list[Path], weights: str | None = None, space: Space = "mean", **more: Any) -> None:
    ensemble_files(out, paths, weights=weights, space=space, started=0.0, **({"test_csv": None} | more))


def test_log_space_is_the_geometric_mean_and_weights_are_equal_by_default(
    tmp_path: Path, members: tuple[list[Path], np.ndarray]
) -> None:
    paths, p = members
    ensemble(tmp_path / "log.csv", paths, space="log")
    np.testing.assert_allclose(read_submission(tmp_path / "log.csv")[1], geometric(p, [1, 1, 1]), atol=1e-12)
    ensemble(tmp_path / "weighted.csv", paths, "1,0.5,3", "log")
    np.testing.assert_allclose(read_submission(tmp_path / "weighted.csv")[1], geometric(p, [1, 0.5, 3]), atol=1e-12)
    ensemble(tmp_path / "mean.csv", paths)
    np.testing.assert_allclose(read_submission(tmp_path / "mean.csv")[1], p.mean(axis=0), atol=1e-12)
    ensemble(tmp_path / "one.csv", paths[1:2])
    assert read_submission(tmp_path / "one.csv")[0] == IDS[::-1]


def test_the_test_file_decides_ids_and_order(tmp_path: Path, members: tuple[list[Path], np.ndarray]) -> None:
    paths, p = members
    test_csv = tmp_path / "test.csv"

    def write_test(ids: list[str]) -> None:
        with test_csv.open("w", newline="") as file:
            csv.writer(file).writerows(
                [("id", "prompt", "response_a", "response_b"), *([i, "p", "a", "b"] for i in ids)]
            )

    order = [2, 0, 3, 1]
    write_test([IDS[index] for index in order])
    ensemble(tmp_path / "out.csv", paths, test_csv=test_csv)
    ids, found = read_submission(tmp_path / "out.csv")
    assert ids == [IDS[index] for index in order]
    np.testing.assert_allclose(found, p.mean(axis=0)[order], atol=1e-12)
    assert str(test_csv) in json.loads((tmp_path / "out.manifest.json").read_text())["inputs"]
    write_test([*IDS, "new"])
    with pytest.raises(InputError, match=r"a\.csv.*1 of 5 ids are missing, the first 'new'"):
        ensemble(tmp_path / "out.csv", paths, test_csv=test_csv)


def refused(folder: Path, error: type[ArenaError], problem: str, call: Callable[[], None]) -> None:
    """``call`` raises ``error``, and every file in ``folder`` stays as it was, with none beside them."""
    before = contents(folder)
    with pytest.raises(error, match=problem):
        call()
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("1,2", "2 weights for 3 files"),
        ("1,2,3,4", "4 weights for 3 files"),
        ("1,x,3", "not a list of numbers"),
        ("", "not a list of numbers"),
        ("1,,3", "not a list of numbers"),
        ("1,0,3", "must be positive"),
        ("1,-2,3", "must be positive"),
        ("1,nan,3", "must be positive"),
        ("1,inf,3", "must be positive"),
    ],
)
def test_bad_weights_are_bad_settings(
    tmp_path: Path, members: tuple[list[Path], np.ndarray], weights: str, problem: str
) -> None:
    refused(tmp_path, SettingsError, problem, lambda: ensemble(tmp_path / "out.csv", members[0], weights))


def test_huge_weights_are_normalised_without_overflow() -> None:
    np.testing.assert_allclose(parse_weights("1e308,1e308,2e307,1e308", 4), np.array([10, 10, 2, 10]) / 32)


def test_an_output_that_is_an_input_is_refused_however_it_is_named(
    tmp_path: Path, members: tuple[list[Path], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = members
    (tmp_path / "link.csv").symlink_to(paths[2])
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    for out in (paths[0], Path("b.csv"), tmp_path / "d" / ".." / "a.csv", tmp_path / "link.csv"):
        refused(tmp_path, InputError, "would overwrite the input", lambda out=out: ensemble(out, paths))  # type: ignore[misc]
    test_csv = tmp_path / "test.csv"
    test_csv.write_text("id,prompt,response_a,response_b\n10,p,a,b\n")
    refused(tmp_path, InputError, "would overwrite", lambda: ensemble(test_csv, paths, test_csv=test_csv))
    paths[0].rename(tmp_path / "x.manifest.json")
    named = [tmp_path / "x.manifest.json", *paths[1:]]
    refused(tmp_path, InputError, "would overwrite", lambda: ensemble(tmp_path / "x.csv", named))


def test_a_file_given_twice_is_refused_however_it_is_named(
    tmp_path: Path, members: tuple[list[Path], np.ndarray]
) -> None:
    paths, _ = members
    (tmp_path / "link.csv").symlink_to(paths[0])
    out = tmp_path / "out.csv"
    refused(tmp_path, InputError, r"b\.csv: is given twice ->", lambda: ensemble(out, [*paths, paths[1]]))
    problem = r"link\.csv: is given twice \(as .*a\.csv\)"
    refused(tmp_path, InputError, problem, lambda: ensemble(out, [*paths, tmp_path / "link.csv"]))


HEADER_LINE = "id,winner_model_a,winner_model_b,winner_tie\n"
BAD_MEMBERS = [
    (HEADER_LINE + "10,1,0,0\n9,1,0,0\n2,1,0,0\n", "1 of 4 ids are missing, the first 'a,b'"),
    (
        HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,1,0,0\n"a,b",1,0,0\n5,1,0,0\n',
        "1 ids are not in the test file, the first '5'",
    ),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,nan,0,0\n"a,b",1,0,0\n', "row 3, column 'winner_model_a': nan"),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,1,0,inf\n"a,b",1,0,0\n', "row 3, column 'winner_tie': inf"),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,,1,0\n"a,b",1,0,0\n', "row 3, column 'winner_model_a': '' is not a number"),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,2.5,-3,1.5\n"a,b",1,0,0\n', "row 3.*is not within"),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n2,0.5,0,0\n"a,b",1,0,0\n', "row 3.*sum to 0.5, not 1"),
    (HEADER_LINE + '10,1,0,0\n9,1,0,0\n10,1,0,0\n"a,b",1,0,0\n', "row 3, column 'id'.*already"),
    (HEADER_LINE + "10,1,0,0\n9,0.25,0.5", "row 2: has 3 fields"),
    (HEADER_LINE, "has a header but no rows"),
    ("", "is empty"),
    ("id,a,b,tie\n10,1,0,0\n", "has columns 'id,a,b,tie'"),
    (None, "cannot be read: No such file"),
]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("text", "problem"), BAD_MEMBERS)
def test_a_bad_member_is_named_and_an_older_output_stays_byte_for_byte(
    tmp_path: Path, members: tuple[list[Path], np.ndarray], text: str | None, problem: str, place: int
) -> None:
    paths, _ = members
    out, test_csv = tmp_path / "out.csv", tmp_path / "test.csv"
    with test_csv.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "prompt", "response_a", "response_b"), *([i, "p", "a", "b"] for i in IDS)])
    ensemble(out, paths, test_csv=test_csv)
    paths[place].unlink()
    if text is not None:
        paths[place].write_text(text)
    problem = rf"{paths[place].name}.*{problem}"
    refused(tmp_path, InputError, problem, lambda: ensemble(out, paths, test_csv=test_csv))
    if place:  # without the test file the first member's ids are those that the others must have
        refused(tmp_path, InputError, problem, lambda: ensemble(out, paths))


def test_without_the_test_file_both_members_whose_ids_differ_are_named(
    tmp_path: Path, members: tuple[list[Path], np.ndarray]
) -> None:
    paths, p = members
    write_submission(paths[0], IDS[:3], p[0][:3])
    problem = r"b\.csv.*1 ids are not in the test file.*compared with those of .*a\.csv: --test-csv FILE says"
    refused(tmp_path, InputError, problem, lambda: ensemble(tmp_path / "out.csv", paths))


def test_exit_codes_of_the_file_script(tmp_path: Path, members: tuple[list[Path], np.ndarray]) -> None:
    paths, _ = members
    out = tmp_path / "out.csv"
    for arguments, code, problem in (
        ([out], EXIT_BAD_SETTINGS, "required: IN"),
        ([out, *paths, "--weights", "1,2"], EXIT_BAD_SETTINGS, "2 weights for 3 files"),
        ([out, *paths, "--space", "cube"], EXIT_BAD_SETTINGS, "invalid choice"),
        ([out, tmp_path / "absent.csv"], EXIT_BAD_INPUT, "absent.csv: cannot be read"),
        ([paths[0], *paths], EXIT_BAD_INPUT, "would overwrite the input"),
        ([tmp_path, *paths], EXIT_BAD_INPUT, "cannot be written there"),
    ):
        done = run_script("ensemble_submissions.py", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert problem in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()


@pytest.mark.parametrize("script", ["ensemble_submissions.py", "ensemble_from_cv.py"])
def test_help_waits_for_no_heavy_import(script: str) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"numpy", "pyarrow", "scipy", "sklearn", "torch"}


@pytest.fixture
def train_rows(length_decides: Callable[[int, int], Rows]) -> Rows:
    return length_decides(N_TRAIN, 0)


def say(rows: Rows, skill: float, seed: int) -> np.ndarray:
    """Predictions that know the vote a little; fold dependent through the seed."""
    noise = np.random.default_rng(seed).dirichlet(np.ones(3), size=len(rows))
    return np.asarray(skill * targets(rows) + (1 - skill) * noise)


class Site:
    """An output directory with finished runs in it."""

    def __init__(self, root: Path, rows: Rows) -> None:
        self.root, self.rows = root, rows
        self.out = root / "sub" / "final.csv"

    def student(self, run: str, fold: int) -> Path:
        return self.root / "model_save" / run / f"student_distilbert_fold_{fold}"

    def submission(self, run: str, fold: int) -> Path:
        return self.root / "sub" / f"{run + '_' if run else ''}student_submission_fold_{fold}.csv"

    def held_out(self, fold: int) -> Rows:
        return self.rows.take(pa.array(np.flatnonzero(np.arange(len(self.rows)) // 2 % N_FOLDS == fold)))

    def manifest(self, run: str, place: int, /, **details: Any) -> None:
        settings: dict[str, Any] = {"settings": {}, "inputs": {}, "started": 0.0, "stage": "student-train"}
        write_manifest(self.student(run, place), **settings, details=details)

    def add(self, run: str, skill: float, seed: int) -> None:
        for fold in range(N_FOLDS):
            rows = self.held_out(fold)
            write_heldout(self.student(run, fold) / HELDOUT_FILE, rows, say(rows, skill + 0.05 * fold, seed + fold))
            self.manifest(run, fold, fold=fold, n_folds=N_FOLDS)
            write_submission(self.submission(run, fold), IDS, dirichlet(100 * seed + fold))

    def loss(self, run_skill: float, seed: int, fold: int) -> float:
        rows = self.held_out(fold)
        p = say(rows, run_skill + 0.05 * fold, seed + fold)
        return float(-np.log((p * targets(rows)).sum(axis=1)).mean())

    def ensemble(self, *runs: str, **more: Any) -> None:
        usual: dict[str, Any] = {"student": "student_distilbert", "method": "auto", "space": "mean", "test_csv": None}
        ensemble_runs(more.pop("out", self.out), runs, output_dir=self.root, started=0.0, **(usual | more))

    def refuses(self, error: type[ArenaError], problem: str, *runs: str, **more: Any) -> None:
        refused(self.root, error, problem, lambda: self.ensemble(*runs, **more))


@pytest.fixture
def site(tmp_path: Path, train_rows: Rows) -> Site:
    site = Site(tmp_path, train_rows)
    site.add("x", 0.2, seed=1)
    return site


def test_one_run_is_weighted_by_inverse_held_out_loss(site: Site) -> None:
    done = run_script("ensemble_from_cv.py", "sub/final.csv", "--run", "x", folder=site.root)
    assert done.returncode == 0, done.stderr
    losses = np.array([site.loss(0.2, 1, fold) for fold in range(N_FOLDS)])
    weights = 1 / losses / (1 / losses).sum()
    ids, found = read_submission(site.out)
    assert ids == IDS
    np.testing.assert_allclose(found, np.tensordot(weights, [dirichlet(100 + k) for k in range(4)], axes=1), atol=1e-9)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["member", "held-out", "rows", "held-out", "log", "loss", "weight"]
    for fold, line in enumerate(lines[1:5]):
        assert line.split() == ["x", "fold", str(fold), "50", f"{losses[fold]:.4f}", f"{weights[fold]:.4f}"]
    assert lines[5:] == [NOTE, "sub/final.csv: 4 rows written"]

    manifest = json.loads((site.root / "sub" / "final.manifest.json").read_text())
    assert manifest["stage"] == "ensemble"
    np.testing.assert_allclose(manifest["settings"]["weights"], weights, rtol=1e-9)
    assert manifest["settings"]["runs"] == ["x"]
    assert len(manifest["inputs"]) == 2 * N_FOLDS
    assert [m["fold"] for m in manifest["members"]] == [0, 1, 2, 3]
    np.testing.assert_allclose([m["heldout_log_loss"] for m in manifest["members"]], losses, rtol=1e-9)


def test_a_run_without_a_name_and_another_student(site: Site) -> None:
    site.add("", 0.3, seed=3)
    for fold in range(N_FOLDS):
        site.student("", fold).rename(site.root / "model_save" / f"mini_fold_{fold}")
    site.ensemble("", student="mini", method="equal", space="log")
    expected = geometric(np.stack([dirichlet(300 + k) for k in range(4)]), [1] * 4)
    np.testing.assert_allclose(read_submission(site.out)[1], expected, atol=1e-9)


def test_several_runs_get_the_optimum_on_their_common_rows(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("y", 0.2, seed=20)
    site.ensemble("x", "y")
    printed = capsys.readouterr().out
    manifest = json.loads((site.root / "sub" / "final.manifest.json").read_text())
    weights = np.array(manifest["settings"]["weights"]).reshape(2, N_FOLDS)
    # Out-of-fold predictions of both runs for all rows, put together here by fold.
    skills = {0: (0.2, 1), 1: (0.2, 20)}
    p = np.zeros((2, N_TRAIN, 3))
    for run, (skill, seed) in skills.items():
        for fold in range(N_FOLDS):
            rows = site.held_out(fold)
            p[run, rows["base_idx"].to_numpy()] = say(rows, skill + 0.05 * fold, seed + fold)
    likelihood = (p * targets(site.rows)).sum(axis=2)
    grid = np.linspace(0, 1, 1001)
    losses = [-np.log(w * likelihood[0] + (1 - w) * likelihood[1]).mean() for w in grid]
    assert 0.1 < grid[int(np.argmin(losses))] < 0.9
    assert weights.sum(axis=1)[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)
    for run, (skill, seed) in skills.items():
        inverse = 1 / np.array([site.loss(skill, seed, fold) for fold in range(N_FOLDS)])
        np.testing.assert_allclose(weights[run] / weights[run].sum(), inverse / inverse.sum(), rtol=1e-9)

    figures = manifest["common_log_loss"]
    assert figures["optimal weights, in sample"] == pytest.approx(min(losses), abs=1e-6)
    assert figures["optimal weights, in sample"] <= figures["optimal weights, cross-fitted"]
    own = [loss for name, loss in figures.items() if name.startswith("run ")]
    np.testing.assert_allclose(own, -np.log(likelihood).mean(axis=1), rtol=1e-9)
    for name, loss in figures.items():
        assert any(line.startswith(name) and line.endswith(f"{loss:.4f}") for line in printed.splitlines())
    assert printed.index("cross-fitted") < printed.index(NOTE) < printed.index("4 rows written")


def test_runs_are_matched_by_row_where_each_holds_out_rows_that_the_other_does_not(site: Site) -> None:
    """The rows stand in another order in each run, and neither run's rows are a part of the other's."""
    site.add("y", 0.2, seed=20)
    said: list[dict[int, np.ndarray]] = [{}, {}]
    for number, (run, kept) in enumerate((("x", slice(0, 37)), ("y", slice(49, 4, -1)))):
        for fold in range(N_FOLDS):
            rows = site.held_out(fold)
            rows = rows.take(pa.array(np.arange(50)[kept]))
            p = say(rows, 0.4, seed=10 * number + fold)
            write_heldout(site.student(run, fold) / HELDOUT_FILE, rows, p)
            said[number] |= dict(zip(rows["base_idx"].to_pylist(), p, strict=True))
    common = sorted(said[0].keys() & said[1].keys())
    assert len(common) == 4 * (37 - 5)
    found = common_rows([read_run(site.root, run, "student_distilbert") for run in ("x", "y")])
    np.testing.assert_array_equal(found.members, [[table[index] for index in common] for table in said])
    np.testing.assert_array_equal(found.targets, targets(site.rows)[common])
    np.testing.assert_array_equal(found.prompt_hash, site.rows["prompt_hash"].to_numpy()[common])


@pytest.mark.parametrize("method", ["inverse", "equal"])
def test_several_runs_without_an_optimum(site: Site, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("y", 0.5, seed=20)
    site.ensemble("x", "y", method=method)
    weights = np.array(json.loads((site.root / "sub" / "final.manifest.json").read_text())["settings"]["weights"])
    if method == "equal":
        np.testing.assert_allclose(weights, 1 / 8)
    else:
        mean = [np.mean([site.loss(s, seed, k) for k in range(N_FOLDS)]) for s, seed in ((0.2, 1), (0.5, 20))]
        assert weights[:4].sum() / weights[4:].sum() == pytest.approx(mean[1] / mean[0])  # folds have equally many rows
    assert "cross-fitted" not in capsys.readouterr().out


def keep_rows(site: Site, run: str, rows: int) -> None:
    for fold in range(N_FOLDS):
        held_out = site.held_out(fold).slice(0, rows)
        write_heldout(site.student(run, fold) / HELDOUT_FILE, held_out, say(held_out, 0.5, fold))


def test_too_few_common_rows_are_said_and_the_runs_weighted_by_inverse_loss(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("y", 0.5, seed=20)
    keep_rows(site, "y", 12)
    for method in ("auto", "optimal"):
        site.ensemble("x", "y", method=method)
        printed = capsys.readouterr().out
        assert "note: the runs have only 48 held-out rows (24 prompts) in common" in printed
        assert "cross-fitted" not in printed
    few = (site.root / "sub" / "final.csv").read_bytes()
    site.ensemble("x", "y", method="inverse")
    assert site.out.read_bytes() == few
    keep_rows(site, "y", 14)
    site.ensemble("x", "y")
    assert "cross-fitted" in capsys.readouterr().out


def test_a_run_that_only_harms_is_given_no_weight(site: Site) -> None:
    for fold in range(N_FOLDS):
        rows = site.held_out(fold)
        write_heldout(site.student("z", fold) / HELDOUT_FILE, rows, 0.98 * np.roll(targets(rows), 1, axis=1) + 0.02 / 3)
        site.manifest("z", fold, fold=fold, n_folds=N_FOLDS)
        write_submission(site.submission("z", fold), IDS, dirichlet(7))
    site.ensemble("z", "x")
    together = read_submission(site.out)[1]
    site.ensemble("x")
    np.testing.assert_allclose(together, read_submission(site.out)[1], atol=1e-9)


@pytest.mark.parametrize("fold", [0, 2, 3])
def test_a_missing_fold_is_named_with_the_command_that_makes_it(site: Site, fold: int) -> None:
    site.ensemble("x")
    (site.student("x", fold) / MANIFEST).unlink()
    command = f"FOLD={fold} RUN=x sbatch job_distill.sh"
    site.refuses(InputError, rf"{site.student('x', fold)}: fold {fold} is missing -> OUTPUT_DIR=.* {command}$", "x")
    (site.submission("x", fold)).unlink()
    site.manifest("x", fold, fold=fold, n_folds=N_FOLDS)
    problem = rf"{site.submission('x', fold)}: the submission of fold {fold} is missing -> .*{command}$"
    site.refuses(InputError, problem, "x")


def test_several_missing_folds_and_a_missing_run_are_named(site: Site) -> None:
    for fold in (1, 3):
        (site.student("x", fold) / MANIFEST).unlink()
    site.refuses(InputError, r"fold 1 is missing \(and so are 3\)", "x")
    site.refuses(InputError, r"model_save/nothere/student_distilbert_fold_0: fold 0 is missing ->", "nothere")
    site.refuses(InputError, r"model_save/student_distilbert_fold_0.* FOLD=0 sbatch job_distill.sh$", "")


@pytest.mark.parametrize(
    ("details", "problem"),
    [
        ({"fold": 1, "n_folds": 4}, "its manifest says fold 1 -> it was copied or renamed"),
        ({"fold": 2, "n_folds": 5}, "fold_2: is one of 5 folds, but student_distilbert_fold_0 is one of 4"),
        ({"fold": 2, "n_folds": 2}, "says fold 2 of 2"),
        ({"fold": 2, "n_folds": 10**9}, "says fold 2 of 1000000000"),
        ({"fold": 2}, "names no fold"),
        ({"fold": None, "n_folds": None}, "names no fold"),
        ({"fold": "2", "n_folds": 4}, "names no fold"),
        ({"fold": 2, "n_folds": True}, "names no fold"),
    ],
)
def test_a_manifest_that_contradicts_its_directory_or_the_others_is_refused(
    site: Site, details: dict[str, Any], problem: str
) -> None:
    site.manifest("x", 2, **details)
    site.refuses(InputError, rf"student_distilbert_fold_2.*{problem}|{problem}", "x")


def test_a_broken_manifest_and_missing_held_out_predictions_are_refused(site: Site) -> None:
    (site.student("x", 1) / MANIFEST).write_text("{")
    site.refuses(InputError, "fold_1/manifest.json: not a whole manifest", "x")
    site.manifest("x", 1, fold=1, n_folds=N_FOLDS)
    (site.student("x", 1) / HELDOUT_FILE).unlink()
    site.refuses(InputError, f"fold_1/{HELDOUT_FILE}: no such file -> run student-calibrate again", "x")


def test_folds_that_hold_out_the_same_row_are_refused(site: Site) -> None:
    rows = pa.concat_tables([site.held_out(3), site.rows.slice(17, 1)])
    write_heldout(site.student("x", 3) / HELDOUT_FILE, rows, say(rows, 0.5, 0))
    site.refuses(InputError, "fold 3 holds out base_idx 17, and so does fold 0", "x")


@pytest.mark.parametrize(("column", "what"), [("row_hash", "texts"), ("label", "votes")])
def test_runs_of_other_data_files_are_not_weighed_against_each_other(site: Site, column: str, what: str) -> None:
    site.ensemble("x")
    values = site.rows[column].to_pylist()
    values[21] = "f" * 16 if column == "row_hash" else (values[21] + 1) % 3
    index = site.rows.column_names.index(column)
    site.rows = site.rows.set_column(index, site.rows.schema.field(column), pa.array(values, site.rows[column].type))
    site.add("y", 0.5, seed=20)
    problem = f"the run 'y' has other {what} for base_idx 21 than the run 'x'"
    site.refuses(InputError, problem, "x", "y")
    site.ensemble("x", "y", method="equal")


def test_bad_names_methods_and_places_are_refused(site: Site) -> None:
    site.refuses(SettingsError, "folds of one run hold out disjoint rows, so no optimum", "x", method="optimal")
    site.refuses(SettingsError, "is given twice", "x", "x")
    for run in ("../x", "x/y", "-x", " ", "."):
        site.refuses(SettingsError, "is not a run name", run)
    for student in ("", "..", "a/b"):
        site.refuses(SettingsError, "is not a directory's name", "x", student=student)
    for out in (site.submission("x", 1), site.student("x", 0) / HELDOUT_FILE, site.student("x", 0) / "manifest.csv"):
        site.refuses(InputError, "would overwrite the input|lies inside", "x", out=out)
    site.refuses(InputError, "lies inside a student", "x", out=site.student("x", 2) / "deep" / "out.csv")


def test_a_fold_that_predicted_another_test_file_is_refused(site: Site) -> None:
    site.ensemble("x")
    write_submission(site.submission("x", 2), ["1", *IDS[1:]], dirichlet(0))
    site.refuses(InputError, r"fold_2\.csv.*1 of 4 ids are missing, the first '10'", "x")


@pytest.mark.parametrize(("text", "problem"), BAD_MEMBERS[:-1])
def test_a_bad_fold_is_named_and_an_older_ensemble_stays(site: Site, text: str, problem: str) -> None:
    site.ensemble("x")
    site.submission("x", 3).write_text(text)
    site.refuses(InputError, rf"fold_3\.csv.*{problem}", "x")


def test_exit_codes_of_the_cv_script(site: Site) -> None:
    (site.student("x", 3) / MANIFEST).unlink()
    for arguments, code, problem in (
        ([], EXIT_BAD_SETTINGS, "required: --run"),
        (["--run", "x", "--weights", "best"], EXIT_BAD_SETTINGS, "invalid choice"),
        (["--run", "a/b"], EXIT_BAD_SETTINGS, "is not a run name"),
        (["--run", "x"], EXIT_BAD_INPUT, "fold 3 is missing -> FOLD=3 RUN=x sbatch job_distill.sh"),
    ):
        done = run_script("ensemble_from_cv.py", "sub/final.csv", *arguments, folder=site.root)
        assert done.returncode == code, (arguments, done.stderr)
        assert problem in done.stderr
        assert "Traceback" not in done.stderr
        assert not site.out.exists()


def test_the_mean_distance_of_opposite_members_is_two_and_of_one_member_nothing() -> None:
    sure = np.eye(3)[[0, 1, 2]]
    assert mean_distance(np.stack([sure, np.roll(sure, 1, axis=1)])) == 2
    assert mean_distance(sure[None]) == 0

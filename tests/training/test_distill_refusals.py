"""What step 5 refuses: each with its exit code and one line that says what to do, before training, writing nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.oof_table import LOGIT_COLUMNS, PROBABILITY_COLUMNS, manifest_path
from arena_distill.runtime.artifacts import locked, write_manifest
from arena_distill.runtime.errors import run_command
from arena_distill.runtime.stages import TRAIN_TEACHERS
from tests.training.distill_runs import (
    BASE_ROWS,
    Columns,
    Line,
    change_fold_csv,
    change_table,
    checkpoints,
    copy_of,
    distill,
    fold_csv,
    fold_data,
    folds_of,
    folds_path,
    make_folds,
    make_root,
    quick,
    student_dir,
    table_path,
)
from tests.training.teacher_runs import contents, run_script

FOLD = 2  # the fixture has finished students of folds 0 and 1


@pytest.fixture
def root(students: Path, tmp_path: Path) -> Path:
    """Data, folds, table and students of folds 0 and 1, which a test may change."""
    return copy_of(students, tmp_path / "root")


def places(root: Path) -> set[Path]:
    """Every file and directory but for locks."""
    return {path for path in root.rglob("*") if path.suffix != ".lock"}


@dataclass(frozen=True)
class Refused:
    """Runs step 5, which must fail with a code and a message, and leave everything as it was."""

    root: Path
    base: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, code: int, *parts: object, **settings: object) -> str:
        given = quick(self.root, self.base) | {"student_folds": FOLD} | settings
        before, places_before = contents(self.root), places(self.root)
        self.capsys.readouterr()
        assert run_command(lambda: distill(given)) == code
        out, message = self.capsys.readouterr()
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert code == 2 or " -> " in message, "says what to do next"
        for part in parts:
            assert str(part) in message, message
        assert "parameters, " not in out and ": trained in" not in out, "a model was loaded"
        assert contents(self.root) == before
        assert places(self.root) == places_before
        return message


@pytest.fixture
def refused(root: Path, backbones: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(root, backbones / "llama", capsys)


def test_what_the_refusals_are_made_of_trains_if_nothing_is_changed(root: Path, backbones: Path) -> None:
    """Else they could be refused for anything."""
    change_table(table_path(root), lambda columns: None)
    for part in ("train", "val"):
        change_fold_csv(fold_csv(root, FOLD, part), lambda lines: None)
    distill(quick(root, backbones / "llama", student_folds=FOLD))
    assert (student_dir(root, FOLD) / "manifest.json").is_file()


# The table

AT = BASE_ROWS + 7  # a line of the second teacher: base row 7


def move_to_another_fold(columns: Columns) -> None:
    columns["fold"][AT] = (columns["fold"][AT] + 1) % 3


def swap_folds(columns: Columns) -> None:
    fold = columns["fold"]
    other = next(line for line in range(AT + 1, 2 * BASE_ROWS) if fold[line] != fold[AT])
    fold[AT], fold[other] = fold[other], fold[AT]


def change_logit(columns: Columns) -> None:
    columns[LOGIT_COLUMNS[1]][AT] += 0.01


def change_logit_and_probabilities(columns: Columns) -> None:
    columns[LOGIT_COLUMNS[1]][AT] += 1.0
    logits = np.array([columns[name][AT] for name in LOGIT_COLUMNS], np.float32)
    for name, value in zip(PROBABILITY_COLUMNS, softmax(logits), strict=True):
        columns[name][AT] = float(value)


def drop_row(columns: Columns) -> None:
    for values in columns.values():
        del values[AT]


def repeat_row(columns: Columns) -> None:
    for values in columns.values():
        values.append(values[AT])


def put_another_row(columns: Columns) -> None:
    for values in columns.values():
        values[AT] = values[AT - 2]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (move_to_another_fold, [f"row {AT + 1}, column 'fold'", "the folds file"]),
        (swap_folds, [f"row {AT + 1}, column 'fold'", "the folds file"]),
        (change_logit, [f"row {AT + 1}", "are not the softmax of the logits"]),
        (drop_row, ["base row 7 is missing"]),
        (repeat_row, ["base row 7 stands twice"]),
        (put_another_row, ["base row 5 stands twice"]),
    ],
)
@pytest.mark.parametrize("sign", [True, False], ids=["signed", "unsigned"])
def test_a_table_that_was_changed_is_refused_by_row_even_if_its_manifest_vouches_for_it(
    change: Callable[[Columns], None], parts: list[str], sign: bool, root: Path, refused: Refused
) -> None:
    change_table(table_path(root), change, sign=sign)
    refused(3, table_path(root), *parts, "step 4")


def test_a_consistent_change_of_the_table_is_refused_by_its_hash(root: Path, refused: Refused) -> None:
    change_table(table_path(root), change_logit_and_probabilities, sign=False)
    refused(3, table_path(root), "was changed since step 4 wrote it")


@pytest.mark.parametrize("what", ["table", "manifest"])
def test_a_missing_table_or_manifest_is_named(what: str, root: Path, refused: Refused) -> None:
    table = table_path(root)
    (table if what == "table" else manifest_path(table)).unlink()
    message = refused(3, table)
    assert ("step4_infer_teacher_logits.sh" if what == "table" else "oof_probs.manifest.json") in message


def test_a_table_named_in_a_variable_that_is_not_there_is_refused(root: Path, refused: Refused) -> None:
    refused(3, root / "gone.parquet", "INFER_OOF_TABLE", infer_oof_table=root / "gone.parquet")


def test_a_table_of_another_data_file_is_refused(
    root: Path, refused: Refused, small_train_csv: Path, tmp_path: Path
) -> None:
    """The same votes, two rows of which have changed places."""
    import csv

    with small_train_csv.open(newline="", encoding="utf-8") as stream:
        header, *lines = list(csv.reader(stream))
    lines[3], lines[90] = lines[90], lines[3]
    with (tmp_path / "other.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *lines])
    other = make_root(tmp_path / "other", tmp_path / "other.csv")
    refused(3, table_path(other), "row ", infer_oof_table=table_path(other))
    shutil.copyfile(table_path(other), table_path(root))
    shutil.copyfile(manifest_path(table_path(other)), manifest_path(table_path(root)))
    refused(3, table_path(root), "row ")


def test_a_table_cut_off_is_refused(root: Path, refused: Refused) -> None:
    data = table_path(root).read_bytes()
    table_path(root).write_bytes(data[: len(data) // 2])
    refused(3, table_path(root), "cannot be read")


# The fold files


def line_of(lines: list[Line], base_idx: int) -> Line:
    return next(line for line in lines if line["base_idx"] == str(base_idx))


def first_base(lines: list[Line]) -> Line:
    return next(line for line in lines if int(line["base_idx"]) >= 0)


def change_text(lines: list[Line]) -> None:
    first_base(lines)["response_a"] = '["something else"]'


def take_another_rows_text(lines: list[Line]) -> None:
    """Text and hash agree, so that the file is right in itself."""
    for name in ("id", "prompt", "response_a", "response_b", "row_hash"):
        lines[0][name] = lines[5][name]


def change_vote(lines: list[Line]) -> None:
    line = first_base(lines)
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    values = [line[name] for name in names]
    for name, value in zip(names, values[1:] + values[:1], strict=True):
        line[name] = value


def drop_line(lines: list[Line]) -> None:
    del lines[4]


def repeat_line(lines: list[Line]) -> None:
    lines.append(dict(lines[4]))


def number_beyond_the_file(lines: list[Line]) -> None:
    lines[4]["base_idx"] = str(BASE_ROWS)


def no_number(lines: list[Line]) -> None:
    lines[4]["base_idx"] = "four"


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_text, "column 'row_hash'"),
        (take_another_rows_text, "is not that of base row"),
        (change_vote, "winner"),
        (drop_line, "is missing"),
        (repeat_line, "stands already in row 5"),
        (number_beyond_the_file, f"base row {BASE_ROWS} does not exist"),
        (no_number, "column 'base_idx'"),
    ],
)
def test_a_fold_file_that_was_changed_is_refused_by_name(
    change: Callable[[list[Line]], None], reason: str, part: str, root: Path, refused: Refused
) -> None:
    path = fold_csv(root, FOLD, part)
    change_fold_csv(path, change)
    refused(3, path, reason, "step2_make_folds.sh")


@pytest.mark.parametrize(("part", "other"), [("train", "val"), ("val", "train")])
def test_a_row_of_the_other_side_is_refused(part: str, other: str, root: Path, refused: Refused) -> None:
    moved: list[Line] = []
    change_fold_csv(fold_csv(root, FOLD, other), lambda lines: moved.append(dict(first_base(lines))))
    path = fold_csv(root, FOLD, part)
    change_fold_csv(path, lambda lines: lines.append(moved[0]))
    refused(3, path, "column 'base_idx'", f"is not of the {part} part of fold {FOLD}")


def test_an_extra_row_that_is_held_out_is_refused(root: Path, refused: Refused) -> None:
    extra: list[Line] = []
    change_fold_csv(fold_csv(root, FOLD, "train"), lambda lines: extra.append(dict(line_of(lines, -1))))
    path = fold_csv(root, FOLD, "val")
    change_fold_csv(path, lambda lines: lines.insert(2, extra[0]))
    refused(3, path, "row 3, column 'base_idx'", "an extra row is held out")


def test_a_prompt_on_both_sides_is_refused(root: Path, refused: Refused) -> None:
    """A held-out row under the number of an extra one: no number gives it away."""
    held_out: list[Line] = []
    change_fold_csv(fold_csv(root, FOLD, "val"), lambda lines: held_out.append(lines[3] | {"base_idx": "-1"}))
    path = fold_csv(root, FOLD, "train")
    change_fold_csv(path, lambda lines: lines.append(held_out[0]))
    refused(3, path, f"has a prompt that fold_{FOLD}_val.csv holds out")


@pytest.mark.parametrize("parts", [("train",), ("val",), ("train", "val")])
def test_the_files_of_another_fold_are_refused(parts: tuple[str, ...], root: Path, refused: Refused) -> None:
    for part in parts:
        fold_csv(root, FOLD, part).write_bytes(fold_csv(root, 0, part).read_bytes())
    refused(3, fold_csv(root, FOLD, parts[0]), f"is not of the {parts[0]} part of fold {FOLD}")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_fold_file_is_named(part: str, root: Path, refused: Refused) -> None:
    fold_csv(root, FOLD, part).unlink()
    refused(3, fold_csv(root, FOLD, part), "step2_make_folds.sh")


def test_a_broken_file_of_the_last_fold_is_refused_before_the_first_is_trained(root: Path, refused: Refused) -> None:
    for fold in (0, 1):
        shutil.rmtree(student_dir(root, fold))
    change_fold_csv(fold_csv(root, FOLD, "val"), drop_line)
    refused(3, fold_csv(root, FOLD, "val"), "is missing", student_folds="all")


# Folds and data


@pytest.mark.parametrize("alpha", [0.7, 0.0])
def test_folds_of_another_seed_are_refused(alpha: float, root: Path, refused: Refused) -> None:
    before = folds_of(root).fold
    make_folds(root, seed=7, folds_out_dir=root / "other_folds")
    other = folds_path(root).with_name("folds_3_seed7.json")
    document = json.loads(other.read_text("utf-8"))
    assert document["fold"] != before.tolist()
    named = table_path(root) if alpha else fold_csv(root, FOLD, "train")
    refused(3, named, folds_json=other, student_alpha=alpha)
    folds_path(root).write_bytes(other.read_bytes())
    refused(3, named, student_alpha=alpha)


def test_another_number_of_folds_is_refused(root: Path, refused: Refused) -> None:
    refused(2, "N_FOLDS=5", "set N_FOLDS=3", n_folds=5, folds_json=folds_path(root))
    refused(3, "folds_5_seed42.json", "no such folds file", n_folds=5)


@pytest.mark.parametrize("folds", ["7", "0,3"])
def test_a_fold_that_does_not_exist_is_refused_with_the_ones_that_do(folds: str, refused: Refused) -> None:
    refused(2, "STUDENT_FOLDS", "0 … 2", f"no fold {folds[-1]}", student_folds=folds, student_overwrite=True)


def test_a_changed_data_file_is_refused(root: Path, refused: Refused) -> None:
    data = (root / "train.csv").read_text("utf-8")
    (root / "train.csv").write_text(data.replace(" the ", " teh ", 1), "utf-8")
    refused(3, "made of other data")


def test_a_missing_data_file_is_named(root: Path, refused: Refused) -> None:
    refused(3, root / "gone.csv", train_csv=root / "gone.csv")


# Bases


def test_a_teacher_is_no_clean_base(root: Path, refused: Refused, backbones: Path) -> None:
    teacher = Path(shutil.copytree(backbones / "llama", root / "model_save" / "llama_fold_0"))
    write_manifest(teacher, stage=TRAIN_TEACHERS.name, settings={}, inputs={}, started=time.time())
    refused(3, f"STUDENT_MODEL_NAME={teacher}", "was trained on votes", student_model_name=teacher)


def test_a_student_of_another_fold_is_no_clean_base(
    root: Path, refused: Refused, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has learned the votes of the rows that this one would be scored on."""
    distill(quick(root, backbones / "bert", student_folds=0, student_name="whole", student_lora_r=0, student_alpha=0))
    base = root / "model_save" / "distilled_whole_fold_0"
    learned = {"student_model_name": base, "student_lora_r": 0}
    refused(3, f"STUDENT_MODEL_NAME={base}", "was trained on votes", **learned)


@pytest.mark.parametrize("name", ["./gone", "/nowhere/gemma", "model_save/none/gemma", "~/no/such/model"])
def test_a_path_to_nothing_is_never_taken_for_a_hub_name(name: str, refused: Refused) -> None:
    refused(3, f"STUDENT_MODEL_NAME={name}", "no such model directory", student_model_name=name)


def test_a_directory_without_a_model_is_refused(root: Path, refused: Refused) -> None:
    refused(3, "STUDENT_MODEL_NAME=", "holds no model", student_model_name=student_dir(root, 0))


def test_a_hub_name_that_is_not_to_be_had_is_named_and_leaves_nothing(root: Path, refused: Refused) -> None:
    refused(3, "nobody/no-such-model: ", student_model_name="nobody/no-such-model")


# Places


@pytest.mark.parametrize("outdir", ["mine_fold_0", "mine_fold_12"])
def test_an_output_directory_with_another_folds_number_is_refused(outdir: str, root: Path, refused: Refused) -> None:
    refused(2, f"STUDENT_OUTDIR={root / outdir}", f"not {FOLD}", student_outdir=root / outdir)


def test_an_output_directory_of_one_fold_is_refused_for_all_folds(root: Path, refused: Refused) -> None:
    refused(2, "STUDENT_OUTDIR=", student_outdir=root / "mine_fold_1", student_folds="all")


@pytest.mark.parametrize("again", [{}, {"student_overwrite": True}, {"force": True}])
def test_what_somebody_else_made_is_not_replaced(again: dict[str, object], root: Path, refused: Refused) -> None:
    final = student_dir(root, FOLD)
    final.mkdir()
    (final / "thesis.txt").write_text("years of work")
    refused(3, final, "did not make", **again)
    shutil.rmtree(final)
    shutil.copytree(fold_data(root), final)
    refused(3, final, "did not make", **again)


def test_two_jobs_do_not_train_one_student(root: Path, refused: Refused) -> None:
    with locked(student_dir(root, FOLD)):
        refused(1, student_dir(root, FOLD), "another job is writing it")


# Checkpoints to go on from


def _checkpoint(root: Path, fold: int) -> Path:
    return checkpoints(student_dir(root, fold))[-1]


def test_a_checkpoint_of_another_fold_is_refused(root: Path, refused: Refused) -> None:
    checkpoint = _checkpoint(root, 0)
    message = refused(3, f"RESUME_CHECKPOINT={checkpoint}", "is of fold 0", resume_checkpoint=checkpoint)
    assert f"rows that fold {FOLD} holds out" in message


def test_a_checkpoint_without_a_record_is_refused(root: Path, refused: Refused) -> None:
    lonely = Path(shutil.copytree(_checkpoint(root, 1), root / "spare" / "checkpoint-2"))
    refused(3, f"RESUME_CHECKPOINT={lonely}", "nothing beside it tells", resume_checkpoint=lonely)
    (lonely.parent / "job.json").write_text("[]")
    refused(3, f"RESUME_CHECKPOINT={lonely}", "nothing beside it tells", resume_checkpoint=lonely)
    (lonely.parent / "job.json").write_text('{"stage": ')
    refused(3, f"RESUME_CHECKPOINT={lonely}", "nothing beside it tells", resume_checkpoint=lonely)


def test_what_is_no_checkpoint_is_refused(root: Path, refused: Refused) -> None:
    for path in (root / "gone", student_dir(root, 0), root / "train.csv"):
        refused(3, f"RESUME_CHECKPOINT={path}", "no checkpoint there", resume_checkpoint=path)


@pytest.mark.parametrize("folds", ["all", "0,1"])
def test_a_checkpoint_for_several_folds_is_refused(folds: str, root: Path, refused: Refused) -> None:
    refused(2, "RESUME_CHECKPOINT belongs to one fold", resume_checkpoint=_checkpoint(root, 0), student_folds=folds)


def test_a_checkpoint_of_another_base_is_refused(root: Path, refused: Refused, backbones: Path) -> None:
    refused(
        3,
        "RESUME_CHECKPOINT=",
        "another student_model",
        resume_checkpoint=_checkpoint(root, 1),
        student_folds=1,
        student_model_name=backbones / "qwen2",
        student_outdir=root / "mine",
    )


def test_a_checkpoint_of_other_training_rows_is_refused(root: Path, refused: Refused) -> None:
    make_folds(root, extra_data="none", folds_out_dir=root / "fewer")
    refused(
        3,
        "RESUME_CHECKPOINT=",
        "another fold_train_csv",
        resume_checkpoint=_checkpoint(root, 1),
        student_folds=1,
        folds_out_dir=root / "fewer",
        student_outdir=root / "mine",
    )


@pytest.mark.parametrize("lora_r", [8, 0])
def test_a_checkpoint_of_other_factors_is_refused(lora_r: int, root: Path, refused: Refused) -> None:
    refused(
        3,
        "RESUME_CHECKPOINT=",
        "student_lora_r",
        resume_checkpoint=_checkpoint(root, 1),
        student_folds=1,
        student_lora_r=lora_r,
        student_outdir=root / "mine",
    )


def test_a_checkpoint_that_was_cut_off_is_refused(root: Path, refused: Refused) -> None:
    checkpoint = _checkpoint(root, 1)
    (checkpoint / "optimizer.pt").unlink()
    refused(
        3,
        f"RESUME_CHECKPOINT={checkpoint}",
        "missing or cut off",
        resume_checkpoint=checkpoint,
        student_folds=1,
        student_outdir=root / "mine",
    )


# Settings


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"student_lora_r": 0, "student_quant": "nf4"}, "STUDENT_QUANT=none"),
        ({"student_teachers": "llama:1,qwen2:0"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama:-1"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama:nan"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama:inf"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama:much"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama:1:2"}, "STUDENT_TEACHERS"),
        ({"student_teachers": "llama,llama:2"}, "STUDENT_TEACHERS"),
        ({"student_teachers": ":1"}, "STUDENT_TEACHERS"),
        ({"student_alpha": 1.5}, "STUDENT_ALPHA"),
        ({"student_lr": "nan"}, "STUDENT_LR"),
        ({"student_t_soft": 0}, "STUDENT_T_SOFT"),
        ({"student_temp_schedule": "5,2"}, "STUDENT_TEMP_SCHEDULE"),
        ({"student_folds": "one"}, "STUDENT_FOLDS"),
        ({"student_name": "../elsewhere"}, "STUDENT_NAME"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, object], part: str, refused: Refused) -> None:
    refused(2, part, **wrong)


@pytest.mark.parametrize("name", ["mistral", "ensemble", "llama,mistral:2"])
def test_a_teacher_that_the_table_does_not_have_is_refused_with_those_it_has(
    name: str, root: Path, refused: Refused
) -> None:
    unknown = "ensemble" if name == "ensemble" else "mistral"
    refused(2, "STUDENT_TEACHERS", table_path(root), repr(unknown), "llama, qwen2", student_teachers=name)


def test_a_length_that_the_model_cannot_read_is_refused_and_leaves_nothing(
    root: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = places(root)
    settings = quick(root, backbones / "bert", student_folds=FOLD, student_maxlen=600)
    assert run_command(lambda: distill(settings)) == 2
    assert "STUDENT_MAXLEN" in capsys.readouterr().err
    assert places(root) == before


@pytest.mark.parametrize("name", ["STUDENT_ALPAH", "STUDENT_LEARNIN_RATE", "STUDENT_TSOFT", "RESUME_CHECKPOINTS"])
def test_a_misspelt_variable_is_refused_by_name(name: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    refused(2, f"unknown variable {name}")


def test_the_script_ends_with_the_exit_code_and_one_line(root: Path, backbones: Path) -> None:
    table_path(root).unlink()
    code, output = run_script("distill_student.py", **quick(root, backbones / "llama", student_folds=FOLD))
    assert code == 3
    assert output.startswith(f"error: {table_path(root)}: ") and output.count("\n") == 1

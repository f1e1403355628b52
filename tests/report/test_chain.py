"""The chain of models: its order, what may be compared, and what is proved at each conversion."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun, write_evaluation, write_merged, write_predicted, write_quantized

ORDER = [
    *("Teacher big", "Teachers together", "Students small", "Students", "Averaged, exact", "Merged"),
    *("8-bit (GPTQ)", "TTA", "Calibrated", "Submission"),
]


def rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in report["chain"] if row["main"]}


def test_steps_stand_in_the_order_in_which_they_are_made(finished: FinishedRun) -> None:
    assert list(rows(report_of(finished))) == ORDER


def test_only_figures_of_the_same_test_rows_are_subtracted(finished: FinishedRun) -> None:
    report = report_of(finished)
    before = None
    compared = 0
    for row in (row for row in report["chain"] if row["main"]):
        same = before is not None and before["rows"]["key"] == row["rows"]["key"] and row["rows"]["kind"] == "test"
        same = same and row["step"] != "TTA"  # is not calibrated, unlike what stands before it
        assert (row["delta"] is not None) == same
        if row["delta"] is not None and before is not None:
            compared += 1
            assert row["delta"]["value"] == pytest.approx(row["log_loss"]["value"] - before["log_loss"]["value"])
        before = row
    assert compared == 5


def test_a_step_that_was_scored_on_a_part_of_the_test_rows_is_compared_with_nothing_else(spoilt: FinishedRun) -> None:
    write_merged(spoilt, rows=40)
    found = rows(report_of(spoilt))
    assert found["Merged"]["delta"] is not None  # the average was scored on the same 40
    assert found["Merged, before quantization"]["delta"] is None
    assert "40 of 60" in found["Merged"]["rows"]["label"]


def test_rows_that_the_teachers_saw_are_marked(finished: FinishedRun) -> None:
    assert [row["step"] for row in report_of(finished)["chain"] if row["leak"]] == ["Students small"]


def test_students_held_out_figure_is_weighted_by_the_rows_of_their_folds(finished: FinishedRun) -> None:
    assert rows(report_of(finished))["Students small"]["log_loss"]["value"] == pytest.approx(
        (0.99 * 50 + 1.02 * 51) / 101
    )


def test_sizes_are_what_it_takes_to_judge_a_row(finished: FinishedRun) -> None:
    found = rows(report_of(finished))
    sizes = {step: found[step]["size"]["value"] for step in ("Students", "Averaged, exact", "Merged", "8-bit (GPTQ)")}
    assert sizes == {"Students": 22_000, "Averaged, exact": 25_000, "Merged": 20_000, "8-bit (GPTQ)": 8_000}


def test_proofs_are_held_against_their_bounds(finished: FinishedRun) -> None:
    proofs = report_of(finished)["proofs"]
    held = [(proof["step"], proof["holds"]) for proof in proofs if proof["holds"] is not None]
    assert held == [("Averaged", True), ("Merged", True), ("Merged", True), ("8-bit (GPTQ)", True),
                    ("8-bit (GPTQ)", True), ("Head", True)]  # fmt: skip


def test_another_head_is_shown_to_be_another(spoilt: FinishedRun) -> None:
    write_quantized(spoilt, head="6" * 64)
    write_predicted(spoilt)
    write_evaluation(spoilt)
    assert [proof["holds"] for proof in report_of(spoilt)["proofs"] if proof["step"] == "Head"] == [False]


def test_bounds_are_those_of_the_conversions() -> None:
    from arena_distill.conversion import average_parity
    from arena_distill.report import proofs

    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    assert proofs.AVERAGE_BOUND == average_parity.AVERAGE_BOUND
    for name, stored in names.items():
        assert proofs.WEIGHT_BOUND[name] == average_parity.WEIGHT_BOUND[stored]
        assert proofs.PROBABILITY_BOUND[name] == average_parity.PROBABILITY_BOUND[stored]


def test_costs_count_every_process_and_sum_up(finished: FinishedRun) -> None:
    report = report_of(finished)
    teachers = next(cost for cost in report["costs"] if cost["stage"] == "step3_train_teachers")
    assert teachers["outputs"] == 2
    assert teachers["seconds"]["value"] == pytest.approx(2 * 4 * 30, rel=0.05)
    assert sum(cost["share"]["value"] for cost in report["costs"]) == pytest.approx(1)

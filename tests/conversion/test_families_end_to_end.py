"""Every family through steps 5 to 8: students of two folds, averaged, merged, quantized, and asked for verdicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arena_distill.conversion.quantization_report import REPORT_FILE
from arena_distill.data.loading import load_labels, load_test
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE
from arena_distill.evaluation.metrics import score
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference.judge import load_judge
from arena_distill.inference.predict_settings import MERGED, QUANTIZED
from arena_distill.inference.tta import tta_views
from arena_distill.models.head_file import HEAD_SAFETENSORS, head_sha256, read_head
from arena_distill.models.tiny import families
from arena_distill.runtime.errors import InputError
from tests.conftest import SAMPLE
from tests.conversion.average_runs import average, avg_lora, manifest_of, merged_model
from tests.conversion.average_runs import quick as quick_average
from tests.conversion.quantize_cases import put_noise_head, quantize
from tests.inference.predict_runs import infer, logits_of, manifest, probabilities
from tests.training.distill_runs import distill
from tests.training.distill_runs import quick as quick_student
from tests.training.teacher_runs import contents, step2

pytestmark = pytest.mark.slow

N_FOLDS, LENGTH, STEPS = 2, 64, 60
TEST_CSV = SAMPLE / "test.csv"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=families())
def root(
    request: pytest.FixtureRequest, backbones: Path, small_train_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Outputs of steps 2 and 5 to 8 for one family; not to be changed."""
    root = tmp_path_factory.mktemp(request.param)
    base = _base_that_computes(backbones / request.param, root / "base")
    step2(train_csv=small_train_csv, n_folds=N_FOLDS, output_dir=root)
    distill(_student(root, small_train_csv, base))
    average(quick_average(root, TEST_CSV, n_folds=N_FOLDS))
    quantize(merged_model(root), quantized_model(root), quant_eval_rows=0)
    for name in (MERGED, QUANTIZED):
        submission(root, name).parent.mkdir(parents=True)
        infer(submission(root, name).parent, model_dir=root / "model_save" / name, test_csv=TEST_CSV)
    return root


def _base_that_computes(backbone: Path, into: Path) -> Path:
    """The backbone with matrices of a trained one's size, so that quantizing them is put to the proof.

    Fresh ones are so small that the embeddings decide: encoders keep 97 % of their verdicts with matrices rounded to
    three bits. With these, five bits are too few for that in every family.
    """
    shutil.copytree(backbone, into)
    weights, generator = load_file(into / WEIGHTS), torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            weights[name] = torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5
    save_file(weights, into / WEIGHTS, {"format": "pt"})
    return into


def _student(root: Path, train_csv: Path, base: Path) -> dict[str, Any]:
    """Step 5 on votes alone, long enough to know its rows by heart, so that other rows get clear verdicts too."""
    return quick_student(
        root,
        base,
        train_csv=train_csv,
        n_folds=N_FOLDS,
        student_folds="all",
        student_alpha=0.0,
        student_maxlen=LENGTH,
        student_max_steps=STEPS,
        student_save_steps=STEPS,  # no earlier checkpoint: the best on other rows would be one that has learnt nothing
        student_per_device_bs=32,
        student_grad_accum=1,
        student_lora_r=8,
        student_lora_alpha=16,
        student_lora_dropout=0.0,
    )


def quantized_model(root: Path) -> Path:
    return root / "model_save" / QUANTIZED


def submission(root: Path, model: str) -> Path:
    return root / "sub" / model / "out.csv"


def test_97_percent_of_unseen_rows_keep_their_verdict(root: Path) -> None:
    ids, before = read_submission(submission(root, MERGED))
    same_ids, after = read_submission(submission(root, QUANTIZED))
    assert ids == same_ids and len(ids) == 300
    verdicts = before.argmax(axis=1)
    assert np.count_nonzero(np.bincount(verdicts) > 0.1 * len(ids)) >= 2, "much the same verdict on every row"
    assert (verdicts == after.argmax(axis=1)).mean() >= 0.97
    assert np.abs(before - after).max() > 0, "nothing was quantized"


def test_without_the_averaged_adapter_the_verdicts_are_others(root: Path, tmp_path: Path) -> None:
    """What the conversions keep is what was trained, not what base and head say alone."""
    copy = Path(shutil.copytree(merged_model(root), tmp_path / "copy"))
    weights, base = load_file(copy / WEIGHTS), load_file(root / "base" / WEIGHTS)
    body = (weights.keys() & base.keys()) - read_head(copy).keys()
    save_file(weights | {name: base[name] for name in body}, copy / WEIGHTS, {"format": "pt"})
    logits = load_judge(copy).view_logits(load_test(TEST_CSV).rows, tta_views([LENGTH], swap=True))
    verdicts = probabilities(submission(root, MERGED)).argmax(axis=1)
    assert (view_probabilities(logits, 1.0).argmax(axis=1) == verdicts).mean() < 0.9


def test_the_averaged_head_arrives_bit_for_bit(root: Path) -> None:
    expected = head_sha256(read_head(avg_lora(root)))
    for directory in (avg_lora(root), merged_model(root), quantized_model(root)):
        assert manifest_of(directory)["head_sha256"] == expected
        assert head_sha256(read_head(directory)) == expected, "in the weights"
        assert head_sha256(load_file(directory / HEAD_SAFETENSORS)) == expected, "beside them"
    for name in (MERGED, QUANTIZED):
        assert manifest(submission(root, name))["head_sha256"] == expected


def test_averaging_and_merging_are_exact_to_1e_5(root: Path) -> None:
    conversion = manifest_of(merged_model(root))["conversion"]
    assert conversion["method"] == "exact"
    assert 0 <= conversion["average_error"] <= 1e-5, "of the mean of the folds' weight changes"
    assert 0 <= conversion["merge_weight_error"] <= 1e-5, "of base + adapter"
    assert 0 <= conversion["merge_error"] <= 1e-5, "of its probabilities"


def test_quantizing_costs_at_most_0_005_nats_calibrated_or_not(root: Path) -> None:
    report = json.loads((quantized_model(root) / REPORT_FILE).read_text("utf-8"))
    assert report["rows"] == 300
    assert report["log_loss"]["increase"] <= 0.005
    votes = load_labels(SAMPLE / "test_labels.csv", read_submission(submission(root, MERGED))[0])
    before, after = (
        score(view_probabilities(logits_of(submission(root, name)), 1.0), votes).log_loss
        for name in (MERGED, QUANTIZED)
    )
    assert after - before <= 0.005


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", [MERGED, QUANTIZED])
def test_step_8_refuses_a_random_head_and_writes_nothing(
    name: str, calibrated: bool, root: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(root / "model_save" / name, tmp_path / "copy"))
    if name == QUANTIZED:
        put_noise_head(copy)
    else:
        weights = load_file(copy / WEIGHTS)
        noise = {part: torch.randn_like(weights[part]) for part in read_head(copy)}
        save_file(weights | noise, copy / WEIGHTS, {"format": "pt"})
    if not calibrated:  # so that nothing but the head gives it away
        (copy / CALIBRATION_FILE).unlink()
    earlier = Path(shutil.copytree(submission(root, name).parent, tmp_path / "earlier"))
    kept = contents(earlier)
    for place, left in ((earlier, kept), (tmp_path / "new", {})):
        place.mkdir(exist_ok=True)
        with pytest.raises(InputError, match="a foreign or random head"):
            infer(place, model_dir=copy, test_csv=TEST_CSV)
        assert contents(place) == left

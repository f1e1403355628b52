"""The shipped sample data is what its generator makes, and its votes follow the law that it declares."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from arena_distill.data import sample

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "sample"
LABELLED = ("train", "ultrafeedback", "ultrafeedback_ties")
DRAWN_FREELY = ("train", "test", "ultrafeedback")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[sample.SampleRow]]:
    out_dir = tmp_path_factory.mktemp("sample")
    return out_dir, sample.write_sample(out_dir, seed=42)


def read(name: str) -> list[dict[str, str]]:
    with (SHIPPED / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def turns(line: dict[str, str], column: str) -> list[str | None]:
    return json.loads(line[column])


def key(line: dict[str, str]) -> str:
    return sample.normalised([turn or "" for turn in turns(line, "prompt")])


def truth(*splits: str) -> dict[str, np.ndarray]:
    table = pq.read_table(SHIPPED / "truth.parquet")
    keep = np.isin(np.array(table["split"].to_pylist()), splits)
    return {name: np.array(table[name].to_pylist())[keep] for name in table.column_names}


def probabilities(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([columns["p_model_a"], columns["p_model_b"], columns["p_tie"]], axis=1)


def test_regenerating_gives_the_shipped_bytes(regenerated: tuple[Path, list[sample.SampleRow]]) -> None:
    out_dir, _ = regenerated
    names = sorted(path.name for path in out_dir.iterdir())
    assert names == sorted(path.name for path in SHIPPED.iterdir() if path.suffix in (".csv", ".parquet"))
    for name in names:
        new, old = out_dir / name, SHIPPED / name
        if name.endswith(".parquet") and pq.read_metadata(new).created_by != pq.read_metadata(old).created_by:
            assert pq.read_table(new).equals(pq.read_table(old)), name  # another pyarrow writes other headers
        else:
            assert new.read_bytes() == old.read_bytes(), f"{name} differs: run scripts/make_sample_data.py"


def test_another_seed_gives_other_votes(regenerated: tuple[Path, list[sample.SampleRow]]) -> None:
    _, rows = regenerated
    other = sample.generate(seed=43)
    assert len(other) == len(rows)
    assert [row.label for row in other] != [row.label for row in rows]


def test_readme_holds_the_table_that_the_generator_prints(regenerated: tuple[Path, list[sample.SampleRow]]) -> None:
    assert sample.summary(regenerated[1]) in (SHIPPED / "README.md").read_text(encoding="utf-8")


def test_truth_is_davidsons_formula_on_the_qualities() -> None:
    columns = truth(*sample.SPLIT_ROWS)
    p = probabilities(columns)
    pi_a, pi_b = np.exp(columns["quality_a"]), np.exp(columns["quality_b"])
    numerators = np.stack([pi_a, pi_b, sample.NU * np.sqrt(pi_a * pi_b)], axis=1)
    np.testing.assert_allclose(p, numerators / numerators.sum(axis=1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)


def test_swapping_the_answers_swaps_their_probabilities() -> None:
    for quality_a, quality_b in ((0.0, 0.0), (1.5, -2.25), (-9.0, 4.0)):
        a, b, tie = sample.davidson(quality_a, quality_b)
        assert sample.davidson(quality_b, quality_a) == pytest.approx((b, a, tie), abs=1e-15)


@pytest.mark.parametrize("split", DRAWN_FREELY)
def test_votes_are_consistent_with_the_truth(split: str) -> None:
    columns = truth(split)
    p, votes = probabilities(columns), np.eye(3)[columns["label"]]
    order = np.argsort(columns["quality_a"] - columns["quality_b"])
    for group in (order, *np.array_split(order, 4)):
        z = (votes[group] - p[group]).sum(axis=0) / np.sqrt((p[group] * (1 - p[group])).sum(axis=0))
        assert np.abs(z).max() < 4.0, z


@pytest.mark.parametrize("split", DRAWN_FREELY)
def test_realised_log_loss_of_the_truth_is_near_its_entropy_and_beats_the_prior(split: str) -> None:
    columns = truth(split)
    p, n = probabilities(columns), len(columns["label"])
    losses = -np.log(p[np.arange(n), columns["label"]])
    entropy = -(p * np.log(p)).sum(axis=1)
    variance = (p * np.log(p) ** 2).sum(axis=1) - entropy**2
    assert abs(losses.sum() - entropy.sum()) < 4 * math.sqrt(variance.sum())
    shares = np.bincount(columns["label"], minlength=3) / n
    assert 0.7 < entropy.mean() < 0.85
    assert losses.mean() < -(shares * np.log(shares)).sum() - 0.2
    assert np.all((shares > 0.2) & (shares < 0.45))


def test_tie_rows_are_all_ties_but_keep_their_unconditional_truth() -> None:
    columns = truth("ultrafeedback_ties")
    assert set(columns["label"]) == {2}
    assert columns["p_tie"].max() < 0.75


def test_one_hot_votes_match_the_truth_file_and_ids_are_unique() -> None:
    columns = truth(*sample.SPLIT_ROWS)
    label = dict(zip(columns["id"].tolist(), columns["label"].tolist(), strict=True))
    lines = [line for name in (*LABELLED, "test_labels") for line in read(name)]
    assert len(lines) == len(label) == sum(sample.SPLIT_ROWS.values())
    for line in lines:
        one_hot = [int(line[c]) for c in ("winner_model_a", "winner_model_b", "winner_tie")]
        assert sum(one_hot) == 1
        assert one_hot.index(1) == label[int(line["id"])]
    assert [line["id"] for line in read("test")] == [line["id"] for line in read("test_labels")]


def test_no_test_prompt_or_turn_stands_in_train_or_extra_data() -> None:
    def single_turns(line: dict[str, str]) -> set[str]:
        return {sample.normalised([turn or ""]) for turn in turns(line, "prompt")}

    test_lines = read("test")
    elsewhere = [line for name in LABELLED for line in read(name)]
    assert not {key(line) for line in test_lines} & {key(line) for line in elsewhere}
    assert not set().union(*map(single_turns, test_lines)) & set().union(*map(single_turns, elsewhere))


def test_prompts_repeat_within_train_and_a_few_extra_rows_respell_them() -> None:
    train = read("train")
    groups = Counter(key(line) for line in train)
    assert sum(size for size in groups.values() if size >= 2) > len(train) / 2
    assert max(groups.values()) == 4
    respelt = [line for line in read("ultrafeedback") if key(line) in groups]
    assert len(respelt) == sample.REWORDED_ROWS
    literal = {line["prompt"] for line in train}
    assert sum(line["prompt"] in literal for line in respelt) < len(respelt) / 2


def test_turn_counts_agree_and_hard_rows_are_present() -> None:
    train = read("train")
    counts = [[len(turns(line, c)) for c in ("prompt", "response_a", "response_b")] for line in train]
    assert all(prompt == a == b for prompt, a, b in counts)
    several = sum(prompt > 1 for prompt, _, _ in counts) / len(train)
    assert 0.06 < several < 0.14
    answers = [turns(line, c) for line in train for c in ("response_a", "response_b")]
    assert [None] in answers
    assert [""] in answers
    assert any(None in answer for answer in answers if len(answer) > 1)
    assert sum(line["response_a"] == line["response_b"] for line in train) >= 10
    assert sum(len(" ".join(t or "" for t in answer).split()) >= 600 for answer in answers) >= 3
    assert any(r"\ud83d\ude0a" in line["response_a"] for line in train), "no escaped emoji"
    assert any("\N{SMILING FACE WITH SMILING EYES}" in line["response_a"] for line in train), "no plain emoji"
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000


def test_identical_answers_have_equal_chances() -> None:
    columns = truth("train")
    by_id = {n: (a, b) for n, a, b in zip(columns["id"], columns["p_model_a"], columns["p_model_b"], strict=True)}
    same = [line for line in read("train") if line["response_a"] == line["response_b"]]
    assert all(by_id[int(line["id"])][0] == by_id[int(line["id"])][1] for line in same)


def test_at_least_five_languages_are_asked_in() -> None:
    patterns = {
        "Spanish": "¿",
        "German": r"\b(Was ist|Berechne|Wie viel)\b",
        "French": r"\b(Quelle|Calculez|Combien)\b",
        "Russian": "[а-я]{4}",
        "Arabic": "[\u0621-\u064a]{4}",
        "Japanese": "[\u3040-\u30ff]{3}",
        "Chinese": "等于|首都是|请",
        "English": r"\b(What|the)\b",
    }
    prompts = [" ".join(turn or "" for turn in turns(line, "prompt")) for line in read("train")]
    counts = {name: sum(bool(re.search(pattern, prompt)) for prompt in prompts) for name, pattern in patterns.items()}
    assert min(counts.values()) >= 10, counts


def test_quality_is_a_function_of_prompt_and_text(regenerated: tuple[Path, list[sample.SampleRow]]) -> None:
    found: dict[tuple[str, tuple[str, ...]], set[float]] = defaultdict(set)
    for row in regenerated[1]:
        for answer, quality in zip(row.answers, row.qualities, strict=True):
            found[sample.normalised(row.prompt), tuple(turn or "" for turn in answer)].add(quality)
    assert all(len(qualities) == 1 for qualities in found.values())
    assert len(found) < 2 * len(regenerated[1]), "no text occurs twice, so nothing was compared"


def test_a_wrong_sum_in_the_text_lowers_the_quality(regenerated: tuple[Path, list[sample.SampleRow]]) -> None:
    quality: dict[bool, list[float]] = {True: [], False: []}
    for row in regenerated[1]:
        for answer, value in zip(row.answers, row.qualities, strict=True):
            sums = re.findall(r"(\d+) \+ (\d+) = (\d+)", answer[0] or "")
            if len(answer) == 1 and sums:
                quality[all(int(a) + int(b) == int(s) for a, b, s in sums)].append(value)
    assert min(len(quality[True]), len(quality[False])) > 20
    assert np.mean(quality[True]) > np.mean(quality[False]) + 1.0


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "train.csv"
    target.write_text("old")

    def half_written(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        sample.replace_file(target, half_written)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]

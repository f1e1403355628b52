from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.baselines import (
    Baseline,
    ConstantPrior,
    LengthRegression,
    TfidfRegression,
    _select_c,
    _SoftRegression,
    _terms,
    fit_baselines,
    length_features,
)
from arena_distill.evaluation.metrics import kaggle_log_loss

MakeRows = Callable[..., Rows]
MODELS: list[type[Baseline]] = [ConstantPrior, LengthRegression, TfidfRegression]


def assert_probabilities(p: np.ndarray, rows: int) -> None:
    assert p.shape == (rows, 3)
    assert p.dtype == np.float64
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_length_and_tfidf_beat_the_prior_where_length_decides(length_decides: MakeRows) -> None:
    train, test = length_decides(600, seed=0), length_decides(400, seed=1)
    loss = {name: kaggle_log_loss(m.predict(test), targets(test)) for name, m in fit_baselines(train).items()}
    assert list(loss) == ["constant prior", "length", "TF-IDF"]
    assert loss["length"] < loss["constant prior"] - 0.2
    assert loss["TF-IDF"] < loss["constant prior"] - 0.2


def test_tfidf_beats_length_where_one_word_decides(make_rows: MakeRows) -> None:
    rng = np.random.default_rng(0)

    def rows(count: int) -> Rows:
        right_first = rng.random(count) < 0.5
        answers = [
            ([f"q{i}"], [f"it is {'correct' if first else 'mistake'}"], [f"it is {'mistake' if first else 'correct'}"])
            for i, first in enumerate(right_first)
        ]
        return make_rows(answers, [0 if first else 1 for first in right_first])

    models, test = fit_baselines(rows(200)), rows(100)
    loss = {name: kaggle_log_loss(model.predict(test), targets(test)) for name, model in models.items()}
    assert loss["TF-IDF"] < 0.2
    assert loss["length"] > 0.5


def test_the_prior_is_the_add_one_share_of_the_votes(make_rows: MakeRows) -> None:
    rows = make_rows([(["q"], ["a"], ["b"])] * 5, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(ConstantPrior().fit(rows, targets(rows)).predict(rows), [[4 / 8, 3 / 8, 1 / 8]] * 5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("votes", [[0, 1] * 5, [2, 0] * 5, [1, 2] * 5, [0] * 10, [1] * 10, [2] * 10])
def test_a_class_without_training_rows_keeps_its_column_and_a_small_share(
    model: type[Baseline], votes: list[int], make_rows: MakeRows
) -> None:
    texts = [([f"q{i}"], ["word " * (1 + 9 * (i % 2))], ["word " * 5]) for i in range(10)]
    rows = make_rows(texts, votes)
    p = model().fit(rows, targets(rows)).predict(rows)
    assert_probabilities(p, 10)
    for absent in {0, 1, 2} - set(votes):
        np.testing.assert_allclose(p[:, absent], 1 / 13)
    if len(set(votes)) == 2 and model is not ConstantPrior:
        assert (p.argmax(axis=1) == votes).all()


ODD_ROWS: dict[str, list[tuple[list[str | None], list[str | None], list[str | None]]]] = {
    "empty answers": [([f"q{i}"], [], [None]) for i in range(10)],
    "everything empty": [([], [], [])] * 10,
    "Chinese": [([f"问题{i}"], ["春眠不觉晓，处处闻啼鸟。" * i], ["夜来风雨声"]) for i in range(10)],
    "Arabic and emoji": [([f"سؤال {i}"], ["نعم 🙂"], ["👍🏽" * i]) for i in range(10)],
    "one prompt": [(["the same"], ["yes " * i], ["no"]) for i in range(10)],
    "no word twice": [([f"q{i}"], [f"left{i}"], [f"right{i}"]) for i in range(10)],
    "identical answers": [([f"q{i}"], ["same"], ["same"]) for i in range(10)],
    "many turns with nulls": [([f"q{i}", "and?"], ["a", None, "b"], [None, "c"]) for i in range(10)],
    "one row": [(["q"], ["a"], ["b"])],
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ODD_ROWS)
def test_odd_rows_still_give_probabilities(kind: str, model: type[Baseline], make_rows: MakeRows) -> None:
    texts = ODD_ROWS[kind]
    rows = make_rows(texts, [i % 3 for i in range(len(texts))])
    assert_probabilities(model().fit(rows, targets(rows)).predict(rows), len(texts))


def test_a_soft_vote_counts_as_the_hard_votes_that_it_stands_for() -> None:
    """Four votes a row, once as shares and once as four rows; a quarter of C makes up for four times the rows."""
    rng = np.random.default_rng(0)
    features, votes = rng.normal(size=(40, 4)), rng.multinomial(4, [0.5, 0.3, 0.2], size=40)
    soft = _SoftRegression(c=1.0).fit(features, votes / 4)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in votes])
    hard = _SoftRegression(c=0.25).fit(np.repeat(features, 4, axis=0), np.eye(3)[labels])
    np.testing.assert_allclose(soft.predict(features), hard.predict(features), atol=5e-3)


@pytest.mark.parametrize("model", MODELS)
def test_soft_votes_train_a_model(model: type[Baseline], make_rows: MakeRows) -> None:
    rng = np.random.default_rng(0)
    texts = [([f"q{i}"], ["word " * (i + 1)], ["word " * 6]) for i in range(12)]
    rows = make_rows(texts, [list(vote) for vote in rng.dirichlet([8, 1, 1], size=12)])
    p = model().fit(rows, targets(rows)).predict(rows)
    assert_probabilities(p, 12)
    assert (p.argmax(axis=1) == 0).mean() > 0.8


def test_soft_one_hot_targets_train_the_same_model_as_labels(length_decides: MakeRows) -> None:
    rows = length_decides(60, seed=3)
    field = rows.schema.field("target")
    one_hot = rows.set_column(5, field, pa.array(targets(rows).tolist(), field.type))
    for name, model in fit_baselines(rows).items():
        np.testing.assert_array_equal(model.predict(rows), fit_baselines(one_hot)[name].predict(rows))


def test_a_row_is_predicted_the_same_whatever_other_rows_are_predicted_with_it(length_decides: MakeRows) -> None:
    train, test = length_decides(100, seed=4), length_decides(30, seed=5)
    order = np.random.default_rng(0).permutation(30)
    for model in fit_baselines(train).values():
        p = model.predict(test)
        np.testing.assert_allclose(model.predict(test.take(order)), p[order], rtol=1e-12)
        np.testing.assert_allclose(model.predict(test.slice(7, 1)), p[7:8], rtol=1e-12)
        assert model.predict(test.slice(0, 0)).shape == (0, 3)


def test_predictions_do_not_look_at_the_test_rows_votes(length_decides: MakeRows) -> None:
    train, test = length_decides(100, seed=6), length_decides(30, seed=7)
    unlabelled = test.set_column(4, test.schema.field("label"), pa.nulls(30, pa.int8()))
    for model in fit_baselines(train).values():
        np.testing.assert_array_equal(model.predict(test), model.predict(unlabelled))


def test_fitting_twice_gives_the_same_model(length_decides: MakeRows) -> None:
    rows = length_decides(80, seed=8)
    for name, model in fit_baselines(rows).items():
        np.testing.assert_array_equal(model.predict(rows), fit_baselines(rows)[name].predict(rows))


def test_c_is_chosen_without_equal_prompts_on_both_sides() -> None:
    """A feature that names the prompt is perfect inside a group and worthless outside: only grouping sees that."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    labels = np.repeat(rng.integers(3, size=60), 5)
    prompt_names = np.eye(60)[groups]
    ungrouped = np.arange(300)
    grouped_c = _select_c(prompt_names, np.eye(3)[labels], groups)
    assert grouped_c < _select_c(prompt_names, np.eye(3)[labels], ungrouped)


def test_length_features_count_characters_words_and_turns(make_rows: MakeRows) -> None:
    rows = make_rows([(["one", "two"], ["three words here"], [None])], [0])
    prompt, a, words, turns = np.log1p([len("one\n\ntwo"), 16, 3, 2])
    expected = [[prompt, a, 0, a, a, words, 0, words, words, turns, 0, 1]]
    np.testing.assert_allclose(length_features(rows), expected)


def test_swapping_the_answers_turns_the_differences_round(length_decides: MakeRows) -> None:
    rows = length_decides(20, seed=9)
    names = rows.column_names
    names[2], names[3] = names[3], names[2]
    features, swapped = length_features(rows), length_features(rows.rename_columns(names))
    np.testing.assert_allclose(
        swapped[:, [0, 2, 1, 4, 6, 5, 8, 9, 11, 10]], features[:, [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]]
    )
    np.testing.assert_allclose(swapped[:, [3, 7]], -features[:, [3, 7]])


def test_terms_are_words_and_pairs_and_single_characters_where_no_spaces_are_written() -> None:
    assert _terms("The cat, a CAT") == ["the", "cat", "a", "cat", "the cat", "cat a", "a cat"]
    assert _terms("用GPU跑") == ["用", "gpu", "跑", "用 gpu", "gpu 跑"]


@pytest.mark.parametrize("model", MODELS)
def test_no_rows_or_targets_of_another_length_are_refused(model: type[Baseline], length_decides: MakeRows) -> None:
    rows = length_decides(10, seed=10)
    with pytest.raises(ValueError, match="at least one"):
        model().fit(rows.slice(0, 0), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="shape"):
        model().fit(rows, targets(rows)[:9])
    with pytest.raises(ValueError, match="finite"):
        model().fit(rows, np.full((10, 3), np.nan))

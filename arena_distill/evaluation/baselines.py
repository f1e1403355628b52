"""What a model must beat: the class shares, a regression on lengths, and TF-IDF. Fitted on training rows only."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np

from arena_distill.data.records import CLASSES, TEXT_COLUMNS, Rows, joined_turns, targets

MAX_VOCABULARY = 50_000
VOCABULARY_ROWS = 10_000
"""Rows whose answers choose the vocabulary: more add minutes and gigabytes of rare bigrams, not accuracy."""

SELECTION_ROWS = 5_000
"""Rows on which C is chosen. C is the prior's width in the sum over rows, so it carries over to more rows."""

SELECTION_FOLDS = 3
C_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DEFAULT_C = 0.03
"""Where no choice is possible: all training rows share one prompt."""

_CJK = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
"""A word, or one character of a script that writes no spaces (with bigrams that stands in for words)."""


class Baseline(Protocol):
    """A model of canonical rows that needs no GPU."""

    def fit(self, rows: Rows, targets: np.ndarray) -> Baseline:
        """Learn from ``rows`` and their ``targets`` (float64 ``[N, 3]``, hard or soft); returns itself."""
        ...

    def predict(self, rows: Rows) -> np.ndarray:
        """Probabilities, float64 ``[N, 3]`` in the order A, B, tie; each row sums to 1 and none is zero."""
        ...


class ConstantPrior:
    """The class shares of the training rows with Laplace's add-one smoothing, for every row."""

    def fit(self, rows: Rows, targets: np.ndarray) -> ConstantPrior:
        """See ``Baseline``. Raises ValueError where there are no rows or the shapes do not agree."""
        self.shares = _smoothed_shares(_checked(rows, targets))
        return self

    def predict(self, rows: Rows) -> np.ndarray:
        """See ``Baseline``."""
        return np.tile(self.shares, (len(rows), 1))


class LengthRegression:
    """Logistic regression on ``length_features``, standardised."""

    def fit(self, rows: Rows, targets: np.ndarray) -> LengthRegression:
        """See ``Baseline``. Raises ValueError where there are no rows or the shapes do not agree."""
        from sklearn.preprocessing import StandardScaler

        target = _checked(rows, targets)
        features = length_features(rows)
        self.scaler = StandardScaler().fit(features)
        self.regression = _SoftRegression(c=1.0).fit(self.scaler.transform(features), target)
        return self

    def predict(self, rows: Rows) -> np.ndarray:
        """See ``Baseline``."""
        if not len(rows):
            return np.zeros((0, len(CLASSES)))
        return self.regression.predict(self.scaler.transform(length_features(rows)))


class TfidfRegression:
    """Logistic regression on TF-IDF of both answers and their lengths.

    Words and word pairs of both answers share one vocabulary; the features are ``tfidf(A) - tfidf(B)``, its absolute
    value, and the standardised ``length_features``. C is chosen by cross-validated log loss over folds that keep
    equal prompts together, inside the training rows.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, rows: Rows, targets: np.ndarray) -> TfidfRegression:
        """See ``Baseline``. Raises ValueError where there are no rows or the shapes do not agree."""
        from sklearn.preprocessing import StandardScaler

        target = _checked(rows, targets)
        # One random order serves both samples below; files are often sorted by model or by date.
        order = np.random.default_rng(self.seed).permutation(len(rows))
        self.scaler = StandardScaler().fit(length_features(rows))
        self.vectorizer = _fit_vectorizer(rows.take(np.sort(order[:VOCABULARY_ROWS])))
        features = self._features(rows)
        sample = np.sort(order[:SELECTION_ROWS])
        groups = rows["prompt_hash"].fill_null(0).to_numpy()[sample]
        self.c = _select_c(features[sample], target[sample], groups)
        self.regression = _SoftRegression(self.c).fit(features, target)
        return self

    def predict(self, rows: Rows) -> np.ndarray:
        """See ``Baseline``."""
        if not len(rows):
            return np.zeros((0, len(CLASSES)))
        return self.regression.predict(self._features(rows))

    def _features(self, rows: Rows) -> Any:
        from scipy import sparse

        lengths = sparse.csr_matrix(self.scaler.transform(length_features(rows)))
        if self.vectorizer is None:
            return lengths
        a, b = (self.vectorizer.transform(_texts(rows, column)) for column in TEXT_COLUMNS[1:])
        return sparse.hstack([a - b, abs(a - b), lengths], format="csr")


def fit_baselines(train_rows: Rows) -> dict[str, Baseline]:
    """All baselines by display name, fitted on labelled canonical rows.

    Raises:
        ValueError: there are no rows, or some have neither a label nor a target.
    """
    target = targets(train_rows)
    models: dict[str, Baseline] = {
        "constant prior": ConstantPrior(),
        "length": LengthRegression(),
        "TF-IDF": TfidfRegression(),
    }
    return {name: model.fit(train_rows, target) for name, model in models.items()}


def length_features(rows: Rows) -> np.ndarray:
    """Length features, float64 ``[N, 12]``.

    ``log(1 + count)`` of the characters of prompt, A and B, of the words of A and B, and of the turns of the prompt;
    difference A - B and its absolute value for characters and words; 1 where an answer is empty, for A and B.
    """
    import pyarrow.compute as pc

    prompt, a, b = (_texts(rows, column) for column in TEXT_COLUMNS)
    chars_prompt, chars_a, chars_b = (_log1p([len(text) for text in texts]) for texts in (prompt, a, b))
    words_a, words_b = (_log1p([len(text.split()) for text in texts]) for texts in (a, b))
    turns = _log1p(pc.list_value_length(rows["prompt"]).fill_null(0).to_numpy())
    chars, words = chars_a - chars_b, words_a - words_b
    columns = [chars_prompt, chars_a, chars_b, chars, abs(chars), words_a, words_b, words, abs(words), turns]
    return np.column_stack([*columns, chars_a == 0, chars_b == 0]).astype(np.float64)


def _log1p(counts: Any) -> np.ndarray:
    return np.log1p(np.asarray(counts, dtype=np.float64))


def _texts(rows: Rows, column: str) -> list[str]:
    return [text or "" for text in joined_turns(rows, column)]


def _checked(rows: Rows, targets: np.ndarray) -> np.ndarray:
    target = np.asarray(targets, dtype=np.float64)
    if not len(rows):
        raise ValueError("a baseline needs at least one training row")
    if target.shape != (len(rows), len(CLASSES)):
        raise ValueError(f"targets must have shape [{len(rows)}, {len(CLASSES)}], not {list(target.shape)}")
    if not np.isfinite(target).all() or (target < 0).any():
        raise ValueError("targets must be finite and not negative")
    return target


def _smoothed_shares(target: np.ndarray) -> np.ndarray:
    votes = target.sum(axis=0) + 1
    return votes / votes.sum()


class _SoftRegression:
    """Multinomial logistic regression on soft targets that always answers for all three classes."""

    def __init__(self, c: float) -> None:
        self.c = c

    def fit(self, features: Any, target: np.ndarray) -> _SoftRegression:
        from sklearn.linear_model import LogisticRegression

        self.shares = _smoothed_shares(target)
        # A soft vote becomes one row for each class that it names, weighted by the vote: the same cross entropy.
        row, label = np.nonzero(target)
        self.classes = np.unique(label)
        if len(self.classes) > 1:
            self.model = LogisticRegression(C=self.c, max_iter=1000, tol=1e-3)
            soft = len(row) > len(target)
            self.model.fit(features[row] if soft else features, label, sample_weight=target[row, label])
        return self

    def predict(self, features: Any) -> np.ndarray:
        if len(self.classes) < 2:
            return np.tile(self.shares, (features.shape[0], 1))
        # Classes that no training row has get Laplace's share, the others share the rest as the model says.
        out = np.tile(self.shares, (features.shape[0], 1))
        out[:, self.classes] = self.model.predict_proba(features) * self.shares[self.classes].sum()
        out = np.maximum(out, np.finfo(np.float64).tiny)
        return out / out.sum(axis=1, keepdims=True)


def _fit_vectorizer(rows: Rows) -> Any:
    """A TF-IDF vectorizer over both answers, or None where no term occurs in two of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    answers = [*_texts(rows, "response_a"), *_texts(rows, "response_b")]
    # Counted here: scikit-learn sorts millions of rare terms before it drops them, most of its time and memory.
    answers_with = Counter(chain.from_iterable(dict.fromkeys(_terms(answer)) for answer in answers))
    vocabulary = sorted(term for term, count in answers_with.most_common(MAX_VOCABULARY) if count > 1)
    if not vocabulary:
        return None
    return TfidfVectorizer(analyzer=_terms, vocabulary=vocabulary, sublinear_tf=True, dtype=np.float32).fit(answers)


def _terms(text: str) -> list[str]:
    """The words of ``text`` in lower case, and its pairs of neighbouring words."""
    words = _TOKEN.findall(text.lower())
    return words + list(map(" ".join, pairwise(words)))


def _select_c(features: Any, target: np.ndarray, groups: np.ndarray) -> float:
    """The C of ``C_GRID`` with the least cross-validated log loss; no group stands on both sides of a fold."""
    from sklearn.model_selection import GroupKFold

    from arena_distill.evaluation.metrics import kaggle_log_loss

    folds = min(SELECTION_FOLDS, len(np.unique(groups)))
    if folds < 2:
        return DEFAULT_C
    splits = list(GroupKFold(folds).split(features, groups=groups))

    def loss(c: float) -> float:
        parts = []
        for train, test in splits:
            predicted = _SoftRegression(c).fit(features[train], target[train]).predict(features[test])
            parts.append(len(test) * kaggle_log_loss(predicted, target[test]))
        return sum(parts)

    losses = []
    for c in C_GRID:
        losses.append(loss(c))
        # The loss has one valley in C: once it rises the wider, slower fits cannot win.
        if len(losses) > 1 and losses[-1] > losses[-2]:
            break
    return C_GRID[int(np.argmin(losses))]

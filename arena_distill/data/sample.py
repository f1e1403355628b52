"""Honest sample data: question-answer pairs whose votes follow a known law that is readable in the texts.

Each answer's quality is a declared sum over what its text shows, with no hidden noise; over several turns, the mean:

    quality = SCALE * sum over c of WEIGHTS[c] * feature[c]

Votes are drawn from Davidson's paired-comparison model with ties (R. R. Davidson, "On extending the Bradley-Terry
model to accommodate ties in paired comparison experiments", JASA 65, 1970), with pi = exp(quality):

    P(A) = pi_a / Z    P(B) = pi_b / Z    P(tie) = NU * sqrt(pi_a * pi_b) / Z    Z = the sum of the three numerators

So a reader who misses nothing in the texts reaches the mean entropy of these probabilities, and nobody does better.
"""

from __future__ import annotations

import csv
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data import sample_texts as texts
from arena_distill.data.records import PROBABILITY_COLUMNS, TEXT_COLUMNS
from arena_distill.data.sample_tasks import Draw, Part, Task, build_task

SPLIT_ROWS = {"train": 1500, "test": 300, "ultrafeedback": 300, "ultrafeedback_ties": 100}
REWORDED_ROWS = 12
"""Extra rows whose prompt is a train prompt in other case and white space."""

SCALE = 1.3
NU = 1.5
WEIGHTS = {
    "wrong": -2.8,  # share of the question's parts that are answered falsely
    "missing": -1.6,  # share of the question's parts that are not answered
    "cut": -0.5,  # 1: stops in mid-sentence
    "refusal": -0.9,  # 1: declines (everything is missing as well)
    "empty": -1.5,  # 1: no text at all (everything is missing as well)
    "foreign": -1.8,  # 1: in another language than the question
    "repetition": -1.8,  # needless repeats of a sentence / 8, at most 1
    "mess": -0.9,  # 1: list, code or punctuation lost, or stray markup
    "hedge": -0.45,  # number of hedging sentences
    "filler": -0.6,  # empty sentences / 8, at most 1
    "tone": 0.5,  # 1 friendly, 0 neutral, -1 rude
    "length": 0.8,  # log2(words / 32) within [-2, 2]; fillers and repeats do not count
}
CLAUSE = {"zh": "", "ja": ""}
"""What stands between two sentences, where it is not a blank."""


@dataclass(frozen=True)
class Answer:
    """One turn of an answer: its text (None: missing) and its features, keys of ``WEIGHTS``, absent ones 0."""

    text: str | None
    features: dict[str, float]

    @property
    def quality(self) -> float:
        """The turn's quality in log odds."""
        return SCALE * sum(WEIGHTS[name] * value for name, value in sorted(self.features.items()))


@dataclass(frozen=True)
class SampleRow:
    """One voted pair with its truth. ``truth`` holds P(A), P(B), P(tie); ``label`` 0 = A, 1 = B, 2 = tie."""

    id: int
    split: str
    models: tuple[str, str]
    prompt: tuple[str, ...]
    answers: tuple[tuple[str | None, ...], tuple[str | None, ...]]
    qualities: tuple[float, float]
    truth: tuple[float, float, float]
    label: int
    languages: tuple[str, ...]
    escaped: bool


def davidson(quality_a: float, quality_b: float, nu: float = NU) -> tuple[float, float, float]:
    """P(A), P(B), P(tie) of Davidson (1970) for pi = exp(quality); divided through by sqrt(pi_a * pi_b)."""
    half = (quality_a - quality_b) / 2
    a, b = math.exp(half), math.exp(-half)
    total = a + b + nu
    return a / total, b / total, nu / total


def normalised(prompt: Iterable[str]) -> str:
    """The prompt's turns as one string: NFC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", " ".join(prompt)).casefold().split())


def count_words(text: str) -> float:
    """Blank-separated words; two Han or kana characters count as one word."""
    dense = sum("぀" <= c <= "ヿ" or "一" <= c <= "鿿" for c in text)
    return len(text.split()) + dense / 2


# --- answers -----------------------------------------------------------------------------------------------------


def write_answer(task: Task, skill: float, draw: Draw) -> Answer:
    """An answer to ``task`` by a model whose flaws are rarer by ``skill`` in log odds."""

    def slips(rate: float) -> bool:
        return draw.chance(1 / (1 + (1 / rate - 1) * math.exp(skill)))

    if slips(0.012):
        return Answer(draw.pick((None, "")), {"empty": 1, "missing": 1, "length": -2})
    if slips(0.09):
        return _refuse(task, draw)
    if slips(0.05):
        return _answer_in_other_language(task, slips(0.35), draw)
    return _compose(task, slips, draw)


def _length_feature(text: str, ignored: str = "") -> float:
    words = max(1.0, count_words(text) - count_words(ignored))
    return min(2.0, max(-2.0, math.log2(words / 32)))


def _refuse(task: Task, draw: Draw) -> Answer:
    text = draw.pick(texts.BANKS[task.language].refusals)
    return Answer(text, {"refusal": 1, "missing": 1, "length": _length_feature(text)})


def _answer_in_other_language(task: Task, wrong: bool, draw: Draw) -> Answer:
    language = draw.pick(sorted(set(texts.BANKS) - {task.language}))
    bank = texts.BANKS[language]
    features: dict[str, float] = {"foreign": 1, "missing": 1}
    sentences = [draw.pick(bank.evasions)]
    if task.core is not None:
        sentences = [draw.pick(bank.short_answers).format(core=task.core[wrong])]
        share = task.core_parts / len(task.parts)
        features |= {"wrong": share * wrong, "missing": 1 - share}
    if draw.chance(0.6):
        sentences.insert(0, draw.pick(bank.warm_openings))
        features["tone"] = 1
    text = CLAUSE.get(language, " ").join(sentences)
    return Answer(text, features | {"length": _length_feature(text)})


def _compose(task: Task, slips: Callable[[float], bool], draw: Draw) -> Answer:
    """A normal answer with its flaws; see ``WEIGHTS`` for what counts."""
    bank = texts.BANKS[task.language]
    clause = CLAUSE.get(task.language, " ")
    total = len(task.parts)
    given = draw.between(0, total - 1) if slips(0.2) else total
    cut = given < total and (given == 0 or draw.chance(0.5))
    sentences, false = _statements(task.parts[:given], slips(0.42), draw)
    features: dict[str, float] = {"wrong": false / total, "missing": (total - given) / total, "cut": cut}

    before = _opening(bank, slips, features, draw)
    hedges = draw.take(bank.hedges, (1 + slips(0.3)) * slips(0.25))
    features["hedge"] = len(hedges)
    fillers = _fillers(bank, slips, draw)
    features["filler"] = min(1.0, len(fillers) / 8)
    before += hedges
    after: list[str] = []
    repeats: list[str] = []
    if cut:  # nothing can stand after a broken sentence
        before += fillers
        sentences.append(_broken(draw.pick(task.parts[given].right)))
    else:
        if given == total:
            shown = draw.take(range(len(task.details)), draw.between(0, len(task.details)))
            after = [task.details[i] for i in sorted(shown)]
        after += fillers
        if given < total:
            after.append(draw.pick(bank.gives_up))
        elif features.get("tone", 0) > 0:
            after.append(draw.pick(bank.warm_closings))
        if slips(0.06):
            repeats = [(after or sentences)[-1]] * draw.between(3, 12)
            features["repetition"] = min(1.0, len(repeats) / 8)
    mess = slips(0.13)
    features["mess"] = mess
    text = _lay_out(task, before, sentences, after + repeats, clause, mess, draw)
    features["length"] = _length_feature(text, clause.join(fillers + repeats))
    return Answer(text, features)


def _statements(parts: Sequence[Part], careless: bool, draw: Draw) -> tuple[list[str], int]:
    """A wording of each part, and how many are false; a careless writer gets one wrong at least."""
    wrong = [careless and draw.chance(0.5) for _ in parts]
    if careless and parts and not any(wrong):
        wrong[draw.between(0, len(parts) - 1)] = True
    sentences: list[str] = []
    false = 0
    for part, slip in zip(parts, wrong, strict=True):
        unused = [wording for wording in part.wrong if wording not in sentences] if slip else []
        false += bool(unused)
        sentences.append(draw.pick(unused or part.right))
    return sentences, false


def _opening(bank: texts.Bank, slips: Callable[[float], bool], features: dict[str, float], draw: Draw) -> list[str]:
    if slips(0.1):
        features["tone"] = -1
        return [draw.pick(bank.rude)]
    if not slips(0.65):
        features["tone"] = 1
        return [draw.pick(bank.warm_openings)]
    return []


def _fillers(bank: texts.Bank, slips: Callable[[float], bool], draw: Draw) -> list[str]:
    """Mostly none; sometimes a few; rarely (English) so many that the answer passes 600 words."""
    if not slips(0.3):
        return []
    few, several, endless = (1, 3), (4, 8), (50, 64)
    low, high = draw.weighted(((few, 0.7), (several, 0.28), (endless, 0.02)))
    return draw.take(bank.fillers, min(draw.between(low, high), len(bank.fillers)))


def _broken(sentence: str) -> str:
    """The first half of ``sentence``, up to a blank if there is one."""
    half = sentence[: max(1, len(sentence) // 2)]
    return half.rsplit(" ", 1)[0].rstrip(".,:") if " " in half else half


def _lay_out(
    task: Task, before: list[str], body: list[str], after: list[str], clause: str, mess: bool, draw: Draw
) -> str:
    """The blocks joined as the layout asks, or with that structure lost."""
    if mess:
        return _messy(task, before + body + after, clause, draw)
    if task.layout == "list":
        mark: Callable[[int], str] = draw.pick((lambda i: f"{i}. ", lambda i: "- ", lambda i: "* "))
        body = ["\n".join(mark(i) + sentence for i, sentence in enumerate(body, 1))]
    elif task.layout == "code" and body:
        body = [f"```python\n{body[0]}\n```", *body[1:]]
    else:
        return clause.join(before + body + after)
    return "\n\n".join(block for block in (clause.join(before), *body, clause.join(after)) if block)


def _messy(task: Task, sentences: list[str], clause: str, draw: Draw) -> str:
    flat = [" ".join(sentence.split()) for sentence in sentences]
    if task.layout == "plain" and draw.chance(0.5):
        return draw.pick((" <br><br> ", " ** ", " ### ", " &nbsp; ")).join([*flat, ""]).strip()
    if task.language == "en":
        joint = draw.pick((" ", " also ", " and then ", " ... "))
        return joint.join(sentence.lower().rstrip(".!?") for sentence in flat)
    return draw.pick((" | ", " ### ", " <br> ")).join([*flat, ""]).strip()


# --- rows --------------------------------------------------------------------------------------------------------


class PromptMaker:
    """Draws prompts (lists of tasks) of which no turn was used before, white space and case aside."""

    def __init__(self, draw: Draw):
        self._draw = draw
        self._seen: set[str] = set()

    def fresh(self) -> list[Task]:
        """One task, or two or three with the chance of 1 in 10."""
        tasks = [self._fresh_task()]
        if self._draw.chance(0.1):
            for _ in range(self._draw.between(1, 2)):
                task = self._fresh_task()
                lead = self._draw.pick(texts.FOLLOW_UP_LEADS) if task.language == "en" else ""
                tasks.append(replace(task, prompt=lead + task.prompt))
        return tasks

    def _fresh_task(self) -> Task:
        while True:
            task = build_task(self._draw)
            key = normalised([task.prompt])
            if key not in self._seen:
                self._seen.add(key)
                return task


def draw_row(split: str, tasks: Sequence[Task], draw: Draw) -> SampleRow:
    """One pair of answers to ``tasks`` by two different models, and its vote; the id is not yet given (-1)."""
    models = draw.take(sorted(texts.MODELS), 2)
    answers = [[write_answer(task, texts.MODELS[model], draw) for task in tasks] for model in models]
    if draw.chance(0.02):
        answers[1] = answers[0]
    qualities = [round(math.fsum(turn.quality for turn in turns) / len(turns), 6) for turns in answers]
    truth = davidson(qualities[0], qualities[1])
    point = draw.unit()
    label = 0 if point < truth[0] else 1 if point < truth[0] + truth[1] else 2
    return SampleRow(
        id=-1,
        split=split,
        models=(models[0], models[1]),
        prompt=tuple(task.prompt for task in tasks),
        answers=(tuple(turn.text for turn in answers[0]), tuple(turn.text for turn in answers[1])),
        qualities=(qualities[0], qualities[1]),
        truth=truth,
        label=label,
        languages=tuple(task.language for task in tasks),
        escaped=draw.chance(0.5),
    )


def _other_spelling(task: Task, draw: Draw) -> Task:
    spelling: Callable[[str], str] = draw.pick(
        (
            str.upper,
            str.lower,
            lambda p: p.replace(" ", "  "),
            lambda p: f" {p}\n",
            lambda p: p.swapcase().replace(" ", "\t", 1),
        )
    )
    return replace(task, prompt=spelling(task.prompt))


def generate(seed: int = 42, split_rows: Mapping[str, int] = SPLIT_ROWS) -> list[SampleRow]:
    """All rows of all splits, ordered by split and id; equal seeds and sizes give equal rows.

    Rows of ``ultrafeedback_ties`` are pairs from the same process that were kept only when their vote was a tie.
    """
    draw = Draw(seed)
    maker = PromptMaker(draw)
    group_sizes = {"train": ((1, 0.45), (2, 0.3), (3, 0.15), (4, 0.1)), "test": ((1, 0.8), (2, 0.2))}
    rows: list[SampleRow] = []
    english: list[Task] = []
    for split, count in split_rows.items():
        made: list[SampleRow] = []
        if split == "ultrafeedback":
            made = [draw_row(split, [_other_spelling(task, draw)], draw) for task in draw.take(english, REWORDED_ROWS)]
        while len(made) < count:
            tasks = maker.fresh()
            if split == "train" and len(tasks) == 1 and tasks[0].language == "en":
                english.append(tasks[0])
            pairs = [
                draw_row(split, tasks, draw) for _ in range(draw.weighted(group_sizes.get(split, group_sizes["test"])))
            ]
            made += [row for row in pairs if row.label == 2 or split != "ultrafeedback_ties"]
        rows += draw.take(made[:count], count)
    return _with_ids(rows, draw)


def _with_ids(rows: Sequence[SampleRow], draw: Draw) -> list[SampleRow]:
    """Different ids, ascending within a split as in the original files."""
    ids: set[int] = set()
    while len(ids) < len(rows):
        ids.add(draw.between(10_000, 4_294_967_295))
    shuffled = draw.take(sorted(ids), len(ids))
    numbered: list[SampleRow] = []
    for split in SPLIT_ROWS:
        part = [row for row in rows if row.split == split]
        own, shuffled = sorted(shuffled[: len(part)]), shuffled[len(part) :]
        numbered += [replace(row, id=number) for row, number in zip(part, own, strict=True)]
    return numbered


# --- files -------------------------------------------------------------------------------------------------------


def write_sample(out_dir: Path, seed: int = 42, split_rows: Mapping[str, int] = SPLIT_ROWS) -> list[SampleRow]:
    """Writes all sample files into ``out_dir`` (each by rename) and returns the rows."""
    rows = generate(seed, split_rows)
    out_dir.mkdir(parents=True, exist_ok=True)
    for split in SPLIT_ROWS:
        part = [row for row in rows if row.split == split]
        if split == "test":
            _write_csv(out_dir / "test.csv", ["id", *TEXT_COLUMNS], ([row.id, *_texts(row)] for row in part))
            _write_csv(
                out_dir / "test_labels.csv", ["id", *PROBABILITY_COLUMNS], ([row.id, *_one_hot(row)] for row in part)
            )
        else:
            header = ["id", "model_a", "model_b", *TEXT_COLUMNS, *PROBABILITY_COLUMNS]
            lines = ([row.id, *row.models, *_texts(row), *_one_hot(row)] for row in part)
            _write_csv(out_dir / f"{split}.csv", header, lines)
    replace_file(
        out_dir / "truth.parquet",
        lambda path: pq.write_table(truth_table(rows), path, compression="zstd", version="2.6"),
    )
    return rows


def truth_table(rows: Sequence[SampleRow]) -> pa.Table:
    """The law behind the votes: one line a row, probabilities rounded to 12 decimals (equal on every platform)."""
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "id": (pa.int64(), [row.id for row in rows]),
        "split": (pa.string(), [row.split for row in rows]),
        "p_model_a": (pa.float64(), [round(row.truth[0], 12) for row in rows]),
        "p_model_b": (pa.float64(), [round(row.truth[1], 12) for row in rows]),
        "p_tie": (pa.float64(), [round(row.truth[2], 12) for row in rows]),
        "quality_a": (pa.float64(), [row.qualities[0] for row in rows]),
        "quality_b": (pa.float64(), [row.qualities[1] for row in rows]),
        "label": (pa.int8(), [row.label for row in rows]),
    }
    return pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()})


def _texts(row: SampleRow) -> list[str]:
    turns = (row.prompt, *row.answers)
    return [json.dumps(list(text), ensure_ascii=row.escaped, separators=(",", ":")) for text in turns]


def _one_hot(row: SampleRow) -> list[int]:
    return [int(row.label == k) for k in range(3)]


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(lines)

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Writes under a temporary name in the same directory, then renames."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def summary(rows: Sequence[SampleRow]) -> str:
    """A Markdown table, one line a split: class shares and three log losses in nats.

    Bayes expected: mean entropy of the truth. Bayes realised: log loss of the truth on the votes as drawn.
    Prior: log loss of the train split's class shares on the split's votes.
    """
    prior = _class_shares([row for row in rows if row.split == "train"])
    lines = [
        "| split | rows | A | B | tie | Bayes expected | Bayes realised | prior |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for split in SPLIT_ROWS:
        part = [row for row in rows if row.split == split]
        expected = -math.fsum(p * math.log(p) for row in part for p in row.truth) / len(part)
        realised = -math.fsum(math.log(row.truth[row.label]) for row in part) / len(part)
        constant = -math.fsum(math.log(prior[row.label]) for row in part) / len(part)
        figures = " | ".join(f"{value:.3f}" for value in (*_class_shares(part), expected, realised, constant))
        lines.append(f"| {split} | {len(part)} | {figures} |")
    return "\n".join(lines)


def _class_shares(rows: Sequence[SampleRow]) -> list[float]:
    return [sum(row.label == k for row in rows) / len(rows) for k in range(3)]

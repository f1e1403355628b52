"""Questions of the sample data, each with the true and the false statements that an answer may hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from arena_distill.data import sample_texts as texts

T = TypeVar("T")


class Draw:
    """Random choices built on ``random.Random.random`` alone, whose stream Python keeps equal across versions."""

    def __init__(self, seed: int):
        self._unit = random.Random(seed).random

    def unit(self) -> float:
        """A float in [0, 1)."""
        return self._unit()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._unit() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self._unit() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self._unit() * len(items))]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One item of (item, weight) pairs."""
        point = self._unit() * sum(weight for _, weight in items)
        for item, weight in items:
            point -= weight
            if point < 0:
                return item
        return items[-1][0]

    def take(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items in random order (Fisher-Yates)."""
        pool = list(items)
        for i in range(count):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]


@dataclass(frozen=True)
class Part:
    """One thing that a full answer says: equivalent true wordings and false ones."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A question with what its full answer consists of.

    Attributes:
        prompt: the user's turn.
        language: key of ``sample_texts.BANKS``.
        layout: ``plain``, ``list`` (the parts as list items) or ``code`` (the first part is code).
        parts: at least two, in order.
        core: the short answer as (true, false), or None where no short answer exists.
        details: true remarks that make an answer longer and a bit more useful.
        core_parts: how many of the parts the short answer settles.
    """

    prompt: str
    language: str
    layout: str
    parts: tuple[Part, ...]
    core: tuple[str, str] | None
    details: tuple[str, ...] = ()
    core_parts: int = 1


def build_task(draw: Draw) -> Task:
    """A random question of a random family."""
    return draw.weighted(FAMILIES)(draw)


def _ask(draw: Draw, question: str) -> str:
    return draw.pick(texts.PROMPT_LEADS) + question


def _near(draw: Draw, number: int) -> int:
    """A wrong number that looks like the right one."""
    return number + draw.pick([step for step in (-20, -11, -10, -2, -1, 1, 2, 9, 10, 11, 20, 100) if number + step > 0])


def _arithmetic(draw: Draw) -> Task:
    sign = draw.pick(("+", "-", "*"))
    a, b = draw.between(23, 480), draw.between(3, 96)
    if sign == "*":
        a, b = draw.between(6, 49), draw.between(3, 19)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    undo = {"+": "-", "-": "+", "*": "/"}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    false, off = _near(draw, result), _near(draw, result)
    said = ("{a} {sign} {b} = {r}.", "{a} {word} {b} equals {r}.", "The result of {a} {sign} {b} is {r}.", "It is {r}.")
    fill = {"a": a, "b": b, "sign": sign, "word": word}
    question = draw.pick(
        (
            f"What is {a} {sign} {b}? Please show how to check it.",
            f"Calculate {a} {word} {b} and verify the result.",
            f"how much is {a} {word} {b}, and how can I check that?",
        )
    )
    details = {
        "+": ("Adding the tens first and the ones afterwards makes it easy to do in your head.",),
        "-": ("Subtracting the tens first and the ones afterwards makes it easy to do in your head.",),
        "*": ("Splitting the first factor into tens and ones makes it easy to do in your head.",),
    }[sign]
    return Task(
        _ask(draw, question),
        "en",
        "plain",
        (
            Part(tuple(s.format(r=result, **fill) for s in said), tuple(s.format(r=false, **fill) for s in said)),
            Part(
                (f"To check: {result} {undo} {b} = {a}.", f"Going backwards, {result} {undo} {b} gives {a} again."),
                (f"To check: {off} {undo} {b} = {a}.", f"Going backwards, {off} {undo} {b} gives {a} again."),
            ),
        ),
        (str(result), str(false)),
        (*details, "A rough estimate beforehand protects you from slips."),
    )


def _shopping(draw: Draw) -> Task:
    who, item = draw.pick(texts.PEOPLE), draw.pick(texts.ITEMS)
    count, price = draw.between(3, 14), draw.between(2, 12)
    cost = count * price
    paid = (cost // 50 + 1) * 50
    change = paid - cost
    false_cost, false_change = _near(draw, cost), _near(draw, change)
    return Task(
        _ask(
            draw,
            f"{who} buys {count} {item} at {price} dollars each and pays with {paid} dollars. "
            "How much do they cost, and how much change is there?",
        ),
        "en",
        "plain",
        (
            Part(
                (f"The {item} cost {count} * {price} = {cost} dollars.", f"In total {who} has to pay {cost} dollars."),
                (
                    f"The {item} cost {count} * {price} = {false_cost} dollars.",
                    f"In total {who} has to pay {false_cost} dollars.",
                ),
            ),
            Part(
                (f"The change is {change} dollars.", f"{who} gets {change} dollars back."),
                (f"The change is {false_change} dollars.", f"{who} gets {false_change} dollars back."),
            ),
        ),
        (f"{change} dollars", f"{false_change} dollars"),
        ("First multiply the number of pieces by the price of one.", "Then subtract the total from the amount paid."),
    )


def _units(draw: Draw) -> Task:
    big, small, factor = draw.pick(texts.UNITS)
    count = draw.between(3, 60)
    result, false = count * factor, count * factor + draw.pick((-1, 1)) * draw.pick((1, 2, 5)) * max(1, factor // 2)
    false_factor = draw.pick([f for _, _, f in texts.UNITS if f != factor])
    return Task(
        _ask(
            draw,
            draw.pick(
                (
                    f"How many {small} are there in {count} {big}? Give the rule too.",
                    f"Convert {count} {big} to {small} and explain the rule.",
                )
            ),
        ),
        "en",
        "plain",
        (
            Part(
                (f"{count} {big} are {result} {small}.", f"That makes {result} {small}."),
                (f"{count} {big} are {false} {small}.", f"That makes {false} {small}."),
            ),
            Part(
                (f"Multiply the number of {big} by {factor}.",), (f"Multiply the number of {big} by {false_factor}.",)
            ),
        ),
        (f"{result} {small}", f"{false} {small}"),
        (f"To go back from {small} to {big}, divide by the same number.",),
    )


def _sorting(draw: Draw) -> Task:
    numbers = draw.take(range(10, 400), draw.between(4, 7))
    ordered = sorted(numbers)
    slip = draw.between(0, len(numbers) - 2)
    false = list(ordered)
    false[slip], false[slip + 1] = false[slip + 1], false[slip]
    right, wrong = (", ".join(map(str, values)) for values in (ordered, false))
    return Task(
        _ask(
            draw,
            "Sort these numbers from smallest to largest and tell me the difference between the ends: "
            + ", ".join(map(str, numbers)),
        ),
        "en",
        "plain",
        (
            Part(
                (f"In ascending order: {right}.", f"Sorted, they are {right}."),
                (f"In ascending order: {wrong}.", f"Sorted, they are {wrong}."),
            ),
            Part(
                (f"The largest minus the smallest is {ordered[-1] - ordered[0]}.",),
                (f"The largest minus the smallest is {_near(draw, ordered[-1] - ordered[0])}.",),
            ),
        ),
        (right, wrong),
        (f"The smallest number is {ordered[0]}.", f"The largest number is {ordered[-1]}."),
    )


def _capital(draw: Draw) -> Task:
    country, capital, city, continent, currency = draw.pick(texts.COUNTRIES)
    elsewhere = draw.pick(sorted({row[3] for row in texts.COUNTRIES} - {continent}))
    money = draw.pick(sorted({row[4] for row in texts.COUNTRIES} - {currency}))
    named = ("The capital of {x} is {c}.", "{c} is the capital of {x}.")
    placed = ("The country lies in {c}.", "{x} is part of {c}.")
    paid = ("People pay with {c}.", "The currency is {c}.")

    def part(said: tuple[str, ...], right: str, wrong: str) -> Part:
        return Part(
            tuple(s.format(x=country, c=right) for s in said), tuple(s.format(x=country, c=wrong) for s in said)
        )

    return Task(
        _ask(draw, draw.pick(texts.CAPITAL_PROMPTS).format(x=country)),
        "en",
        "plain",
        (part(named, capital, city), part(placed, continent, elsewhere), part(paid, currency, money)),
        (capital, city),
        ("Any good atlas lists all three of these.", "Flash cards are a nice way to remember facts of this kind."),
    )


def _translation(draw: Draw) -> Task:
    language = draw.pick(sorted(texts.WORDS))
    words = texts.WORDS[language]
    chosen = draw.take(sorted(words), draw.between(2, 4))
    false = draw.take(sorted(set(words) - set(chosen)), len(chosen))
    said = ("The {l} word for '{e}' is '{w}'.", "'{e}' is '{w}' in {l}.")
    parts = tuple(
        Part(
            tuple(s.format(l=language, e=english, w=words[english]) for s in said),
            tuple(s.format(l=language, e=english, w=words[other]) for s in said),
        )
        for english, other in zip(chosen, false, strict=True)
    )
    quoted = ", ".join(f"'{word}'" for word in chosen)
    right, wrong = (", ".join(words[word] for word in group) for group in (chosen, false))
    question = draw.pick(
        ("How do you say {q} in {l}?", "Translate these words into {l}: {q}", "I need the {l} words for {q}.")
    )
    return Task(
        _ask(draw, question.format(q=quoted, l=language)), "en", "plain", parts, (right, wrong), core_parts=len(parts)
    )


def _chronology(draw: Draw) -> Task:
    events = draw.take(texts.EVENTS, draw.between(3, 5))
    parts = tuple(
        Part((f"{year}: {event}",), (f"{year + draw.pick((-31, -12, -5, 4, 8, 23))}: {event}",))
        for year, event in sorted(events)
    )
    question = "Put these events in chronological order, as a list with the years: " + "; ".join(
        event for _, event in events
    )
    return Task(_ask(draw, question), "en", "list", parts, None)


def _topic(draw: Draw) -> Task:
    what = draw.pick(sorted(texts.TOPICS))
    parts = tuple(Part((right,), (wrong,)) for right, wrong in texts.TOPICS[what])
    return Task(_ask(draw, draw.pick(texts.TOPIC_PROMPTS).format(what=what)), "en", "plain", parts, None)


def _tips(draw: Draw) -> Task:
    what = draw.pick(sorted(texts.TIPS))
    good, bad = texts.TIPS[what]
    count = draw.between(3, 5)
    parts = tuple(Part((tip,), bad) for tip in draw.take(good, count))
    details = (
        "Start with the one that seems easiest to you.",
        "Small steps that you keep up matter more than big plans.",
    )
    return Task(_ask(draw, draw.pick(texts.TIP_PROMPTS).format(n=count, what=what)), "en", "list", parts, None, details)


def _code(draw: Draw) -> Task:
    what, right, wrong, remark, false_remark = draw.pick(texts.CODE)
    details = (
        "You can paste it into a file and import the function from there.",
        "Try it with a few small inputs first.",
    )
    question = draw.pick(texts.CODE_PROMPTS).format(what=what)
    return Task(
        _ask(draw, question), "en", "code", (Part((right,), (wrong,)), Part((remark,), (false_remark,))), None, details
    )


def _email(draw: Draw) -> Task:
    role, who = draw.pick(texts.ROLES), draw.pick(texts.PEOPLE)
    before, after, other = draw.take(texts.DAYS, 3)
    hour = draw.between(8, 17)
    parts = (
        Part(
            (f"Dear {role}, I am writing about our meeting on {before}.",),
            (f"Dear {role}, I am writing about our meeting on {other}.",),
        ),
        Part(
            (
                f"Would it be possible to move it to {after} at {hour}:00?",
                f"Could we meet on {after} at {hour}:00 instead?",
            ),
            (
                f"Would it be possible to move it to {other} at {hour}:00?",
                f"Could we meet on {after} at {hour - 3}:00 instead?",
            ),
        ),
        Part(
            (f"Kind regards, {who}",), (f"Kind regards, {draw.pick([name for name in texts.PEOPLE if name != who])}",)
        ),
    )
    request = f"move our meeting from {before} to {after} at {hour}:00"
    question = f"Write a short polite email to my {role}: {request}. My name is {who}."
    return Task(_ask(draw, question), "en", "plain", parts, None)


def _foreign(draw: Draw) -> Task:
    language = draw.pick(sorted(texts.PHRASES))
    phrases = texts.PHRASES[language]
    kind = draw.weighted((("sum", 0.5), ("capital", 0.4), ("topic", 0.1)))
    if kind == "topic":
        prompts, facts = draw.pick(phrases.topics)
        return Task(draw.pick(prompts), language, "plain", tuple(Part((r,), (w,)) for r, w in facts), None)
    if kind == "capital":
        pair = draw.take(phrases.countries, 2)
        parts = tuple(
            Part(
                tuple(s.format(x=country, c=capital) for s in phrases.capital_statements),
                tuple(s.format(x=country, c=city) for s in phrases.capital_statements),
            )
            for country, capital, city in pair
        )
        prompt = draw.pick(phrases.capital_prompts).format(x=pair[0][0], y=pair[1][0])
        core = (f"{pair[0][1]} / {pair[1][1]}", f"{pair[0][2]} / {pair[1][2]}")
        return Task(prompt, language, "plain", parts, core, core_parts=2)
    a, b = draw.between(12, 480), draw.between(12, 96)
    false, off = _near(draw, a + b), _near(draw, a + b)
    parts = (
        Part(
            tuple(t.format(a=a, b=b, s=a + b) for t in phrases.sum_statements),
            tuple(t.format(a=a, b=b, s=false) for t in phrases.sum_statements),
        ),
        Part(
            tuple(t.format(a=a, b=b, s=a + b) for t in phrases.check_statements),
            tuple(t.format(a=a, b=b, s=off) for t in phrases.check_statements),
        ),
    )
    return Task(draw.pick(phrases.sum_prompts).format(a=a, b=b), language, "plain", parts, (str(a + b), str(false)))


FAMILIES: tuple[tuple[Callable[[Draw], Task], float], ...] = (
    (_arithmetic, 0.12),
    (_shopping, 0.08),
    (_units, 0.07),
    (_sorting, 0.06),
    (_capital, 0.10),
    (_translation, 0.08),
    (_chronology, 0.06),
    (_topic, 0.10),
    (_tips, 0.11),
    (_code, 0.07),
    (_email, 0.06),
    (_foreign, 0.15),
)
"""Question families with their weights."""

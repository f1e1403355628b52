"""Label words: each is one token of the tokenizer that will read it, by the rule of ``models/label_tokens.py``.

That module imports torch. Here the tokenizers library reads ``tokenizer.json``; tokenizers that have none are read by
transformers, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arena_distill.conversion.quantize_job import VOCABULARIES
from arena_distill.data.records import CLASSES
from arena_distill.pipeline.preflight_chain import steps
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.pipeline.preflight_models import Models
from arena_distill.runtime.errors import EXIT_BAD_SETTINGS, InputError

LABELS = Topic("label tokens", EXIT_BAD_SETTINGS)

_SECONDS = 60.0  # for transformers to be imported on a slow disk
_SETTINGS = {1: "POSTPRE_LABEL_WORDS", 3: "TEACHER_LABEL_WORDS"}
_CODE = """
import json, sys
from arena_distill.models.classifier import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in sys.argv[2:]]
print(json.dumps([pieces, tokenizer.unk_token_id]))
"""


def check_labels(models: Models) -> Iterator[Finding]:
    """Every label word of every model that speaks its verdict; models with one tokenizer together."""
    asked: dict[tuple[Path, tuple[str, ...]], list[int]] = {}
    for name, uses in models.uses.items():
        model = models.get(name)
        tokenizer = model.tokenizer or model.directory
        for use in uses:
            if not use.label_words:
                continue
            words = ", ".join(use.label_words)
            if tokenizer is not None and any(file for kind in VOCABULARIES for file in tokenizer.glob(kind)):
                asked.setdefault((tokenizer, use.label_words), []).append(use.step)
            elif tokenizer is not None:
                continue  # that there is none is said with the models
            elif model.made_by:
                yield LABELS.ok(_subject([use.step]), f"{words}: {name} has its tokenizer from step {model.made_by}")
            else:
                yield LABELS.warning(
                    _subject([use.step]), f"{words}: the tokenizer of {name} is not on this machine, so nobody looked",
                    f"`hf download {name} --include 'tokenizer*'` and give the command again",
                )  # fmt: skip
    for (tokenizer, chosen), numbers in asked.items():
        subject = _subject(numbers)
        yield from guarded(LABELS, subject, partial(_one_token_each, subject, tokenizer, chosen))


def _subject(numbers: Sequence[int]) -> str:
    return f"{', '.join(_SETTINGS[number] for number in sorted(set(numbers)))} ({steps(list(numbers))})"


def _one_token_each(subject: str, tokenizer: Path, words: Sequence[str]) -> Iterator[Finding]:
    pieces, unknown = label_pieces(tokenizer, words)
    ids = []
    for word, label, found in zip(words, CLASSES, pieces, strict=True):
        if len(found) != 1 or found[0] == unknown:
            what = f"{len(found)} tokens" if len(found) != 1 else "unknown"
            yield LABELS.fix(
                subject, f"the word {word!r} for {label} is {what} to the tokenizer in {tokenizer}",
                "choose three words that are one token each",
            )  # fmt: skip
        ids += found
    if all(len(found) == 1 for found in pieces) and unknown not in ids:
        if len(set(ids)) < len(ids):
            yield LABELS.fix(
                subject, f"the words {', '.join(words)} share a token in {tokenizer}", "choose three that differ"
            )
        else:
            shown = ", ".join(f"{word} = {token}" for word, token in zip(words, ids, strict=True))
            yield LABELS.ok(subject, f"one token each in {tokenizer}: {shown}")


def label_pieces(directory: Path, words: Sequence[str]) -> tuple[list[list[int]], int | None]:
    """Token ids of each word, without special tokens, and the id of the unknown token.

    Raises:
        InputError: the tokenizer cannot be read.
    """
    file = directory / "tokenizer.json"
    if file.is_file():
        return _with_tokenizers(file, words)
    command = [sys.executable, "-c", _CODE, str(directory), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        pieces, unknown = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        reason = "no answer" if isinstance(error, subprocess.TimeoutExpired) else _last_line(done.stderr)
        raise InputError(
            f"{directory}: its tokenizer cannot be read ({reason}) -> copy the model's tokenizer files again"
        ) from error
    return pieces, unknown


def _with_tokenizers(file: Path, words: Sequence[str]) -> tuple[list[list[int]], int | None]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{file}: cannot be read ({error}) -> copy the model's tokenizer files again") from error
    pieces = [list(tokenizer.encode(word, add_special_tokens=False).ids) for word in words]
    unknown = _unknown_token(file.parent)
    return pieces, None if unknown is None else tokenizer.token_to_id(unknown)


def _unknown_token(directory: Path) -> str | None:
    """The unknown token by its text: of the configuration, as transformers takes it, else of the model."""
    for name, path in (("tokenizer_config.json", ("unk_token",)), ("tokenizer.json", ("model", "unk_token"))):
        try:
            value: Any = json.loads((directory / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1][:200]

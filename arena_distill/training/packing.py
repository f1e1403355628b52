"""Next-token training data: prompt and preferred answer of each row, one after the other, cut into full sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from arena_distill.data.prompts import tokenize_rows
from arena_distill.data.records import Rows, targets
from arena_distill.runtime.errors import InputError

HEADINGS = ("Prompt:\n", "\n\nResponse:\n")


def pack_preferred(rows: Rows, tokenizer: Any, max_length: int) -> np.ndarray:
    """Token ids of prompt + preferred answer, each document ended by the end-of-text token, in blocks.

    Rows that nobody's answer won (ties) are left out. As is usual in pretraining, attention crosses from one document
    of a block to the next, and what does not fill the last block is dropped, unless it is all there is.

    Args:
        rows: canonical rows with votes.
        tokenizer: of the model; must have an end-of-text token.
        max_length: tokens a block.

    Returns:
        int64 ``[blocks, max_length]`` (shorter if there is only one block).

    Raises:
        InputError: the tokenizer has no end-of-text token, or no row has a preferred answer.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token -> add one to it")
    tokens = tokenize_rows(rows, tokenizer)
    before = [np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in HEADINGS]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    winner = targets(rows).argmax(axis=1)
    documents = [
        np.concatenate(
            [start, before[0], tokens.texts[tokens.index[row, 0]], before[1],
             tokens.texts[tokens.index[row, 1 + winner[row]]], [tokenizer.eos_token_id]]
        )
        for row in np.flatnonzero(winner < 2)
    ]  # fmt: skip
    if not documents:
        raise InputError("every row is a tie, so no answer is preferred -> use POSTPRE_OBJECTIVE=preference")
    stream = np.concatenate(documents).astype(np.int64)
    blocks = len(stream) // max_length
    return stream[: blocks * max_length].reshape(blocks, max_length) if blocks else stream[None]


class PackedTokens(Dataset):
    """Blocks of token ids ``[N, L]`` for the Trainer."""

    def __init__(self, blocks: np.ndarray) -> None:
        self.blocks = torch.from_numpy(np.ascontiguousarray(blocks))

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each block, ``[N]``."""
        return np.full(len(self), self.blocks.shape[1])

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.blocks[row]


def collate_packed(items: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs and labels, int64 ``[B, L]``; a causal LM shifts the labels itself."""
    ids = torch.stack(list(items))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

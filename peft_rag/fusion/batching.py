"""Encoded examples into the tensors of one batch.

Dims: B examples, I inputs (I = B unless an example holds several), R decisions (R = B where each example takes one), T
tokens, P pools of all inputs, K neighbours of an example at most, V of a neighbour's vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peft_rag.fusion.base import MORE, PASSAGES, READ, SCORES, VECTORS
from peft_rag.tasks.base import CHOICE_LENGTH, GOLD, POOLS

PASSAGE_ROWS = "passage_rows"
"""Which answers belong to each decision, one for each input of its example, ``(R, K)``; -1 where it has fewer."""

PASSAGE_SCORES = "passage_scores"
"""The similarities of these inputs, ``(R, K)``; -inf where it has fewer."""

PASSAGE_EXAMPLES = "passage_examples"
"""The example that each decision is on, ``(R,)``."""

POOL_INPUTS = "pool_inputs"
"""The input that each pool is of, ``(P,)``; the pools of a decision stand after each other."""

POOL_TOKENS = "pool_tokens"
"""The tokens of each pool, ``(P, …)``; -1 where it has fewer."""

ENCODER_ROWS = "encoder_rows"
"""The inputs of the encoder that the decoder reads together for each example, ``(B, K)``; -1 where it has fewer."""

NEIGHBOUR_VECTORS = "neighbour_vectors"
"""Vectors of each example's neighbours, ``(B, K, V)``; 0 where it has fewer."""

NEIGHBOUR_MASK = "neighbour_mask"
"""1 for a neighbour, 0 where an example has fewer, ``(B, K)``."""

CHOICE_INPUTS = "choice_inputs"
"""The input of each choice of each reading of a question, ``(M, C)``; -1 where it has fewer."""

CHOICE_LENGTHS = "choice_lengths"
"""What their log-probabilities are divided by, ``(M, C)``; 1 where it has fewer."""

TEACHER = "teacher_"
"""Key of an encoded example's other reading, from which the fusion learns while it trains; in a batch what the names of
the tensors of all of these begin with."""

TAUGHT = "taught"
"""Decisions of the batch on examples that have such a reading, in the order of the decisions on the readings."""

_WHOLE = {"labels", CHOICE_LENGTH, GOLD, MORE, PASSAGES, POOLS, READ, SCORES, TEACHER, VECTORS}


def inputs_of(row: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the inputs of an encoded example: itself and its other pieces, or those it holds with theirs."""
    return [one for reading in _readings(row) for one in (reading, *reading.get(MORE, ()))]


def _readings(row: dict[str, Any]) -> Sequence[dict[str, Any]]:
    readings: Sequence[dict[str, Any]] = row.get(PASSAGES, (row,))
    return readings


def tokens_in(row: dict[str, Any]) -> int:
    """Return the tokens that an encoded example makes the backbone read, padding not counted."""
    return sum(len(one["input_ids"]) for one in inputs_of(row))


def collate(rows: Sequence[dict[str, Any]], padding: int, *, left: bool = False) -> dict[str, Tensor]:
    """Make one batch: inputs padded to their longest, and what belongs to whole examples.

    Padding stands on the right whatever the tokenizer prefers, so that on every architecture positions count from an
    input's first token and its answer does not depend on its batch.

    Args:
        rows: encoded examples, as `peft_rag.fusion.base.Fusion.encode` describes them; with ``labels`` or without.
        padding: token id.
        left: pad on the left all the same: a text is written that goes on where all inputs must end.
    """
    inputs = [one for row in rows for one in inputs_of(row)]
    batch = {}
    for name in inputs[0].keys() - _WHOLE:
        filler = padding if name in ("input_ids", "decoder_input_ids") else 0
        width = max(1, *(len(one[name]) for one in inputs))
        filled = [[filler] * (width - len(one[name])) for one in inputs]
        pairs = zip(filled, inputs, strict=True)
        batch[name] = torch.tensor([fill + one[name] if left else one[name] + fill for fill, one in pairs])
    if POOLS in inputs[0]:
        batch |= _pools(inputs)
    if CHOICE_LENGTH in inputs[0]:
        batch |= _choices([(one, *one.get(MORE, ())) for row in rows for one in _readings(row)])
    if GOLD in inputs[0]:
        batch[GOLD] = torch.tensor([token for one in inputs for token in one[GOLD]])
    if "labels" in rows[0]:
        batch["labels"] = torch.cat([row["labels"] for row in rows])
    if any(PASSAGES in row for row in rows):
        batch |= passages_of(rows)
    if any(VECTORS in row for row in rows):
        batch |= _vectors(rows)
    if any(TEACHER in row for row in rows):
        batch |= _teachers(rows, padding)
    return batch


def _pools(inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    pools = [(place, pool) for place, one in enumerate(inputs) for decision in one[POOLS] for pool in decision]
    tokens = torch.full((len(pools), max([1, *(len(pool) for _, pool in pools)])), -1)
    for row, (_, pool) in enumerate(pools):
        tokens[row, : len(pool)] = torch.tensor(pool, dtype=torch.long)
    return {POOL_INPUTS: torch.tensor([place for place, _ in pools], dtype=torch.long), POOL_TOKENS: tokens}


def _choices(readings: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Tensor]:
    """Say which input ends with which choice, and what each is divided by."""
    shape = len(readings), max(map(len, readings))
    places, lengths = torch.full(shape, -1), torch.ones(shape)
    begin = 0
    for row, inputs in enumerate(readings):
        places[row, : len(inputs)] = torch.arange(begin, begin + len(inputs))
        lengths[row, : len(inputs)] = torch.tensor([float(one[CHOICE_LENGTH]) for one in inputs])
        begin += len(inputs)
    return {CHOICE_INPUTS: places, CHOICE_LENGTHS: lengths}


def passages_of(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Say which answers are to which decision; an example without passages has one answer, of score 0."""
    table: list[list[int]] = []
    padded: list[list[float]] = []
    owners: list[int] = []
    begin = 0
    for example, row in enumerate(rows):
        readings = _readings(row)
        several = POOLS in readings[0] and CHOICE_LENGTH not in readings[0]
        decisions = len(readings[0][POOLS]) if several else 1
        scores = row[SCORES] if PASSAGES in row else [0.0]
        for decision in range(decisions):
            table.append([begin + decision + number * decisions for number in range(len(readings))])
            padded.append(list(scores))
            owners.append(example)
        begin += decisions * len(readings)
    most = max(map(len, table))
    return {
        PASSAGE_EXAMPLES: torch.tensor(owners),
        PASSAGE_ROWS: torch.tensor([row + [-1] * (most - len(row)) for row in table]),
        PASSAGE_SCORES: torch.tensor([row + [-math.inf] * (most - len(row)) for row in padded]),
    }


def _vectors(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack the neighbours' vectors; an example without any still has one place, masked."""
    given = [torch.as_tensor(row[VECTORS]) if VECTORS in row else torch.zeros(0) for row in rows]
    size = max(vectors.shape[-1] for vectors in given)
    padded = torch.zeros(len(rows), max(1, *map(len, given)), size)
    mask = torch.zeros(padded.shape[:2], dtype=torch.long)
    for place, vectors in enumerate(given):
        padded[place, : len(vectors)] = vectors.reshape(-1, size)
        mask[place, : len(vectors)] = 1
    return {NEIGHBOUR_VECTORS: padded, NEIGHBOUR_MASK: mask}


def _teachers(rows: Sequence[dict[str, Any]], padding: int) -> dict[str, Tensor]:
    """Join the other readings of those examples that have one."""
    counts = [len(row[POOLS]) if POOLS in row else 1 for row in rows]
    taught = [TEACHER in row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    readings = collate([row[TEACHER] for row in rows if TEACHER in row], padding)
    return {TAUGHT: torch.tensor(taught).nonzero().squeeze(-1)} | {
        f"{TEACHER}{name}": tensor for name, tensor in readings.items()
    }

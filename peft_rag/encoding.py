"""Examples into what the backbone reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peft_rag.decisions import Decisions
from peft_rag.fusion.base import Fusion, Reader, Split, encode_inputs

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Example


def encode_split(model: RetrievalAugmentedModel, split: Split, fusion: Fusion | None) -> list[dict[str, Any]]:
    """Tokenise a split as a fusion reads it, `RetrievalAugmentedModel.effective_fusion` where None.

    Labelled examples carry the targets of their decisions as ``labels``. Texts beyond the window are condensed first
    where the active adapter has learned how (`long_inputs`). Where a decoder writes its answer after the input, the
    window leaves room for it.
    """
    split, reader, task, knowledge = _condensed(model, split), _reader(model), model.task, model.knowledge
    rows = (fusion or model.effective_fusion).encode(split, knowledge.corpus if knowledge else None, reader)
    if split.examples and all(example.labels is not None for example in split.examples):
        targets, decisions = task.targets(split.examples), Decisions.on(task, split.examples)
        for number, row in enumerate(rows):
            row["labels"] = targets[decisions.take([number])]
    return rows


def check_readable(model: RetrievalAugmentedModel, examples: Sequence[Example]) -> None:
    """Raise `DataError` where an example by itself does not fit into the window as the task must read it."""
    reader = _reader(model)
    # Beside a prompt that is written on, neighbours give way to it.
    room = reader.max_length - (0 if reader.writes_on else model.effective_fusion.room_taken)
    encode_inputs(_condensed(model, Split(examples)), replace(reader, max_length=room))


def _condensed(model: RetrievalAugmentedModel, split: Split) -> Split:
    if model.adapter not in model.long_inputs:
        return split
    bar = "chunks" if model.progress_bars and len(split) > 1 else None
    return replace(split, examples=model.long_inputs[model.adapter].read(split.examples, bar))


def _reader(model: RetrievalAugmentedModel) -> Reader:
    task, start, room = model.task, model.decoder_start, model.max_length
    if start is None:
        room -= task.answer_tokens
    embed = model.knowledge.embed if model.knowledge else None
    return Reader(model.tokenizer, room, model.source.is_causal and start is None, embed, task, start)

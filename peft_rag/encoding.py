"""Examples into what the backbone reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peft_rag.decisions import Decisions
from peft_rag.fusion.base import Fusion, Reader, Split
from peft_rag.tasks.generation import Generation

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel


def encode_split(model: RetrievalAugmentedModel, split: Split, fusion: Fusion | None) -> list[dict[str, Any]]:
    """Tokenise a split as a fusion reads it, `RetrievalAugmentedModel.effective_fusion` where None.

    Labelled examples carry the targets of their decisions as ``labels``. Texts beyond the window are condensed first
    where the active adapter has learned how (`long_inputs`). Where a decoder writes its answer after the input, the
    window leaves room for it.
    """
    if model.adapter in model.long_inputs:
        bar = "chunks" if model.progress_bars and len(split) > 1 else None
        split = replace(split, examples=model.long_inputs[model.adapter].read(split.examples, bar))
    task, start, room = model.task, model.decoder_start, model.max_length
    if isinstance(task, Generation) and start is None:
        room -= task.target_length
    knowledge = model.knowledge
    embed = knowledge.embed if knowledge else None
    reader = Reader(model.tokenizer, room, model.source.is_causal and start is None, embed, task, start)
    rows = (fusion or model.effective_fusion).encode(split, knowledge.corpus if knowledge else None, reader)
    if split.examples and all(example.labels is not None for example in split.examples):
        targets, decisions = task.targets(split.examples), Decisions.on(task, split.examples)
        for number, row in enumerate(rows):
            row["labels"] = targets[decisions.take([number])]
    return rows

"""Neighbours as contexts that an answer is taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import MORE, READ, Memory, Outputs, Reader, Shown, Split, cut_inputs
from peft_rag.fusion.reading import NearestFusion, neighbours_of
from peft_rag.tasks.open_contexts import shares

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class ContextsFusion(NearestFusion):
    """Neighbours that hold the answer: p(s, e|x, z_1 … z_k) over the words of all of them, each read by itself.

    Every passage stands beneath the question in an input of its own, or in several where it is long, and one softmax
    runs over the words of all inputs, so that passages compete and nothing is joined afterwards. A neighbour's weight
    is the probability that the answer lies in it.

    Source: Chen et al. 2017, arXiv:1704.00051 (a reader over retrieved passages); one softmax over all of them: Clark
    & Gardner 2018, arXiv:1710.10723, section 3.2.

    Attributes:
        k: passages read at most.
    """

    name: ClassVar[str] = "contexts"

    @property
    def opens(self) -> bool:
        return True

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of(self.name, split, corpus)
        if reader.task is None or not reader.task.opens:
            raise ConfigError(
                "fusion 'contexts' gives contexts to a task that takes its answers from them, which this one does not: "
                "the task question-answering with --task.retrieved true does."
            )
        rows = []
        for number, example in enumerate(split.examples):
            kept = {documents[position].id: position for position, _ in found.row(number)[: self.k]}
            first, *others = cut_inputs(Split(reader.task.opened_pieces(example, kept.keys(), reader.reach)), reader)
            read = [kept[passage.id] for passage in example.passages if passage.id in kept]
            rows.append(first | ({MORE: others} if others else {}) | {READ: read})
        return rows

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        rows = super().shown(outputs, split, memory)
        for number, example in enumerate(split.examples):
            if len(rows[number]) == len(example.passages):
                weighed = zip(rows[number], shares(example, outputs.log_probs[number]), strict=True)
                rows[number] = [replace(one, weight=share) for one, share in weighed]
        return rows

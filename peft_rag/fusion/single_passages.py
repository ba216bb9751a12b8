"""What fusions share that read each neighbour beside the input by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.fusion.base import PASSAGES, READ, SCORES, Reader, Split, encode_inputs
from peft_rag.fusion.passages import Passages
from peft_rag.fusion.reading import ReadingFusion, neighbours_of

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class SinglePassages(ReadingFusion):
    """The input k times, each time with one neighbour; once, alone, where there is none.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are shown with its text.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        passage_tokens: tokens of one neighbour at most.
    """

    sizes: ClassVar[tuple[str, ...]] = ("k", "passage_tokens")

    passage_tokens: int = 64

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of(self.name, split, corpus)
        passages = Passages(reader, documents, self.passage_tokens, self.template, self.show_labels)
        rows = encode_inputs(split, reader)
        for number, (example, alone) in enumerate(zip(split.examples, rows, strict=True)):
            scored = found.row(number)[: self.k]
            inputs = [(passages.beside(example, alone, [position]), score) for position, score in scored]
            read = [(one, score) for one, score in inputs if one[READ]]
            row = {PASSAGES: [one for one, _ in read], SCORES: [score for _, score in read]} if read else alone
            rows[number] = row | {READ: [position for one, _ in read for position in one[READ]]}
        return rows

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
        for number, alone in enumerate(rows):
            room = reader.max_length - sum(alone["pooled_mask"]) - passages.joining
            pairs = [pair for pair in found.row(number)[: self.k] if passages.that_fit([pair[0]], room)]
            if pairs:
                example = split.examples[number]
                inputs = [passages.beside(example, [position]) for position, _ in pairs]
                rows[number] = {PASSAGES: inputs, SCORES: [score for _, score in pairs]}
            rows[number][READ] = [position for position, _ in pairs]
        return rows

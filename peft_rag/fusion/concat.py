"""Neighbours read beside the input: their text, and their labels where they have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Reader, Split, encode_inputs
from peft_rag.fusion.passages import Passages
from peft_rag.fusion.reading import ReadingFusion, neighbours_of

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class ConcatFusion(ReadingFusion):
    """Neighbours' texts and labels joined to the input: p(y|x) = p(y | x, z_1 … z_k).

    The input and its neighbours form the two segments of one sequence. When they do not fit into ``max_length``
    tokens, the farthest neighbours are dropped first; only an input that is too long by itself is ever cut. The task
    pools over the input's own tokens, which have attended to the neighbours.

    Source: Guu et al. 2020, arXiv:2002.08909 (REALM's joint reading), with k passages in one sequence.

    Attributes:
        k: neighbours shown at most.
        show_labels: whether a neighbour's labels are shown with its text.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        passage_tokens: tokens of one neighbour at most.
        order: whether the closest neighbour stands first, next to the input, or last.
    """

    name: ClassVar[str] = "concat"
    sizes: ClassVar[tuple[str, ...]] = ("k", "passage_tokens")

    k: int = 3
    passage_tokens: int = 64
    order: Literal["best-first", "best-last"] = "best-first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("best-first", "best-last"):
            raise ConfigError(f"fusion.order is '{self.order}'. Choose best-first or best-last.")

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of(self.name, split, corpus)
        passages = Passages(reader, documents, self.passage_tokens, self.template, self.show_labels)
        rows = encode_inputs(split, reader)
        for number, alone in enumerate(rows):
            positions = [position for position, _ in found.row(number)[: self.k]]
            last = self.order == "best-last"
            rows[number] = passages.beside(split.examples[number], alone, positions, closest_last=last)
        return rows

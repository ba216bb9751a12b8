"""Neighbours read beside the input: their text, and their labels where they have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import READ, Fusion, Reader, Split, encode_inputs, neighbours_of
from peft_rag.fusion.passages import TEMPLATE, Passages, check_template

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class ConcatFusion(Fusion):
    """Neighbours' texts and labels joined to the input: p(y|x) = p(y | x, z_1 … z_k).

    The input and its neighbours form the two segments of one sequence. When they do not fit into ``max_length``
    tokens, the farthest neighbours are dropped first; only an input that is too long by itself is ever cut. The task
    pools over the input's own tokens, which have attended to the neighbours.

    Source: Guu et al. 2020, arXiv:2002.08909 (REALM's joint reading), with k passages in one sequence.

    Attributes:
        k: neighbours shown at most.
        passage_tokens: tokens of one neighbour at most.
        show_labels: whether a neighbour's labels stand before its text.
        order: whether the closest neighbour stands first, next to the input, or last.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
    """

    k: int = 3
    passage_tokens: int = 64
    show_labels: bool = True
    order: Literal["best-first", "best-last"] = "best-first"
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        if self.k < 1 or self.passage_tokens < 1:
            raise ConfigError(
                f"fusion 'concat' needs k and passage_tokens of at least 1, got k={self.k} and "
                f"passage_tokens={self.passage_tokens}. Use --fusion none for no neighbours."
            )
        if self.order not in ("best-first", "best-last"):
            raise ConfigError(f"fusion.order is '{self.order}'. Choose best-first or best-last.")
        check_template(self.template)

    @property
    def documents_needed(self) -> int:
        return self.k

    @property
    def neighbours_wanted(self) -> int:
        return self.k

    @property
    def reads_neighbours(self) -> bool:
        return True

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of("concat", split, corpus)
        passages = Passages(reader, documents, self.passage_tokens, self.template, self.show_labels)
        rows = encode_inputs(split, reader)
        for number, row in enumerate(rows):
            positions = [position for position, _ in found.row(number)[: self.k]]
            read = passages.that_fit(positions, reader.max_length - len(row["input_ids"]) - passages.joining)
            if read:
                shown = read if self.order == "best-first" else read[::-1]
                rows[number] = passages.beside(split.examples[number].text, shown)
            rows[number][READ] = read
        return rows

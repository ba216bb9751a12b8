"""Neighbours read beside the input: their text, and their labels where they have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import READ, Fusion, Memory, Outputs, Shown, Split, encode_inputs

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus, Document


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
    """

    k: int = 3
    passage_tokens: int = 64
    show_labels: bool = True

    def __post_init__(self) -> None:
        if self.k < 1 or self.passage_tokens < 1:
            raise ConfigError(
                f"fusion 'concat' needs k and passage_tokens of at least 1, got k={self.k} and "
                f"passage_tokens={self.passage_tokens}. Use --fusion none for no neighbours."
            )

    @property
    def documents_needed(self) -> int:
        return self.k

    @property
    def neighbours_wanted(self) -> int:
        return self.k

    @property
    def reads_neighbours(self) -> bool:
        return True

    def encode(self, tokenizer: Any, split: Split, corpus: Corpus | None, max_length: int) -> list[dict[str, Any]]:
        alone = encode_inputs(tokenizer, split, max_length)
        if corpus is None or split.neighbours is None:
            raise RetrievalError("fusion 'concat' was given no neighbours. Pass the corpus it was trained with.")
        passages = self._passages(tokenizer, corpus)
        joining = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
        for row, features in enumerate(alone):
            positions = [position for position, _ in split.neighbours.row(row)[: self.k]]
            room = max_length - len(features["input_ids"]) - joining
            read = _that_fit([(position, passages(position)[1]) for position in positions], room)
            if read:
                texts = [passages(position)[0] for position in read]
                alone[row] = _paired(tokenizer, split.examples[row].text, texts, max_length)
            alone[row][READ] = read
        return alone

    def _passages(self, tokenizer: Any, corpus: Corpus) -> Any:
        """Return a function from a corpus position to the text shown for it and its number of tokens."""
        known: dict[int, tuple[str, int]] = {}

        def passage(position: int) -> tuple[str, int]:
            if position not in known:
                known[position] = self._cut(tokenizer, self._written(corpus[position]))
            return known[position]

        return passage

    def _written(self, document: Document) -> str:
        labels = ", ".join(document.labels) if self.show_labels else ""
        return f"{labels}: {document.text}" if labels else document.text

    def _cut(self, tokenizer: Any, text: str) -> tuple[str, int]:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=self.passage_tokens,
            return_offsets_mapping=True,
        )
        tokens = len(encoded["input_ids"])
        return (text[: encoded["offset_mapping"][-1][1]], tokens) if tokens else ("", 0)

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        """Return the neighbours that were read, in equal shares: read jointly, none has a weight of its own."""
        if split.neighbours is None:
            return super().shown(outputs, split, memory)
        rows = []
        for number, read in enumerate(outputs.read):
            scores = dict(split.neighbours.row(number))
            rows.append([Shown(position, scores[position], 1.0 / len(read)) for position in read])
        return rows


def _that_fit(passages: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Return the positions of the closest passages whose tokens fit; the first that does not ends the list.

    A passage of nothing but characters that the tokenizer drops has no tokens, and is left out.
    """
    chosen: list[int] = []
    for position, tokens in passages:
        if tokens > room:
            break
        chosen += [position] if tokens else []
        room -= tokens
    return chosen


def _paired(tokenizer: Any, text: str, passages: list[str], max_length: int) -> dict[str, Any]:
    """Tokenise the input and its passages as one pair; the tokens before the second segment are pooled over."""
    encoded = tokenizer(text, " ".join(passages), truncation="only_second", max_length=max_length)
    segments = encoded.sequence_ids(0)
    border = segments.index(1)
    pooled = [int(place < border) for place in range(len(segments))]
    return dict(encoded) | {"pooled_mask": pooled}

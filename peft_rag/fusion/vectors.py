"""What fusions share that read neighbours as vectors: which they read, and how an encoded example carries them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import (
    MORE,
    READ,
    VECTORS,
    Fused,
    Read,
    Reader,
    Split,
    encode_inputs,
)
from peft_rag.fusion.passages import written
from peft_rag.fusion.reading import ReadingFusion, neighbours_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.fusion.prompts import Prompt

_LEAST_TEXT = 8
"""Tokens that the input must have room for."""


@dataclass(frozen=True)
class VectorFusion(ReadingFusion):
    """Neighbours by the vectors of the retriever's sentence encoder, beside the input's own tokens.

    An example without neighbours is read as it is, whatever stands in its batch.

    Dims: B examples, T tokens, K neighbours, V of a vector.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are part of what is turned into its vector; without them it is the
            vector it was found by.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
    """

    @property
    def needs_vectors(self) -> bool:
        return True

    @property
    def tokens_each(self) -> int:
        """Tokens of the input's length that one neighbour takes."""
        return 0

    @property
    def room_taken(self) -> int:
        return self.tokens_each * self.k

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of(self.name, split, corpus)
        if reader.max_length - self.room_taken < _LEAST_TEXT:
            raise ConfigError(
                f"fusion '{self.name}' puts {self.room_taken} tokens for {self.k} neighbours before the "
                f"input, which leaves fewer than {_LEAST_TEXT} of max_length {reader.max_length}. Lower --fusion.k or "
                "raise --max_length."
            )
        rows = encode_inputs(split, reader)
        read = [[position for position, _ in found.row(number)[: self.k]] for number in range(len(split))]
        if reader.writes_on and self.tokens_each:
            spare = [(reader.max_length - sum(row["pooled_mask"])) // self.tokens_each for row in rows]
            read = [positions[:most] for positions, most in zip(read, spare, strict=True)]
        place, vectors = self._embedded(documents, read, reader)
        for number, positions in enumerate(read):
            room = reader.max_length - self.tokens_each * len(positions)
            if sum(rows[number]["pooled_mask"]) > room:
                alone = Split(split.examples[number : number + 1])
                (rows[number],) = encode_inputs(alone, replace(reader, max_length=room))
            if MORE in rows[number]:
                raise ConfigError(
                    f"{split.examples[number].where or 'an input'}: has more than {room} tokens, and fusion "
                    f"'{self.name}' reads an input in one piece. Raise --max_length, or use --fusion concat or none."
                )
            rows[number][READ] = positions
            if positions:
                rows[number][VECTORS] = vectors[[place[position] for position in positions]]
        return rows

    def run(self, read: Read, batch: dict[str, Tensor], module: Any) -> Fused:
        from peft_rag.fusion.batching import NEIGHBOUR_MASK, NEIGHBOUR_VECTORS

        if NEIGHBOUR_VECTORS not in batch:
            return Fused(*read(**batch))
        inputs = dict(batch)
        vectors, mask = inputs.pop(NEIGHBOUR_VECTORS), inputs.pop(NEIGHBOUR_MASK)
        return self.run_with(read, inputs, vectors, mask, module)

    def prompt(self, batch: dict[str, Tensor], module: Any, *, goes_on: bool) -> AbstractContextManager[Prompt]:
        from peft_rag.fusion.batching import NEIGHBOUR_MASK, NEIGHBOUR_VECTORS

        if NEIGHBOUR_VECTORS not in batch:
            return super().prompt(batch, module, goes_on=goes_on)
        inputs = dict(batch)
        vectors, mask = inputs.pop(NEIGHBOUR_VECTORS), inputs.pop(NEIGHBOUR_MASK)
        return self.prompt_with(inputs, vectors, mask, module, goes_on=goes_on)

    @abstractmethod
    def prompt_with(
        self, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any, *, goes_on: bool
    ) -> AbstractContextManager[Prompt]:
        """Say what texts are written from where some example has neighbours; see `prompt` and `run_with`."""

    @abstractmethod
    def run_with(self, read: Read, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any) -> Fused:
        """Answer a batch in which some example has neighbours.

        Args:
            read: runs inputs through backbone, method and head.
            inputs: what the backbone reads, and ``pooled_mask``.
            vectors: of the neighbours, ``(B, K, V)``.
            mask: 1 for a neighbour, 0 where an example has fewer, ``(B, K)``.
            module: what `make_module` gave.
        """

    def check_vector_size(self, vector_size: int) -> None:
        """Raise where there are no vectors to work on."""
        if not vector_size:
            raise ConfigError(
                f"fusion '{self.name}' works on sentence vectors, but there is no retriever that has them. Pass the "
                "corpus, and pick a retriever with a sentence encoder (--retriever hnsw or exact)."
            )

    def _embedded(
        self, documents: Corpus, read: Sequence[Sequence[int]], reader: Reader
    ) -> tuple[dict[int, int], NDArray[np.float32]]:
        """Embed every document that is read, once; return the row of each, and the rows."""
        import numpy as np

        embed, wanted = reader.embed, sorted({position for positions in read for position in positions})
        if embed is None and wanted:
            self.check_vector_size(0)
        texts = [
            written(documents[position], self.template, show_labels=self.show_labels, task=reader.task)
            for position in wanted
        ]
        vectors = embed(texts) if embed is not None and wanted else np.zeros((0, 0), dtype=np.float32)
        return {position: row for row, position in enumerate(wanted)}, vectors

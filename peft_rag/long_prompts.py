"""Prompts far longer than the backbone's window, read in the chunks that are about what they ask at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from typing_extensions import Self

from peft_rag.corpus import Document
from peft_rag.errors import ConfigError
from peft_rag.long_inputs import RelevantChunks, check_encoder
from peft_rag.retrieval.chunks import chunk_by_sentences, condense, sentence_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peft_rag.retrieval.base import Encoder
    from peft_rag.tasks.base import Example, Task

_KIND = "prompts"
_PARTS = 3
"""The end takes a third of the window at most; the chunks before it are as long as half of that."""

_ASKED = 12
"""What is asked is told by the last sentences that make up a twelfth of the window."""

_LEAST = 4 * _PARTS


@dataclass(frozen=True, eq=False)
class PromptChunks:
    """Condenses a prompt that is longer than the window: its end stays as it is, and of what stands before it the
    chunks whose sentence vectors have the largest cosine with what is asked, in their order.

    The end is the last sentences that fit into a third of the window, or as many tokens of the last one. What is asked
    is the shortest run of last sentences in it that makes up a twelfth of the window. Nothing is learned, and the
    answers play no part.

    Attributes:
        encoder: turns chunks into vectors of length 1.
        tokenizer: of the backbone, whose tokens are counted.
        window: tokens that a prompt may have, special ones not counted.
    """

    encoder: Encoder
    tokenizer: Any
    window: int
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window < _LEAST:
            raise ConfigError(
                f"a prompt of {self.window} tokens has no room for chunks of a longer one. Raise --max_length, shorten "
                "answers, or leave --long_inputs at cut."
            )

    def read(self, examples: Sequence[Example], progress: str | None = None) -> list[Example]:
        """Return examples whose prompts fit into the window: as they are, or condensed.

        Args:
            examples: prompts of any length.
            progress: the title of a progress bar; none without.
        """
        new = [text for text in dict.fromkeys(one.text for one in examples) if text not in self._known]
        long = [text for text in new if self._tokens(text) > self.window]
        ends = [self._end(text) for text in long]
        pieces = [self._chunks(text[:end]) for text, end in zip(long, ends, strict=True)]
        asked = [
            [text[end:]] + [piece.text for piece in row] for text, end, row in zip(long, ends, pieces, strict=True)
        ]
        vectors = self.encoder.encode([one for row in asked for one in row], progress) if long else np.empty((0, 1))
        parts = np.split(vectors, np.cumsum([len(row) for row in asked])[:-1]) if long else []
        self._known.update({text: text for text in new})
        for text, end, row, part in zip(long, ends, pieces, parts, strict=True):
            self._known[text] = self._condensed(text, end, row, part[1:] @ part[0])
        return [replace(example, text=self._known[example.text]) for example in examples]

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _end(self, text: str) -> int:
        """Return where the end of a text begins."""
        room = self.window // _PARTS
        begins = [begin for begin, _ in sentence_spans(text)]
        fitting = [begin for begin in begins if self._tokens(text[begin:]) <= room]
        if fitting:
            return fitting[0]
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return int(offsets["offset_mapping"][-room][0])

    def _asked(self, end: str) -> str:
        """Return the part of an end that tells what is asked."""
        begins = [begin for begin, _ in sentence_spans(end)]
        long = [begin for begin in begins if self._tokens(end[begin:]) * _ASKED >= self.window]
        return end[long[-1] :] if long else end

    def _chunks(self, text: str) -> list[Document]:
        return chunk_by_sentences(Document("text", text), self.tokenizer, self.window // (2 * _PARTS), 0)

    def _condensed(self, text: str, end: int, chunks: Sequence[Document], scores: NDArray[np.float32]) -> str:
        """Return the best chunks that fit before the end, and the end itself."""
        between = text[len(text[:end].rstrip()) : end]
        room = self.window - self._tokens(between + text[end:])
        while room > 0 and chunks:
            kept = condense(text[:end], chunks, scores.tolist(), self.tokenizer, window=room)
            whole = kept + between + text[end:]
            if self._tokens(whole) <= self.window:
                return whole
            room -= 1  # tokens may join differently beside each other
        return text[end:]

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact must remember."""
        name, fingerprint = self.encoder.name, self.encoder.fingerprint
        return {"kind": _KIND, "encoder": name, "fingerprint": fingerprint, "window": self.window}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what was learned: nothing."""
        return {}

    @classmethod
    def restore(cls, about: Mapping[str, Any], encoder: Encoder, tokenizer: Any) -> Self:
        """Make again what `to_dict` describes.

        Raises:
            FingerprintError: the encoder is another.
        """
        check_encoder(about, encoder)
        return cls(encoder, tokenizer, int(about["window"]))


LongInputs: TypeAlias = "RelevantChunks | PromptChunks"


def long_inputs_for(
    task: Task, examples: Sequence[Example], encoder: Encoder, tokenizer: Any, window: int
) -> LongInputs:
    """Return what condenses a task's long texts: prompts by what they ask, other texts by what tells labels apart.

    Args:
        task: what reads them.
        examples: the training data.
        encoder: turns chunks into vectors.
        tokenizer: the fast tokenizer of the backbone.
        window: tokens that a text may have, special ones not counted.
    """
    if task.appends:
        return PromptChunks(encoder, tokenizer, window)
    return RelevantChunks.fit(examples, encoder, tokenizer, window)


def restore_long_inputs(
    about: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]], encoder: Encoder, tokenizer: Any
) -> LongInputs:
    """Make again what an artefact describes, of either kind.

    Raises:
        FingerprintError: the encoder is another.
    """
    if about.get("kind") == _KIND:
        return PromptChunks.restore(about, encoder, tokenizer)
    return RelevantChunks.restore(about, arrays, encoder, tokenizer)

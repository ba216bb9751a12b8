"""Inputs far longer than the backbone's window, read in the chunks by which the classes can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from peft_rag.corpus import Document
from peft_rag.errors import ConfigError, DataError, FingerprintError
from peft_rag.retrieval.chunks import chunk_by_sentences, condense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peft_rag.retrieval.base import Encoder
    from peft_rag.tasks.base import Example

_CHUNKS_IN_WINDOW = 3
_STRENGTH = 1.0


@dataclass(frozen=True, eq=False)
class RelevantChunks:
    """Chooses the chunks of a long text that a classifier reads: those from which a linear probe infers most.

    The probe is a logistic regression from chunks, as sentence vectors v, to the labels of their texts. A chunk's score
    is what it tells of the label, KL( p(y|v) ‖ p(y) ) in nats: chunks that occur in any class say nothing, however
    far from the others they lie. The labels of a text that is read play no part.

    Chosen by the accuracy of a linear probe that reads 94 tokens, on 220 validation summaries of wiki-topics behind 200
    words of dialogue (in brackets: of other summaries), after as many to learn from. This score: 50.5% (38.2%), little
    else with tenfold strength. The largest cosine of a chunk with a class's name: 28.2% (18.6%); with a class's mean
    chunk: 13.2% (17.3%); the margin of the latter: 36.8% (26.4%); its cosine seen from the mean of all chunks, refined
    on the best of them: 47.7% (27.3%). A cut: 15.0% (14.5%); the summaries alone: 74.1%.

    Dims: D dimensions of a sentence vector, C classes.

    Attributes:
        encoder: turns chunks into vectors.
        tokenizer: of the backbone, whose tokens are counted.
        window: tokens that an input may have, special ones not counted.
        weight: of the probe, float32 ``(C, D)``.
        bias: of the probe, float32 ``(C,)``.
        log_prior: log p(y) among training chunks in nats, float32 ``(C,)``.
    """

    encoder: Encoder
    tokenizer: Any
    window: int
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    log_prior: NDArray[np.float32]
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def fit(cls, examples: Sequence[Example], encoder: Encoder, tokenizer: Any, window: int) -> Self:
        """Fit the probe to labelled texts, long and short; a chunk counts once for every label of its text.

        Args:
            examples: the training data.
            encoder: turns chunks into vectors.
            tokenizer: the fast tokenizer of the backbone.
            window: tokens that an input may have, special ones not counted.

        Raises:
            ConfigError: the window has no room for a choice of chunks, or the tokenizer is not fast.
            DataError: the examples have fewer than two labels.
        """
        if window < _CHUNKS_IN_WINDOW:
            raise ConfigError(
                f"an input of {window} tokens has no room for chunks of a longer text. Raise --max_length, or leave "
                "--long_inputs at cut."
            )
        classes = sorted({label for example in examples for label in example.labels or ()})
        if len(classes) < 2:
            raise DataError(
                f"--long_inputs within_document learns which chunks tell labels apart, but the training data has "
                f"{len(classes)} of them. Leave it at cut."
            )
        number = {label: index for index, label in enumerate(classes)}
        pieces = [_chunks(example.text, tokenizer, window) for example in examples]
        vectors = encoder.encode([piece.text for row in pieces for piece in row], "chunks of train")
        owners = [example for example, row in zip(examples, pieces, strict=True) for _ in row]
        pairs = [(row, number[label]) for row, owner in enumerate(owners) for label in owner.labels or ()]
        rows, targets = np.array(pairs).T
        return cls(encoder, tokenizer, window, **_probe(vectors[rows], targets, len(classes)))

    def read(self, examples: Sequence[Example], progress: str | None = None) -> list[Example]:
        """Return examples whose texts fit into the window: as they are, or condensed to their best chunks.

        Args:
            examples: texts of any length.
            progress: the title of a progress bar; none without.
        """
        new = list(dict.fromkeys(example.text for example in examples if example.text not in self._known))
        pieces = [_chunks(text, self.tokenizer, self.window) for text in new]
        long = [place for place, row in enumerate(pieces) if len(row) > 1]
        scores = self.scores([piece.text for place in long for piece in pieces[place]], progress)
        parts = np.split(scores, np.cumsum([len(pieces[place]) for place in long])[:-1]) if long else []
        self._known.update({text: text for text in new})
        for place, part in zip(long, parts, strict=True):
            self._known[new[place]] = condense(
                new[place], pieces[place], part.tolist(), self.tokenizer, window=self.window
            )
        return [replace(example, text=self._known[example.text]) for example in examples]

    def scores(self, chunks: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return KL( p(y|v) ‖ p(y) ) of each chunk in nats, ``(N,)``."""
        if not chunks:
            return np.empty(0, np.float32)
        logits = self.encoder.encode(chunks, progress) @ self.weight.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        told: NDArray[np.float32] = (np.exp(log_probs) * (log_probs - self.log_prior)).sum(axis=1)
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact must remember besides the `arrays`."""
        name, fingerprint = self.encoder.name, self.encoder.fingerprint
        return {"encoder": name, "fingerprint": fingerprint, "window": self.window}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what was learned, by name."""
        return {"weight": self.weight, "bias": self.bias, "log_prior": self.log_prior}

    @classmethod
    def restore(
        cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]], encoder: Encoder, tokenizer: Any
    ) -> Self:
        """Make again what `to_dict` and `arrays` describe.

        Raises:
            FingerprintError: the encoder is another.
        """
        check_encoder(about, encoder)
        return cls(encoder, tokenizer, about["window"], **arrays)


def check_encoder(about: Mapping[str, Any], encoder: Encoder) -> None:
    """Raise `FingerprintError` where an encoder is not that which an artefact's long inputs are read by."""
    if encoder.fingerprint != about["fingerprint"]:
        raise FingerprintError(
            f"this artefact reads long inputs by encoder '{about['encoder']}' {about['fingerprint'][:19]}…, but "
            f"'{encoder.name}' is {encoder.fingerprint[:19]}…. Install the model it names, or train again."
        )


def _chunks(text: str, tokenizer: Any, window: int) -> list[Document]:
    """Return a text's chunks; of one that fits, itself."""
    whole = Document("text", text)
    if len(chunk_by_sentences(whole, tokenizer, window, 0)) == 1:
        return [whole]
    return chunk_by_sentences(whole, tokenizer, window // _CHUNKS_IN_WINDOW, 0)


def _probe(vectors: NDArray[np.float32], targets: NDArray[np.int64], classes: int) -> dict[str, NDArray[np.float32]]:
    """Fit weight, bias and log-prior to vectors ``(N, D)``, scaled to a mean squared distance of 1 from their mean."""
    from sklearn.linear_model import LogisticRegression

    mean = vectors.mean(axis=0)
    spread = float(np.sqrt(((vectors - mean) ** 2).sum(axis=1).mean())) + 1e-9
    model = LogisticRegression(C=_STRENGTH, max_iter=300).fit((vectors - mean) / spread, targets)
    weight, bias = model.coef_ / spread, model.intercept_
    if classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    prior = np.bincount(targets, minlength=classes) / len(targets)
    learned = {"weight": weight, "bias": bias - weight @ mean, "log_prior": np.log(prior)}
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in learned.items()}

"""What a fusion is: neighbours into tensors at one end, backbone outputs into log-probabilities at the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from peft_rag.fusion.datastore import Memory as Memory
from peft_rag.fusion.datastore import Search
from peft_rag.tasks.appending import check_room
from peft_rag.tasks.base import MORE as MORE
from peft_rag.tasks.base import POOLS
from peft_rag.tasks.spans import own_spans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone
    from peft_rag.corpus import Corpus
    from peft_rag.decisions import Decisions
    from peft_rag.fusion.next_token import NeighbourTokens
    from peft_rag.fusion.prompts import Prompt
    from peft_rag.retrieval.base import Neighbours
    from peft_rag.tasks.base import Example, Span, Task


READ = "read"
"""Key under which an encoded example says which neighbours it holds; never a tensor, never given to the model."""

PASSAGES = "passages"
"""Key under which an encoded example holds several inputs, each a feature dictionary, in place of one."""

SCORES = "scores"
"""Key of the similarities, one for each of the inputs under `PASSAGES`."""

VECTORS = "vectors"
"""Key of the vectors ``(K, V)`` of the neighbours under `READ`, for a fusion that works on these."""

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Turns texts into vectors of length 1, ``(K, V)``: the retriever's sentence encoder."""

Read = Callable[..., "tuple[Tensor, Tensor]"]
"""Runs a batch of inputs through backbone, method and head: log-probabilities and pooled features, one row an input."""


@dataclass(frozen=True)
class Shown:
    """One neighbour of one example, as an explanation shows it.

    Attributes:
        position: of the document in the corpus.
        score: similarity to the example in the space it was found in; higher is closer.
        weight: how much it counts; the weights of one example sum to at most 1.
    """

    position: int
    score: float
    weight: float


@dataclass(frozen=True)
class Split:
    """Examples with the neighbours retrieved for them.

    Attributes:
        examples: in the order of the data.
        neighbours: one row an example; None where this fusion retrieves nothing by text.
        forbidden: corpus positions each example must never see, in whatever space they are found.
    """

    examples: Sequence[Example]
    neighbours: Neighbours | None = None
    forbidden: Sequence[Collection[int]] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.examples)

    def of(self, places: Sequence[int]) -> Split:
        """Return the split of some examples, in the order these are named."""
        return Split(
            [self.examples[place] for place in places],
            None if self.neighbours is None else self.neighbours.of(places),
            [self.forbidden[place] for place in places] if len(self.forbidden) else (),
        )


@dataclass(frozen=True)
class Outputs:
    """What the model gave for N examples with R decisions on them, before fusion.

    Attributes:
        log_probs: in nats, ``(R, C)`` or ``(R, C, 2)``.
        features: pooled last hidden states, ``(R, F)``.
        read: corpus positions of the neighbours each input held; empty where inputs hold none.
        weights: how much each of these counted, in the same order; empty where the fusion has no weights.
        joined: whether its answer is not the head's on the features: read in several inputs, or some not kept.
        decisions: how many each example takes; None where each takes one.
    """

    log_probs: Tensor
    features: Tensor
    read: Sequence[Sequence[int]] = ()
    weights: Sequence[Sequence[float]] = ()
    joined: bool = False
    decisions: Decisions | None = None

    def of(self, places: Sequence[int]) -> Outputs:
        """Return the outputs of some examples, in the order these are named."""
        rows = list(places) if self.decisions is None else self.decisions.take(places)
        return replace(
            self,
            log_probs=self.log_probs[rows],
            features=self.features[rows],
            read=[self.read[place] for place in places] if self.read else (),
            weights=[self.weights[place] for place in places] if self.weights else (),
            decisions=self.decisions and self.decisions.of(places),
        )


@dataclass(frozen=True)
class Fused:
    """What the model gave for a batch of B examples, neighbours that it reads included.

    Attributes:
        log_probs: in nats, as the task gives them, ``(B, …)``.
        features: pooled last hidden states, ``(B, D)``.
        weights: of the K neighbours of each example, ``(B, K)``, 0 for missing ones; None where there are none.
        penalty: what training adds to the loss in nats, a scalar; None for nothing.
        each: log-probabilities under each neighbour by itself, ``(B, K, …)``; None where none is read by itself.
    """

    log_probs: Tensor
    features: Tensor
    weights: Tensor | None = None
    penalty: Tensor | None = None
    each: Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """What reads the inputs, as far as whoever writes them must know.

    Attributes:
        tokenizer: a fast one.
        max_length: tokens of one input at most.
        causal: whether a token sees only what stands before it, so that neighbours must.
        embed: the retriever's sentence encoder, for a fusion that works on vectors; None where there is none.
        task: what judges the inputs; None where it judges whole texts.
        start: the token that the decoder of an encoder-decoder starts with; None where there is no decoder apart.
    """

    tokenizer: Any
    max_length: int
    causal: bool = False
    embed: Embed | None = None
    task: Task | None = None
    start: int | None = None

    @property
    def writes_on(self) -> bool:
        """Whether the answer is written where the input ends, so that this must not be cut away."""
        return self.start is None and self.task is not None and self.task.appends

    def with_pools(self, example: Example, encoded: dict[str, Any], spans: Sequence[Span | None]) -> dict[str, Any]:
        """Add the tokens that decisions rest on to an encoded example, where the task judges parts of it or writes.

        Args:
            example: what was encoded.
            encoded: the encoding.
            spans: of each token the part of the example's text that it stands for, or None.
        """
        if self.task is not None and self.task.appends:
            if self.writes_on:
                check_room(self.task, example, len(encoded["input_ids"]), self.max_length)
            return self.task.with_response(example, encoded, start=self.start)
        if self.task is None or not self.task.pools_spans:
            return encoded
        return encoded | {POOLS: self.task.pools(example, spans)}

    def reach(self, text: str) -> int | None:
        """Return the character up to which a text fits into an input; None where all of it does."""
        options = {"truncation": True, "max_length": self.max_length, "return_overflowing_tokens": True}
        offsets = self.tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
        return None if len(offsets) == 1 else max(end for _, end in offsets[0])


@dataclass(frozen=True)
class Fusion(ABC):
    """How neighbours enter the model; a frozen dataclass of options, so that it survives JSON.

    A fusion has two ends: `encode` turns examples and neighbours into inputs, and `run` turns what the model reads in
    them into an answer, with gradients. What it trains of its own it makes in `make_module`, and gets back in `run`.
    `combine` is what is done once the model is trained: it may look at the whole encoded corpus. An option that is
    None is fitted on validation examples after training (`fit`), which gives a new fusion.

    Dims: N examples, B of them in a batch, T tokens, D hidden size, K neighbours, V of a neighbour's vector, C classes.
    """

    @property
    def neighbours_wanted(self) -> int:
        """How many neighbours must be retrieved by text for each example; 0 for none."""
        return 0

    @property
    def documents_needed(self) -> int:
        """How many documents the corpus must hold at least."""
        return 0

    @property
    def reads_neighbours(self) -> bool:
        """Whether neighbours change what the backbone reads, so that training needs them too."""
        return False

    @property
    def counts(self) -> bool:
        """Whether neighbours can change an answer; not where it was found, or said, that none should."""
        return True

    @property
    def needs_labels(self) -> bool:
        """Whether documents without labels are useless to this fusion."""
        return False

    @property
    def needs_features(self) -> bool:
        """Whether the corpus must be encoded by the tuned backbone."""
        return False

    @property
    def search(self) -> Search:
        """How these features are searched."""
        return "exact"

    @property
    def needs_vectors(self) -> bool:
        """Whether it works on the neighbours' vectors by the retriever's sentence encoder."""
        return False

    @property
    def opens(self) -> bool:
        """Whether neighbours are the contexts of a task that `opens`, and of such a task alone."""
        return False

    @property
    def room_taken(self) -> int:
        """How many tokens of an input neighbours take at most whether its own fit beside them or not."""
        return 0

    @property
    def writes_at_once(self) -> bool:
        """Whether a text is written from several inputs at once, so that each token must be settled before the next."""
        return False

    @property
    def needs_encoder_decoder(self) -> bool:
        """Whether it lets a decoder read what an encoder has read, so that it can serve no other backbone or task."""
        return False

    @abstractmethod
    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        """Turn examples and their neighbours into token ids, one feature dictionary an example.

        Args:
            split: examples with their neighbours.
            corpus: what the neighbours are positions in.
            reader: what will read them.

        Returns:
            dictionaries with ``input_ids``, ``attention_mask``, what else the tokenizer gives, and ``pooled_mask``:
            1 for the tokens the task may pool over. A dictionary may hold several such under `PASSAGES`, with their
            `SCORES`, instead. Corpus positions of the neighbours in it go under `READ`, their vectors under `VECTORS`;
            under `MORE` stand the other inputs of an example that is read in pieces.
        """

    def make_module(self, backbone: Backbone, vector_size: int) -> nn.Module | None:
        """Return what is trained of the fusion itself, fresh, or None.

        Args:
            backbone: frozen, before a method is attached.
            vector_size: V; 0 where the retriever has no vectors.
        """
        return None

    def run(self, read: Read, batch: dict[str, Tensor], module: Any) -> Fused:
        """Answer a batch; what is done here is trained through.

        Args:
            read: runs inputs through backbone, method and head.
            batch: encoded examples as `peft_rag.fusion.batching.collate` joined them. Some of them, or all, may
                have been encoded by `NoFusion`.
            module: what `make_module` gave.
        """
        return Fused(*read(**batch))

    def combine(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task) -> Tensor:
        """Turn the model's log-probabilities into the fused ones, in nats and of the same shape."""
        return outputs.log_probs

    def fit(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task, targets: Tensor) -> Self:
        """Return this fusion with every open option chosen on validation examples and their targets."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return what `fit` learned besides settings, by name; an artefact keeps it bit for bit."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return this fusion, made of saved settings, with what `tensors` gave when they were saved."""
        return self

    def with_given_neighbours(self) -> Self:
        """Return this fusion answering from the neighbours of a split, where it would search for them itself."""
        return self

    def prompt(self, batch: dict[str, Tensor], module: Any, *, goes_on: bool) -> AbstractContextManager[Prompt]:
        """Say what texts are written from, for as long as the context lasts: inputs as they are, or `ConfigError`.

        Args:
            batch: encoded examples without answers, as for `run`; padded on the left where texts go on from them.
            module: what `make_module` gave.
            goes_on: whether they do: a decoder's do, an encoder-decoder's do not.
        """
        from peft_rag.fusion.prompts import plain_prompt

        return plain_prompt(self, batch)

    def next_token(self, memory: Memory | None) -> NeighbourTokens | None:
        """Return what changes each token's distribution while a text is written; None where nothing does."""
        return None

    def voters(self, outputs: Outputs, split: Split, memory: Memory | None) -> Neighbours:
        """Return the decisions on documents that vote on each decision: numbers of rows of the memory."""
        from peft_rag.retrieval.base import Neighbours

        shown = self.shown(outputs, split, memory)
        return Neighbours.of_rows([[(one.position, one.score) for one in row] for row in shown])

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        """Return, per example, the neighbours that took part and with what weight, closest first.

        Neighbours that were read jointly have no weights of their own, and are shown in equal shares.
        """
        if split.neighbours is None or not outputs.read:
            return [[] for _ in range(len(split))]
        rows = []
        for number, read in enumerate(outputs.read):
            scores = dict(split.neighbours.row(number))
            weights = outputs.weights[number] if outputs.weights else [1 / max(1, len(read))] * len(read)
            rows.append([Shown(place, scores[place], weight) for place, weight in zip(read, weights, strict=True)])
        return rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        return cls(**settings)


def encode_inputs(split: Split, reader: Reader) -> list[dict[str, Any]]:
    """Tokenise the examples' own texts, pooled over; what an input cannot take is cut, or goes to `MORE`."""
    rows = cut_inputs(split, reader)
    if reader.task is None or not reader.task.pools_spans:
        return rows
    for number, example in enumerate(split.examples):
        if len(rows[number]["input_ids"]) >= reader.max_length:
            pieces = reader.task.pieces(example, reader.reach)
            if len(pieces) > 1:
                first, *others = cut_inputs(Split(pieces), reader)
                rows[number] = first | {MORE: others}
    return rows


def cut_inputs(split: Split, reader: Reader) -> list[dict[str, Any]]:
    """Tokenise the examples' own texts, pooled over; what an input cannot take is cut."""
    texts = [example.text for example in split.examples]
    parts = reader.task is not None and reader.task.pools_spans
    whole = reader.writes_on
    room = None if whole else reader.max_length
    encoded = reader.tokenizer(texts, truncation=not whole, max_length=room, return_offsets_mapping=parts)
    offsets = encoded.pop("offset_mapping") if parts else []
    rows = [
        {name: values[row] for name, values in encoded.items()} | {"pooled_mask": encoded["attention_mask"][row]}
        for row in range(len(texts))
    ]
    if not parts:
        return [reader.with_pools(example, row, ()) for example, row in zip(split.examples, rows, strict=True)]
    return [
        reader.with_pools(example, row, own_spans(spans, encoded.sequence_ids(number), 0))
        for number, (example, row, spans) in enumerate(zip(split.examples, rows, offsets, strict=True))
    ]

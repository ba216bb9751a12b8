"""What a fusion is: neighbours into tensors at one end, backbone outputs into log-probabilities at the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.retrieval.base import Neighbours
    from peft_rag.tasks.base import Example, Task


READ = "read"
"""Key under which an encoded example says which neighbours it holds; never a tensor, never given to the model."""


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


@dataclass(frozen=True)
class Memory:
    """The labelled documents as a fusion sees them; built from the corpus when needed, never saved.

    Attributes:
        targets: of the N documents, as the task gives them: ``(N,)`` or ``(N, C)``.
        features: of the documents in the tuned backbone, ``(N, D)``; None where the fusion searches in the
            retriever's space.
    """

    targets: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """What the model gave for N examples, before fusion.

    Attributes:
        log_probs: in nats, ``(N, C)`` or ``(N, C, 2)``.
        features: pooled last hidden states, ``(N, D)``.
        read: corpus positions of the neighbours each input held; empty where inputs hold none.
    """

    log_probs: Tensor
    features: Tensor
    read: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Fusion(ABC):
    """How neighbours enter the model; a frozen dataclass of options, so that it survives JSON.

    An option that is None is fitted on validation examples after training (`fit`), which gives a new fusion.

    Dims: N examples, B of them in a batch, T tokens, D hidden size, K neighbours, C classes.
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
    def needs_labels(self) -> bool:
        """Whether documents without labels are useless to this fusion."""
        return False

    @property
    def needs_features(self) -> bool:
        """Whether the corpus must be encoded by the tuned backbone."""
        return False

    @abstractmethod
    def encode(self, tokenizer: Any, split: Split, corpus: Corpus | None, max_length: int) -> list[dict[str, Any]]:
        """Turn examples and their neighbours into token ids, one feature dictionary an example.

        Returns:
            dictionaries with ``input_ids``, ``attention_mask``, what else the tokenizer gives, and ``pooled_mask``:
            1 for the tokens the task may pool over. Corpus positions of the neighbours in it go under `READ`.
        """

    def combine(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task) -> Tensor:
        """Turn the model's log-probabilities into the fused ones, in nats and of the same shape."""
        return outputs.log_probs

    def fit(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task, targets: Tensor) -> Self:
        """Return this fusion with every open option chosen on validation examples and their targets."""
        return self

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        """Return, per example, the neighbours that took part and with what weight, closest first."""
        return [[] for _ in range(len(split))]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        return cls(**settings)


def encode_inputs(tokenizer: Any, split: Split, max_length: int) -> list[dict[str, Any]]:
    """Tokenise the examples' own texts, cut to ``max_length`` tokens, all of them pooled over."""
    texts = [example.text for example in split.examples]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    return [
        {name: values[row] for name, values in encoded.items()} | {"pooled_mask": encoded["attention_mask"][row]}
        for row in range(len(texts))
    ]

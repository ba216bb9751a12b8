"""What a task is: the contract between records, the head on the backbone, and the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from peft_rag.corpus import Document
    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.records import Record


POOLS = "pools"
"""Key of the tokens that each decision on an input rests on (`Pools`); none where on the whole."""

GOLD = "gold"
"""Key of the tokens that are right, one a decision, where the task writes text."""

MORE = "more"
"""Key of the other inputs of an encoded example that is read in several; its decisions rest on all of them."""

CHOICE_LENGTH = "choice_length"
"""Key of what log p of the choice that an input ends with is divided by, where each choice is an input of its own."""

LEAST_LOG_PROB = -100.0
"""What a log-probability counts as at least, in nats, where sums and differences must stay finite; torch's binary
cross-entropy draws the same line."""


Span = tuple[int, int]
"""First character and the one after the last."""

Pools = list[list[list[int]]]
"""What is pooled of one input: for each decision its pools, each a list of tokens."""

Reach = Callable[[str], "int | None"]
"""Returns the character up to which a text fits into the window of tokens; None where all of it does."""


@dataclass(frozen=True)
class Passage:
    """A part of an example's text that is a context of its own.

    Attributes:
        id: of the document that it is.
        begin: its first character in the example's text.
        end: the one after its last.
        found: whether it was retrieved, and not given with the record.
    """

    id: str
    begin: int
    end: int
    found: bool = False


@dataclass(frozen=True)
class Example:
    """One thing to judge.

    Attributes:
        id: unique in its split.
        text: what the backbone reads.
        labels: its labels; None when they are not known, as in prediction.
        where: file and line it came from, for messages.
        group: examples of one group never retrieve each other; empty if there are none.
        spans: parts of the text that the task judges, where it does not judge the whole.
        documents: ids of the documents that are known to answer it; looked at in measuring alone.
        tokens: of its label, where that is a text and these are known, as of one that a model wrote.
        passages: parts of the text that are contexts of their own, where these are retrieved.
        choices: texts of which one is to be chosen, where they do not stand in the text.
        source: its own words, where `text` is these in a prompt.
    """

    id: str
    text: str
    labels: tuple[str, ...] | None = None
    where: str = ""
    group: str = ""
    spans: tuple[Span, ...] = ()
    documents: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    passages: tuple[Passage, ...] = ()
    choices: tuple[str, ...] = ()
    source: str = ""

    @property
    def asked(self) -> str:
        """What is compared with documents: its own words, or what is to be written where that begins with nothing."""
        return self.source or self.text or " ".join(self.labels or ())


@dataclass(frozen=True)
class Task(ABC):
    """A task's settings and what it learned of its labels; a frozen dataclass, so that it survives JSON.

    A task takes one decision on each example, or several (a tag for each word). All tensors of answers run over
    decisions, those of an example after each other: a task with one decision an example need not know.

    Dims used below: B examples, R decisions on them (R = B where each has one), T tokens, D hidden size, C classes.
    """

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """Name of the metric that early stopping and fusion settings are chosen by."""

    @abstractmethod
    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        """Turn records into examples.

        Raises:
            DataError: a record misses a field or holds something else; the message names file, line and field.
        """

    @abstractmethod
    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """Return this task knowing the labels of the training examples."""

    @property
    def one_decision(self) -> bool:
        """Whether each example takes one decision, on its whole text."""
        return True

    def decisions(self, example: Example) -> int:
        """Return how many decisions an example takes."""
        return 1

    @property
    def generates(self) -> bool:
        """Whether answers are written token by token by the backbone's own head: decisions are tokens then."""
        return False

    @property
    def appends(self) -> bool:
        """Whether its answers are texts after an input, which the backbone's own head judges (`with_response`)."""
        return self.generates

    @property
    def backbone_head(self) -> str:
        """Which head `peft_rag.backbone.load_backbone` loads for it: the one that writes, or none."""
        return "any" if self.appends else "none"

    @property
    def answer_tokens(self) -> int:
        """How many tokens an answer after an input takes at most."""
        return 0

    @property
    def answer_tokens_option(self) -> str:
        """The option that says so."""
        return "target_length"

    def with_response(self, example: Example, encoded: dict[str, Any], *, start: int | None) -> dict[str, Any]:
        """Add to an encoded input the texts that are judged after it, where the task `appends`.

        Args:
            example: what was encoded.
            encoded: the input.
            start: the token that an encoder-decoder's decoder starts with; None for a decoder, which goes on writing.
        """
        raise NotImplementedError

    @property
    def goes_on(self) -> bool:
        """Whether it writes on where a prompt ends, which only a decoder can."""
        return False

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """Return this task knowing the backbone's tokenizer, where it counts in tokens."""
        return self

    @property
    def opens(self) -> bool:
        """Whether it takes its answers from what is retrieved: an example is searched for `alone`, then `opened`."""
        return False

    def alone(self, example: Example) -> Example:
        """Return an example as it is before anything is retrieved for it."""
        return example

    def opened(self, example: Example, found: Sequence[Document], *, learn: bool) -> Example:
        """Return an example with what was found for it in its text, where the task `opens`.

        Args:
            example: as it was read.
            found: the documents, closest first.
            learn: whether it is learned from, so that what its record gives is read too.
        """
        raise NotImplementedError

    def opened_pieces(self, example: Example, kept: Collection[str], reach: Reach) -> Sequence[Example]:
        """Return what an opened example is read as, as `pieces` does.

        Args:
            example: from `opened`.
            kept: ids of the documents in it that are read; decisions on the others rest on nothing.
            reach: says how far a text fits.
        """
        raise NotImplementedError

    @property
    def votes(self) -> bool:
        """Whether the labels of documents can answer for an example: not where they number what is its own."""
        return True

    @property
    def pools_spans(self) -> bool:
        """Whether decisions rest on parts of the text, which `pools` names, and not on all of it."""
        return False

    def pools(self, example: Example, spans: Sequence[Span | None]) -> Pools:
        """Return the tokens that each decision rests on.

        Args:
            example: what is read.
            spans: of each token of the input the part of the example's text that it stands for; None for those that
                stand for none of it, such as special tokens and neighbours.

        Raises:
            DataError: a part that is judged lies beyond the window.
        """
        raise NotImplementedError

    def pieces(self, example: Example, reach: Reach) -> Sequence[Example]:
        """Return what an example is read as: itself, or several where its text is longer than the window.

        The pools of the pieces, after each other, are those of the example.
        """
        return (example,)

    def pooled(self, pools: Tensor) -> Tensor:
        """Turn the means of the pools ``(P, D)``, those of a decision after each other, into features ``(R, F)``."""
        from torch.nn.functional import normalize

        return normalize(pools, dim=-1)

    def kept(self, features: Tensor) -> Tensor:
        """Return what is kept of features once they are judged, one row a decision; by default all."""
        return features

    @property
    def probes(self) -> bool:
        """Whether there is a head that can be fitted to features that are kept (`fit_head`), and judge them again."""
        return not self.appends

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return what whoever gave labelled examples should know of them, a line each."""
        return []

    @property
    def sample(self) -> str | dict[str, Any]:
        """What a model of this task may be asked, to show how: a bare text, or a record of the fields it takes."""
        return "some text"

    def as_example(self, text: str, identity: str) -> Example:
        """Return a bare text as an example without labels."""
        return Example(identity, text)

    def stratum(self, example: Example) -> tuple[str, ...]:
        """Return what examples are drawn by, so that each kind has its share."""
        return example.labels or ()

    def example_of(self, document: Document, where: str) -> Example:
        """Return a document of the corpus as a labelled example.

        Raises:
            RetrievalError: its labels are none of this task.
        """
        return Example(document.id, document.text, document.labels, where, document.group, document.spans)

    def document_of(self, example: Example) -> Document:
        """Return a training example as a document of the corpus, out of which `example_of` makes it again."""
        from peft_rag.corpus import Document

        text = example.source or example.text
        return Document(example.id, text, example.labels or (), example.group, spans=example.spans)

    @property
    def passage_template(self) -> str:
        """How a labelled document is written beside an input, unless told otherwise."""
        return "{labels}: {text}"

    def shown_text(self, document: Document) -> str:
        """Write the text of a labelled document for a reader."""
        return document.text

    def shown_labels(self, document: Document) -> str:
        """Write the labels of a document for a reader."""
        return ", ".join(document.labels)

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return what the loss compares with, one row a decision; of several columns the first is the class.

        Raises:
            DataError: an example has a label unseen in training.
        """

    @abstractmethod
    def make_head(self, hidden_size: int) -> nn.Module:
        """Return a fresh head from features ``(R, F)`` to logits."""

    @abstractmethod
    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Set the head to a linear probe of features ``(N, F)``.

        Args:
            head: from `make_head`.
            features: ``(N, F)``, held fixed.
            targets: of the N decisions.
            strength: inverse of the probe's regularisation; more fits the training examples closer. None takes one
                that is soft enough to leave a method something to learn.
        """

    @abstractmethod
    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool last hidden states ``(B, T, D)`` under a mask ``(B, T)`` into features ``(B, D)``."""

    @abstractmethod
    def log_probs(self, logits: Tensor) -> Tensor:
        """Turn logits into log-probabilities in nats whose last dimension sums to one in probability."""

    @abstractmethod
    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood in nats, a scalar."""

    def log_likelihood(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return log p(target) of each decision in nats, ``(R,)``; a class counts as `LEAST_LOG_PROB` at least."""
        chosen = log_probs.gather(-1, targets.unsqueeze(-1)).clamp(min=LEAST_LOG_PROB)
        return chosen.flatten(1).sum(-1)

    @abstractmethod
    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        """Turn targets of labelled documents into probabilities shaped as `log_probs` gives them.

        Args:
            targets: of K neighbours of each of R decisions, ``(R, K, …)``.
            asked: the targets of the decisions ``(R, …)``, where answers are about these alone.
        """

    @abstractmethod
    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Score log-probabilities against targets; each metric by name with its interval.

        Args:
            log_probs: in nats, ``(R, …)``.
            targets: of the same decisions.
            examples: what the decisions were on, for a task that scores words and not classes.
            resamples: number of draws; with 0 an interval is the score itself.
            seed: of the draws.
        """

    @property
    def statistic(self) -> str:
        """Which function of sums over examples the main metric is: a name of `peft_rag.evaluation.statistics`."""
        return "mean"

    def tally(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> NDArray[np.float64]:
        """Return what each example adds to the main metric: the columns of `statistic`, ``(B, M)``.

        Unless a task says otherwise, its main metric is the share of examples that are right.

        Args:
            log_probs: in nats, ``(R, …)``.
            targets: of the same decisions.
            examples: as for `evaluate`.
        """
        right: NDArray[np.float64] = self.right(log_probs, targets)[:, None].double().cpu().numpy()
        return right

    def merit(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> tuple[float, float]:
        """Return what choices on validation are made by: the main metric, then the mean log-likelihood in nats."""
        scores = self.evaluate(log_probs, targets, examples=examples, resamples=0)
        return scores[self.main_metric].value, -float(self.loss(log_probs, targets))

    def right(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return whether each decision is right, ``(R,)``: 0 or 1, or the share of its labels."""
        return (log_probs.argmax(-1) == targets).float().reshape(len(targets), -1).mean(-1)

    @abstractmethod
    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        """Return, per example, the predicted labels and the probability of that prediction."""

    def answer(self, example: Example, labels: tuple[str, ...]) -> dict[str, Any]:
        """Write predicted labels as a line of JSON holds them."""
        return {"label": labels[0] if len(labels) == 1 else list(labels)}

    def named_parts(self, example: Example, labels: tuple[str, ...]) -> list[tuple[Span, str]] | None:
        """Return the parts of a text that labels name, with what they are, in order; None where labels name none."""
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(**lists)

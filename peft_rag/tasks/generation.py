"""What tasks share whose answer is a text that the backbone writes.

An answer y of tokens y_1 … y_R is R decisions: log p(y|x) = Σ_t log p(y_t | x, y_<t). Tensors of answers hold the
log-probability of the token that is right, ``(R,)``, and no more: a vocabulary has a hundred thousand others. Features
are the states that the tokens are predicted from, so that a fusion may search among them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from peft_rag.errors import ConfigError
from peft_rag.evaluation.statistics import EXP_MEAN
from peft_rag.records import Record, text_field
from peft_rag.tasks.appending import appended
from peft_rag.tasks.base import LEAST_LOG_PROB, Example, Task
from peft_rag.tasks.decoding import checked_decoding
from peft_rag.tasks.json_schema import JSON_SCHEMA

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from peft_rag.corpus import Document
    from peft_rag.evaluation.bootstrap import Score

TEXT_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Generation(Task):
    """A text that the backbone writes; see the module.

    Attributes:
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        document_field: field with the id, or a list of ids, of the documents that answer; only what is retrieved is
            measured by it.
        target_length: tokens of an answer at most, its end included.
        scored: how many texts of a split are written and scored; 0 for none. Likelihood is measured on all.
        decoding: any of `transformers.GenerationConfig`'s names, such as ``num_beams``, or ``json_schema``; greedy if
            empty.
        choices: if there are any, the answer is one of these.
        tokenizer: the backbone's; no setting.
    """

    id_field: str = "id"
    group_field: str = ""
    document_field: str = ""
    target_length: int = 64
    scored: int = 200
    decoding: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    tokenizer: Any = field(default=None, repr=False, compare=False)
    _known: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _chosen: dict[tuple[int, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", _choices(self.choices))
        if self.target_length < 2:
            raise ConfigError(f"task.target_length is {self.target_length}; a token and the end need two at least.")
        if self.scored < 0:
            raise ConfigError(f"task.scored is {self.scored}; it must not be below 0.")
        object.__setattr__(self, "decoding", checked_decoding(self.decoding))
        if self.choices and JSON_SCHEMA in self.decoding:
            raise ConfigError("task.choices and decoding.json_schema both say what may be written. Leave one out.")

    @property
    def main_metric(self) -> str:
        """The geometric mean of the right tokens' probabilities: 1/perplexity, so that more is better."""
        return "likelihood"

    @property
    @abstractmethod
    def text_metrics(self) -> tuple[str, ...]:
        """Names of the scores of written texts."""

    @property
    def one_decision(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return True

    def with_tokenizer(self, tokenizer: Any) -> Self:
        task = replace(self, tokenizer=tokenizer)
        task.choice_of_tokens()
        return task

    def choice_of_tokens(self) -> dict[tuple[int, ...], str]:
        """Return the choices by the tokens that each is written by, without the end.

        Raises:
            ConfigError: a choice is longer than an answer may be, or two are the same to the tokenizer.
        """
        known = self._chosen
        for choice in () if known else self.choices:
            ids = tuple(self.tokenizer(choice, add_special_tokens=False)["input_ids"])
            if len(ids) + 1 > self.target_length:
                raise ConfigError(
                    f"task.choices holds '{choice[:60]}', which takes {len(ids) + 1} tokens with its end, but "
                    f"task.target_length is {self.target_length}. Raise that, or shorten the choice."
                )
            if ids in known:
                raise ConfigError(
                    f"task.choices holds '{known[ids]}' and '{choice}', which the backbone's tokenizer cuts into the "
                    "same tokens. Leave one out."
                )
            known[ids] = choice
        return known

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        return self

    def stratum(self, example: Example) -> tuple[str, ...]:
        return ()

    def put(self, text: str) -> str:
        """Return a text as it is put to the backbone."""
        return text

    def example_of(self, document: Document, where: str) -> Example:
        text = self.put(document.text)
        return Example(document.id, text, document.labels or None, where, document.group, source=document.text)

    @property
    def passage_template(self) -> str:
        return "{text} {labels}"

    def shown_text(self, document: Document) -> str:
        return self.put(document.text)

    def shown_labels(self, document: Document) -> str:
        return document.labels[0] if document.labels else ""

    def response_ids(self, example: Example) -> list[int]:
        """Return the tokens of the right answer, the end among them; none where it is not known."""
        if not example.labels:
            return []
        if example.tokens:
            return list(example.tokens)
        text = example.labels[0]
        if text not in self._known:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
            self._known[text] = [*ids[: self.target_length - len(end)], *end]
        return self._known[text]

    def decisions(self, example: Example) -> int:
        return len(self.response_ids(example))

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return each right token and whether it is its answer's first, ``(R, 2)``."""
        import torch

        rows = [(token, int(place == 0)) for one in examples for place, token in enumerate(self.response_ids(one))]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)

    @property
    def answer_tokens(self) -> int:
        return self.target_length

    def with_response(self, example: Example, encoded: dict[str, Any], *, start: int | None) -> dict[str, Any]:
        gold = self.response_ids(example)
        return appended(encoded, gold, self.tokenizer, start) if gold else encoded

    def make_head(self, hidden_size: int) -> nn.Module:
        """Return nothing to train: the backbone's own head writes."""
        from torch import nn

        return nn.Identity()

    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Leave the backbone's head as it is."""

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("the backbone's own head reads the states of single tokens")

    def log_probs(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)

    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return -log_probs.clamp(min=LEAST_LOG_PROB).mean()

    def log_likelihood(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return log_probs.clamp(min=LEAST_LOG_PROB)

    def right(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the probability of each right token."""
        return log_probs.exp()

    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return 1 for each neighbour whose token is the right one, ``(R, K)``; of its own token all are sure."""
        import torch

        if asked is None:
            return torch.ones(targets.shape[:-1])
        return (targets[..., 0] == asked[:, :1].to(targets.device)).float()

    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Return likelihood and perplexity of the right tokens, resampled over examples."""
        from peft_rag.evaluation.bootstrap import bootstrap

        def likelihood(tallies: Any) -> float:
            return float(EXP_MEAN.of(tallies.mean(axis=0)))

        mean = bootstrap(likelihood, self.tally(log_probs, targets), resamples=resamples, seed=seed)
        perplexity = replace(mean, value=1 / mean.value, low=1 / mean.high, high=1 / mean.low, percent=False)
        return {"likelihood": mean, "perplexity": perplexity}

    @property
    def statistic(self) -> str:
        return EXP_MEAN.name

    def tally(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> NDArray[np.float64]:
        """Return the log-probability of each right answer in nats, and its tokens, ``(B, 2)``."""
        owner = np.cumsum(targets[:, 1].cpu().numpy()) - 1
        sums = np.bincount(owner, self.log_likelihood(log_probs, targets).double().cpu().numpy())
        return np.stack([sums, np.bincount(owner)], axis=1)

    def score_texts(
        self, texts: Sequence[str], examples: Sequence[Example], *, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Score]:
        """Score written texts against the right ones; an example may have several."""
        from peft_rag.evaluation.answers import answer_scores
        from peft_rag.evaluation.texts import text_scores

        references = [list(example.labels or ("",)) for example in examples]
        chosen = tuple(name for name in self.text_metrics if name in TEXT_METRICS)
        scores = text_scores(texts, references, metrics=chosen, resamples=resamples, seed=seed) if chosen else {}
        answers = answer_scores(texts, references, resamples=resamples, seed=seed)
        known = scores | answers
        return {name: known[name] for name in self.text_metrics}

    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        raise NotImplementedError("a text is written by peft_rag.generation")

    def answer(self, example: Example, labels: tuple[str, ...]) -> dict[str, Any]:
        return {"answer": labels[0] if labels else ""}

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(replace(self, tokenizer=None))
        return {name: value for name, value in settings.items() if name not in ("tokenizer", "_known", "_chosen")}


def _choices(given: Any) -> tuple[str, ...]:
    """Return choices as texts; a flag's are parted by commas."""
    named = given.split(",") if isinstance(given, str) else given
    if not isinstance(named, Sequence) or not all(isinstance(one, str) for one in named):
        raise ConfigError(f'task.choices is {given!r}; it must be a list of texts: ["yes", "no"], as a flag yes,no.')
    return tuple(text for text in (one.strip() for one in named) if text)


def answers_field(record: Record, name: str, flag: str) -> tuple[str, ...]:
    """Return the right answers of a record: a text, a list of texts, or a mapping with these under ``text`` (SQuAD).

    Args:
        record: the record.
        name: the field's name.
        flag: the option by which a user names the field.

    Raises:
        DataError: there is none, or one is empty.
    """
    given = record.fields.get(name)
    if isinstance(given, Mapping):
        given = given.get("text")
    if name not in record.fields:
        return (text_field(record, name, flag),)  # which says so
    several = given if isinstance(given, (list, tuple)) and given else [given or ""]
    return tuple(text_field(replace(record, fields={name: one}), name, flag) for one in several)


def documents_field(record: Record, name: str) -> tuple[str, ...]:
    """Return the ids of documents that a field names, one or a list; none where it is missing or has no name."""
    given = record.fields.get(name) if name else None
    several = given if isinstance(given, (list, tuple)) else [given]
    return tuple(str(one).strip() for one in several if one is not None)

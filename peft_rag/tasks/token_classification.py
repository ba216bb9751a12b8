"""Token classification: a tag for each word, as in named entity recognition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import regex
from typing_extensions import Self

from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError, DataError, RetrievalError
from peft_rag.records import Record, name_field, text_field, words_field
from peft_rag.registry import suggest
from peft_rag.tasks.base import Example, Pools, Span, Task
from peft_rag.tasks.bio import OUTSIDE, check_bio, tags_of_spans
from peft_rag.tasks.probe import fit_probe
from peft_rag.tasks.spans import bears_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from peft_rag.corpus import Document
    from peft_rag.evaluation.bootstrap import Score

# regex, unlike re, takes combining marks (Indic vowel signs, Thai tones, accents) for a part of their letter's word.
_WORDS = {"spaces": regex.compile(r"\S+"), "letters": regex.compile(r"[\w\p{No}]+|[^\w\s]")}


@dataclass(frozen=True)
class TokenClassification(Task):
    """A BIO tag for each word: p(y_1 … y_U|x) = Π_u p(y_u|x), judged by the state of a word's first token.

    Records hold ``tokens`` and ``tags``, or a ``text`` and ``spans`` of characters (``start``, ``end``, ``label``); the
    words of a text are runs of letters, and single other signs. A prediction names the entities with their characters
    in the text. Entities are right where their words and their type are (strict IOB2, as seqeval counts them).

    Targets are rows ``(R, 2)``, one a word: the class of its tag, and 1 where a text begins.

    Attributes:
        tokens_field, tags_field: fields of a record that hold its words, and their tags.
        text_field, spans_field: fields that hold a text, and its entities, where there are no tokens.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        words: how a document of the corpus is cut into words: at ``spaces``, which tokens are joined by, or into runs
            of ``letters``; taken from the training data.
        labels: the tags, in the order of the head's outputs; taken from the training data.
    """

    tokens_field: str = "tokens"
    tags_field: str = "tags"
    text_field: str = "text"
    spans_field: str = "spans"
    id_field: str = "id"
    group_field: str = ""
    words: Literal["", "spaces", "letters"] = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.words not in ("", *_WORDS):
            raise ConfigError(f"task.words is '{self.words}'. Choose {' or '.join(_WORDS)}, or leave it out.")

    @property
    def main_metric(self) -> str:
        return "entity_f1"

    @property
    def one_decision(self) -> bool:
        return False

    @property
    def pools_spans(self) -> bool:
        return True

    def decisions(self, example: Example) -> int:
        return len(example.spans)

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        return [self._read(number, record, labelled) for number, record in enumerate(records, start=1)]

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        named = name_field(record, self.id_field) or str(number)
        group = name_field(record, self.group_field)
        if self.tokens_field in record.fields:
            words = words_field(record, self.tokens_field, "--task.tokens_field")
            text = " ".join(words)
            tags = words_field(record, self.tags_field, "--task.tags_field") if labelled else None
            spans = _cut(text, "spaces")
            if tags is not None and len(tags) != len(words):
                raise DataError(
                    f"{record.where}: {len(words)} tokens in '{self.tokens_field}', but {len(tags)} tags in "
                    f"'{self.tags_field}'. Give one tag for each token."
                )
        else:
            text = text_field(record, self.text_field, "--text_field")
            spans = _cut(text, "letters")
            tags = tags_of_spans(record, self.spans_field, text, spans) if labelled else None
        if tags is not None:
            check_bio(tags, record.where)
        return Example(named, text, None if tags is None else tuple(tags), record.where, group, tuple(spans))

    def as_example(self, text: str, identity: str) -> Example:
        return Example(identity, text, spans=tuple(_cut(text, "letters")))

    def example_of(self, document: Document, where: str) -> Example:
        spans = _cut(document.text, self.words or "letters")
        if len(spans) != len(document.labels):
            raise RetrievalError(
                f"{where}: has {len(document.labels)} labels for {len(spans)} words, but words can vote only where "
                "each has its tag. Use the training data as corpus (leave --corpus out), or --fusion concat or none."
            )
        return Example(document.id, document.text, document.labels, where, document.group, tuple(spans))

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        tags = {tag for example in examples for tag in example.labels or ()}
        kinds = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
        if not kinds:
            raise DataError(
                f"the training data has no entity in field '{self.tags_field}': every tag is {OUTSIDE}. Name the field "
                "with --task.tags_field."
            )
        labels = (OUTSIDE, *(f"{begin}-{kind}" for kind in kinds for begin in "BI"))
        spaced = all(tuple(_cut(example.text, "spaces")) == example.spans for example in examples)
        return replace(self, labels=labels, words=self.words or ("spaces" if spaced else "letters"))

    def stratum(self, example: Example) -> tuple[str, ...]:
        """Return the kinds of entities that a text holds."""
        return tuple(sorted({tag[2:] for tag in example.labels or () if tag != OUTSIDE}))

    def shown_labels(self, document: Document) -> str:
        """Write a document's entities with their kinds, as in ``Paris (location), Ada (person)``."""
        spans = tuple(_cut(document.text, self.words or "letters"))
        if len(spans) != len(document.labels):
            return ", ".join(document.labels)
        try:
            parts = self.named_parts(Example(document.id, document.text, spans=spans), document.labels)
        except DataError:  # a label of the whole text, which has one word
            return ", ".join(document.labels)
        return ", ".join(f"{document.text[slice(*span)]} ({kind})" for span, kind in parts) or "nothing"

    def targets(self, examples: Sequence[Example]) -> Tensor:
        import torch

        number = {label: index for index, label in enumerate(self.labels)}
        rows = []
        for example in examples:
            for place, tag in enumerate(example.labels or ()):
                if tag not in number:
                    raise DataError(
                        f"{example.where}: tag '{tag}' does not occur in the training data ({len(self.labels)} tags)."
                        f"{suggest(tag, list(self.labels))} Add training examples with it, or correct the record."
                    )
                rows.append((number[tag], int(place == 0)))
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)

    def make_head(self, hidden_size: int) -> nn.Module:
        from torch import nn

        return nn.Linear(hidden_size, len(self.labels))

    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Fit a logistic regression to the words' features and copy it into the head."""
        fit_probe(head, features, targets[:, 0], len(self.labels), strength)

    def pools(self, example: Example, spans: Sequence[Span | None]) -> Pools:
        """Return the first token of each word; a word that the tokenizer drops is judged by the token before it."""
        tokens = [(place, span) for place, span in enumerate(spans) if span is not None and span[0] < span[1]]
        last = max((span[1] for _, span in tokens), default=0)
        chosen: Pools = []
        at = 0
        for begin, end in example.spans:
            while at < len(tokens) - 1 and tokens[at][1][1] <= begin:
                at += 1
            if begin >= last and bears_text(example.text[begin:end]):
                raise DataError(
                    f"{example.where or 'the text'}: word {len(chosen) + 1} of {len(example.spans)} "
                    f"('{example.text[begin:end]}') lies beyond the window of tokens, so that it would get no tag. "
                    "Raise --max_length, or cut the text into sentences."
                )
            before = tokens[max(0, at - 1)][0] if tokens else 0
            fits = bool(tokens) and tokens[at][1][0] < end and tokens[at][1][1] > begin
            chosen.append([[tokens[at][0] if fits else before]])
        return chosen

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("words are pooled one by one")

    def log_probs(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)

    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return -log_probs.gather(-1, targets[:, :1]).mean()

    def log_likelihood(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return super().log_likelihood(log_probs, targets[:, 0])

    def right(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return super().right(log_probs, targets[:, 0])

    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        from torch.nn.functional import one_hot

        return one_hot(targets[..., 0], len(self.labels)).float()

    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Return precision, recall and F1 of entities, resampled over texts."""
        from peft_rag.evaluation.entities import entity_scores

        return entity_scores(*self._texts(log_probs, targets), resamples=resamples, seed=seed)

    @property
    def statistic(self) -> str:
        return "f1"

    def tally(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> NDArray[np.float64]:
        """Return each text's entities found rightly, predicted and actual, ``(B, 3)``."""
        from peft_rag.evaluation.entities import entity_counts

        return entity_counts(*self._texts(log_probs, targets)).astype(float)

    def _texts(self, log_probs: Tensor, targets: Tensor) -> tuple[list[list[str]], list[list[str]]]:
        """Return predicted and actual tags, text by text."""
        begins = targets[:, 1].nonzero().flatten().tolist()
        rows = [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(targets)], strict=True)]
        predicted, actual = self._tags(log_probs.argmax(-1)), self._tags(targets[:, 0])
        return [predicted[row] for row in rows], [actual[row] for row in rows]

    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        best, chosen = log_probs.max(-1)
        sums = Decisions.on(self, examples).sums(best).tolist()
        tags = iter(self._tags(chosen))
        return [
            (tuple(next(tags) for _ in example.spans), math.exp(value))
            for example, value in zip(examples, sums, strict=True)
        ]

    def answer(self, example: Example, labels: tuple[str, ...]) -> dict[str, Any]:
        """Name the entities with their characters in the text, and the tag of each word."""
        found = [
            {"start": span[0], "end": span[1], "label": kind, "text": example.text[slice(*span)]}
            for span, kind in self.named_parts(example, labels)
        ]
        return {"entities": found, "tags": list(labels)}

    def named_parts(self, example: Example, labels: tuple[str, ...]) -> list[tuple[Span, str]]:
        from peft_rag.evaluation.entities import entities

        return [((example.spans[one.start][0], example.spans[one.end - 1][1]), one.type) for one in entities(labels)]

    def _tags(self, classes: Tensor) -> list[str]:
        return [self.labels[index] for index in classes.tolist()]


def _cut(text: str, words: str) -> list[Span]:
    return [match.span() for match in _WORDS[words].finditer(text)]

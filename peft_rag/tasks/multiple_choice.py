"""Multiple choice: which of a question's own choices is right."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from peft_rag.errors import ConfigError, DataError
from peft_rag.records import Record, name_field, text_field
from peft_rag.tasks.appending import appended, check_prompt
from peft_rag.tasks.base import CHOICE_LENGTH, LEAST_LOG_PROB, MORE, Example, Pools, Span, Task
from peft_rag.tasks.probe import fit_probe
from peft_rag.tasks.scoring import class_scores
from peft_rag.tasks.spans import tokens_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.corpus import Document
    from peft_rag.evaluation.bootstrap import Score

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class MultipleChoice(Task):
    """One of a question's choices, judged by its state or by its likelihood.

    By ``state``: p(c|x) = softmax_c(w·h_c), with h_c the mean state of the tokens of choice c. Question and choices are
    read as one text, ``question A. … B. …``, so that choices are judged beside each other, and one linear layer scores
    them all. On a decoder a choice knows only those before it. A question may have fewer
    choices than others: what it has not gets a log-probability of `LEAST_LOG_PROB`, a probability of 0. Labels are
    letters, and those of neighbours are other questions': documents cannot vote, but can be read.

    By ``likelihood``: p(c|x) = softmax_c(log p(c|x) / n_c), with log p(c|x) = Σ_t log p(c_t | x, c_<t) by the
    backbone's own head, so that one that writes answers untrained, and no head is trained. Each choice is read by
    itself after the question, before which neighbours stand with their right choices; n_c is 1, its tokens or its
    characters. Labels are the right choices' texts.

    State is the default because every backbone has one, and with few examples the choices seen beside each other tell
    more than single ones; likelihood needs a backbone that writes.

    Dims: R questions, C choices of one at most, D hidden size.

    Source: likelihood of choices over their length: Brown et al. 2020, arXiv:2005.14165, section 2.4.

    Attributes:
        question_field: field of a record that holds the question.
        choices_field: field that holds a list of texts, two at least, each once.
        label_field: field that holds the right choice: its text, its letter, or its position counted from 0.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        by: ``state`` or ``likelihood``.
        prompt: by likelihood, how a question is put to the backbone, with ``{question}`` in it.
        length: by likelihood, what n_c counts: ``tokens``, ``characters``, or ``none`` for 1.
        choice_tokens: by likelihood, tokens of a choice at most.
        labels: the letters of as many choices as a question has at most; taken from the training data.
        tokenizer: the backbone's; no setting.
    """

    question_field: str = "question"
    choices_field: str = "choices"
    label_field: str = "label"
    id_field: str = "id"
    group_field: str = ""
    by: Literal["state", "likelihood"] = "state"
    prompt: str = "{question}"
    length: Literal["tokens", "characters", "none"] = "tokens"
    choice_tokens: int = 32
    labels: tuple[str, ...] = ()
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_prompt(self.prompt, "question")
        for name, known in (("by", ("state", "likelihood")), ("length", ("tokens", "characters", "none"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"task.{name} is '{getattr(self, name)}'. Choose {', '.join(known)}.")
        if self.choice_tokens < 1:
            raise ConfigError(f"task.choice_tokens is {self.choice_tokens}; it must be at least 1.")

    @property
    def appends(self) -> bool:
        return self.by == "likelihood"

    @property
    def answer_tokens(self) -> int:
        return self.choice_tokens if self.appends else 0

    @property
    def answer_tokens_option(self) -> str:
        return "choice_tokens"

    def with_tokenizer(self, tokenizer: Any) -> Self:
        return replace(self, tokenizer=tokenizer)

    @property
    def main_metric(self) -> str:
        return "accuracy"

    @property
    def votes(self) -> bool:
        return False

    @property
    def pools_spans(self) -> bool:
        return not self.appends

    @property
    def passage_template(self) -> str:
        return "{text} {labels}" if self.appends else super().passage_template

    def shown_text(self, document: Document) -> str:
        return self._put(document.text) if self.appends else document.text

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        return [self._read(number, record, labelled) for number, record in enumerate(records, start=1)]

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        text = text_field(record, self.question_field, "--task.question_field")
        choices = self._choices(record)
        named = name_field(record, self.id_field) or str(number)
        group = name_field(record, self.group_field)
        right = self._right(record, choices) if labelled else ""
        if self.appends:
            labels = (choices[LETTERS.index(right)],) if labelled else None
            return Example(named, self._put(text), labels, record.where, group, choices=tuple(choices), source=text)
        spans = []
        for letter, choice in zip(LETTERS, choices, strict=False):
            text += f" {letter}. "
            spans.append((len(text), len(text) + len(choice)))
            text += choice
        return Example(named, text, (right,) if labelled else None, record.where, group, tuple(spans))

    def _put(self, question: str) -> str:
        return self.prompt.replace("{question}", question)

    def _choices(self, record: Record) -> list[str]:
        given = record.fields.get(self.choices_field)
        if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) and one.strip() for one in given):
            raise DataError(
                f"{record.where}: field '{self.choices_field}' must be a list of texts, none of them empty. Name the "
                "field with --task.choices_field."
            )
        choices = [one.strip() for one in given]
        twice = next((one for place, one in enumerate(choices) if one in choices[:place]), None)
        if twice is not None:
            raise DataError(f"{record.where}: choice '{twice}' is there twice. Give each choice once.")
        if not 2 <= len(choices) <= len(LETTERS):
            raise DataError(
                f"{record.where}: field '{self.choices_field}' has {len(choices)} of them. Give two to {len(LETTERS)}."
            )
        return choices

    def _right(self, record: Record, choices: Sequence[str]) -> str:
        """Return the letter of the right choice."""
        value = record.fields.get(self.label_field)
        letters = LETTERS[: len(choices)]
        if isinstance(value, str) and value.strip() in choices:
            return letters[choices.index(value.strip())]
        if isinstance(value, str) and len(value.strip()) == 1 and value.strip() in letters:
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
            if choices[value] != str(value) and str(value) in choices:
                raise DataError(
                    f"{record.where}: field '{self.label_field}' is {value}, which is a choice, and the position of "
                    f'another. Give the text of the right choice, "{value}" or "{choices[value]}", or its letter.'
                )
            return letters[value]
        raise DataError(
            f"{record.where}: field '{self.label_field}' is {value!r}, which is none of the {len(choices)} choices. "
            f"Give the text of the right one, its letter (A to {letters[-1]}) or its position "
            f"(0 to {len(choices) - 1}), or name the field with --label_field."
        )

    @property
    def sample(self) -> dict[str, Any]:
        return {self.question_field: "Which is it?", self.choices_field: ["this", "that"]}

    def as_example(self, text: str, identity: str) -> Example:
        raise DataError(
            f"a bare text has no choices. Give records with '{self.question_field}' and '{self.choices_field}'."
        )

    def stratum(self, example: Example) -> tuple[str, ...]:
        """Return the same for all: the place of the right choice makes no kind of question."""
        return ()

    def shown_labels(self, document: Document) -> str:
        """Write the right choice of a document that has choices, and the labels of any other."""
        if not document.spans:
            return super().shown_labels(document)
        return ", ".join(document.text[slice(*document.spans[LETTERS.index(letter)])] for letter in document.labels)

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        return replace(self, labels=tuple(LETTERS[: max(map(_choices_of, examples))]))

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return the place of each right choice, ``(R,)``."""
        import torch

        for example in examples:
            self._check_count(example)
        places = [_letters_of(example).index((example.labels or ("",))[0]) for example in examples]
        return torch.tensor(places, dtype=torch.long)

    def _check_count(self, example: Example) -> None:
        if _choices_of(example) > len(self.labels):
            raise DataError(
                f"{example.where}: has {_choices_of(example)} choices, but no question of the training data has "
                f"more than {len(self.labels)}. Add training examples with as many, or leave some choices out."
            )

    def with_response(self, example: Example, encoded: dict[str, Any], *, start: int | None) -> dict[str, Any]:
        """Return one input for each choice: the question's with the tokens of that choice after it."""
        self._check_count(example)
        inputs = []
        for choice in example.choices:
            # Where words begin with a space, so does a word that goes on; after a line break or a space none does.
            space = " " if start is None and example.text and not example.text[-1].isspace() else ""
            gold = self.tokenizer(space + choice, add_special_tokens=False)["input_ids"]
            if not 0 < len(gold) <= self.choice_tokens:
                raise DataError(
                    f"{example.where or 'the question'}: choice '{choice}' has {len(gold)} tokens, but must have 1 to "
                    f"{self.choice_tokens} (--task.choice_tokens). Raise that, or shorten the choice."
                )
            length = {"tokens": len(gold), "characters": len(choice), "none": 1}[self.length]
            inputs.append(appended(encoded, gold, self.tokenizer, start) | {CHOICE_LENGTH: length})
        return inputs[0] | {MORE: inputs[1:]}

    def make_head(self, hidden_size: int) -> nn.Module:
        if self.appends:
            from torch import nn

            return nn.Identity()
        from peft_rag.tasks.choice_scores import ChoiceScores

        return ChoiceScores(hidden_size, len(self.labels))

    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Fit a logistic regression of right and wrong choices, each beside the others; of likelihoods nothing."""
        if self.appends:
            return
        from torch.nn.functional import one_hot

        from peft_rag.tasks.choice_scores import beside_the_others, missing

        each = head.apart(features)
        right = one_hot(targets, len(self.labels))[~missing(each).to(targets.device)]
        fit_probe(head.score, beside_the_others(each), right.unsqueeze(-1), 1, strength)

    def pools(self, example: Example, spans: Sequence[Span | None]) -> Pools:
        """Return the tokens of each choice, and none of those that the question has not."""
        self._check_count(example)
        where = example.where or "the question"
        chosen = [
            tokens_of(part, example.text, spans, f"{where}: choice {letter}")
            for letter, part in zip(LETTERS, example.spans, strict=False)
        ]
        return [chosen + [[]] * (len(self.labels) - len(chosen))]

    def pooled(self, pools: Tensor) -> Tensor:
        """Join the means of a question's choices ``(R·C, D)``, each of length one: ``(R, C·D)``."""
        from torch.nn.functional import normalize

        return normalize(pools, dim=-1).reshape(-1, len(self.labels) * pools.shape[-1])

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("choices are pooled one by one")

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return log p(c|x), finite even for a missing choice, so that mixtures and gradients are numbers."""
        from torch.nn.functional import pad

        logits = pad(logits, (0, len(self.labels) - logits.shape[-1]), value=-math.inf)
        return logits.float().log_softmax(-1).masked_fill(logits.isneginf(), LEAST_LOG_PROB)

    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return -log_probs.gather(-1, targets.unsqueeze(-1)).mean()

    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        from torch.nn.functional import one_hot

        return one_hot(targets, len(self.labels)).float()

    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Return accuracy and ECE."""
        from peft_rag.evaluation.scores import accuracy

        return class_scores(log_probs, targets, {"accuracy": accuracy}, resamples=resamples, seed=seed)

    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        best, chosen = log_probs.max(-1)
        rows = zip(examples, chosen.tolist(), best.tolist(), strict=True)
        return [((_letters_of(example)[index],), math.exp(value)) for example, index, value in rows]

    def answer(self, example: Example, labels: tuple[str, ...]) -> dict[str, Any]:
        """Name the letter and the text of the choice."""
        if self.appends:
            return {"label": LETTERS[example.choices.index(labels[0])], "choice": labels[0]}
        return {"label": labels[0], "choice": example.text[slice(*example.spans[LETTERS.index(labels[0])])]}

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(replace(self, tokenizer=None))
        return {name: value for name, value in settings.items() if name != "tokenizer"}


def _choices_of(example: Example) -> int:
    return len(example.choices or example.spans)


def _letters_of(example: Example) -> Sequence[str]:
    """Return what the labels of an example are, in the order of its choices."""
    return example.choices or LETTERS

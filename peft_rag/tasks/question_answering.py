"""Question answering: the words of a context that answer a question, or that none do."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import regex
from typing_extensions import Self

from peft_rag.errors import ConfigError, DataError, RetrievalError
from peft_rag.records import Record, name_field, text_field
from peft_rag.tasks.answers import NOWHERE, Answer, answers_of
from peft_rag.tasks.base import LEAST_LOG_PROB, Example, Passage, Pools, Reach, Span, Task
from peft_rag.tasks.contexts import Contexts
from peft_rag.tasks.open_contexts import (
    NO_WORD,
    alone,
    answer_texts,
    best_within,
    opened,
    read_pieces,
    supported,
    words_in,
)
from peft_rag.tasks.windows import Window, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from peft_rag.corpus import Document
    from peft_rag.evaluation.bootstrap import Score

# regex, unlike re, takes combining marks (Indic vowel signs, Thai tones, accents) for a part of their letter's word.
# Kana and Han characters are words each: no spaces stand between theirs.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = regex.compile(rf"(?V1)[{_ALONE}]|[[\w\p{{No}}]--[{_ALONE}]]+|[^\w\s]")
_UNREAD = -1


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """An answer as a span of its context: p(s, e|q, c) = p(s|q, c)·p(e|q, c), first word s and last word e.

    Both are softmaxes over the words of the context and one position more, ∅, which says that there is no answer. Words
    are runs of letters, and single other signs or Han characters; each is judged by the state of its last token. The
    answer is

        (s, e) = argmax over s ≤ e < s + max_answer_words of log p(s) + log p(e),

    or nothing where log p(s = ∅) + log p(e = ∅) is no less than that,
    and the loss is the mean of -log p(s) and -log p(e). A record holds ``question``, ``context`` and ``answers`` as
    SQuAD has them, ``{"text": […], "answer_start": […]}``, both empty where there is none; or ``context_id``, which is
    looked up in the file that ``contexts`` names. The first answer is learned; any of them is right (exact match and
    F1 as SQuAD counts them). The model reads the question and the context as one text. A context longer than its
    window is read in several, which share ``overlap`` words; p(s) and p(e) run over the words of all of them, so that
    nothing needs to be joined afterwards.

    Labels are answers, each written as its text and the character of the context it begins at: ``Paris @17``.
    Targets are rows ``(R, 2)``: the positions of the first and the last word, 0 for no answer, -1 where the answer
    lies beyond ``context_words`` or in no passage, which no loss is taken of.

    With ``retrieved``, the question alone is asked, and the fusion ``contexts`` finds passages for it. Each is read by
    itself, in windows where it is long, and p(s) and p(e) run over the words of all of them; an answer lies within one.
    What is learned from is read with the context of its record among the passages, in which alone the answer is marked.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 4.3; one softmax over all windows: Clark & Gardner 2018,
    arXiv:1710.10723, section 3.2; passages as contexts: Chen et al. 2017, arXiv:1704.00051.

    Attributes:
        question_field, context_field, answers_field: fields of a record.
        context_id_field: field that names its context, where it does not hold it.
        contexts: file, folder or hub data set of contexts, with ``id`` and ``text``; needed where records name theirs.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        retrieved: whether contexts are retrieved; those of the records are then learned from and else not looked at.
        context_words: words of a context that are read at most, of all passages together where there are several.
        overlap: words that two windows share at most; the windows' stride.
        max_answer_words: words of an answer at most.
    """

    question_field: str = "question"
    context_field: str = "context"
    answers_field: str = "answers"
    context_id_field: str = "context_id"
    contexts: str = ""
    retrieved: bool = False
    id_field: str = "id"
    group_field: str = ""
    context_words: int = 384
    overlap: int = 32
    max_answer_words: int = 30

    def __post_init__(self) -> None:
        for name, least in (("context_words", 1), ("overlap", 0), ("max_answer_words", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; it must be at least {least}.")

    @property
    def main_metric(self) -> str:
        return "f1"

    @property
    def pools_spans(self) -> bool:
        return True

    @property
    def probes(self) -> bool:
        return False

    @property
    def votes(self) -> bool:
        return False

    @property
    def opens(self) -> bool:
        return self.retrieved

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        return [self._read(number, record, labelled) for number, record in enumerate(records, start=1)]

    @cached_property
    def _contexts(self) -> Contexts:
        """What is kept apart, read once however often records are."""
        return Contexts(self.contexts)

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        question = text_field(record, self.question_field, "--task.question_field")
        if self.retrieved and not (labelled and self._names_context(record)):
            return self._without_context(number, record, question, labelled)
        context = self._contexts.of(record, self.context_field, self.context_id_field)
        labels = None
        if labelled:
            labels = tuple(str(answer) for answer in answers_of(record, self.answers_field, context))
        example = self._example(question, context, self._about(number, record, labels))
        if not self.retrieved:
            return example
        begin = _context_begin(example)
        named = name_field(record, self.context_id_field)
        given = Passage(named, begin, begin + len(context))
        return replace(example, passages=(given,), documents=(named,) if named else ())

    def _about(self, number: int, record: Record, labels: tuple[str, ...] | None) -> Example:
        named, group = name_field(record, self.id_field) or str(number), name_field(record, self.group_field)
        return Example(named, "", labels, record.where, group)

    def _names_context(self, record: Record) -> bool:
        return any(record.fields.get(name) is not None for name in (self.context_field, self.context_id_field))

    def _without_context(self, number: int, record: Record, question: str, labelled: bool) -> Example:
        labels = tuple(map(str, answer_texts(record, self.answers_field))) if labelled else None
        return self._example(question, "", self._about(number, record, labels))

    def alone(self, example: Example) -> Example:
        return alone(example) if self.retrieved else example

    def opened(self, example: Example, found: Sequence[Document], *, learn: bool) -> Example:
        return opened(example, found, self._example, learn=learn)

    def _example(self, question: str, context: str, about: Example) -> Example:
        """Write question and context as one text: a line with the question, the context beneath."""
        asked = " ".join(question.split()) + "\n"
        words = [match.span() for match in _WORD.finditer(context)][: self.context_words]
        spans = [(begin + len(asked), end + len(asked)) for begin, end in words]
        return replace(about, text=asked + context, spans=(*spans, *[NO_WORD] * (self.context_words - len(spans))))

    @property
    def sample(self) -> dict[str, Any]:
        context = {} if self.retrieved else {self.context_field: "Ada met Ben in Rome."}
        return {self.question_field: "Where did Ada meet Ben?", **context}

    def as_example(self, text: str, identity: str) -> Example:
        """Return a question on its first line, and its context beneath, as an example without labels."""
        question, _, context = text.strip().partition("\n")
        if self.retrieved:
            return self._example(question, "", Example(identity, ""))
        if not context.strip():
            raise DataError(
                f"text {identity}: holds no context beneath its first line, which is the question. Give records with "
                f"'{self.question_field}' and '{self.context_field}'."
            )
        return self._example(question, context, Example(identity, ""))

    def example_of(self, document: Document, where: str) -> NoReturn:
        raise RetrievalError(
            f"{where}: cannot vote on an answer, which lies in its own context alone. Use --fusion concat or none."
        )

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        if self.retrieved and not any(example.passages for example in examples):
            raise DataError(
                "no question of the training data names the context that its answer is learned from. Give it in field "
                f"'{self.context_field}', or its id in '{self.context_id_field}'."
            )
        return self

    def stratum(self, example: Example) -> tuple[str, ...]:
        """Return whether a question has an answer."""
        return ("answer",) if example.labels else ("no answer",)

    def shown_labels(self, document: Document) -> str:
        return ", ".join(Answer.read(label).text for label in document.labels)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Count the answers that lie too far back to be learned, and those that are not whole words."""
        answered = [example for example in examples if example.labels]
        places = [self._target(example) for example in answered]
        unread = [example for example, place in zip(answered, places, strict=True) if place[0] == _UNREAD]
        parts = [
            example
            for example, place in zip(answered, places, strict=True)
            if place[0] != _UNREAD and self._text(example, place) != _first(example).text
        ]
        what = {
            f"beyond the first {self.context_words:,} words of a context, counted as wrong and not learned from (raise "
            "--task.context_words)": unread,
            "that are not whole words, learned as the words they are in": parts,
        }
        return [
            f"{len(found):,} of {len(answered):,} answers {why}, the first at {found[0].where}"
            for why, found in what.items()
            if found
        ]

    def targets(self, examples: Sequence[Example]) -> Tensor:
        import torch

        return torch.tensor([self._target(example) for example in examples], dtype=torch.long).reshape(-1, 2)

    def _target(self, example: Example) -> tuple[int, int]:
        """Return the positions of the first and the last word of the answer that is learned."""
        if not example.labels:
            return 0, 0
        answer, context = _first(example), _context_begin(example)
        if answer.start == NOWHERE:
            return _UNREAD, _UNREAD
        begin, end = context + answer.start, context + answer.start + len(answer.text)
        inside = [place for place, (first, last) in enumerate(example.spans, 1) if first < end and last > begin]
        if not inside or example.spans[inside[-1] - 1][1] < end:
            return _UNREAD, _UNREAD
        return inside[0], inside[-1]

    def make_head(self, hidden_size: int) -> nn.Module:
        from peft_rag.tasks.span_head import SpanHead

        return SpanHead(hidden_size)

    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        raise NotImplementedError("the states of all words are not kept, so that this head is trained alone")

    def pieces(self, example: Example, reach: Reach) -> Sequence[Example]:
        """Return the windows that a long context is read in, each beneath the question.

        Raises:
            DataError: the question leaves no room for a word.
        """
        begin = _context_begin(example)
        words = _words(example)
        found = windows(example.text, begin, words, self.overlap, reach)
        if not found:
            raise DataError(
                f"{example.where or 'the text'}: the question leaves no room for its context in the window of tokens. "
                "Raise --max_length, or shorten the question."
            )
        if len(found) == 1:
            return (example,)
        return [self._piece(example, begin, words, one, one is found[-1]) for one in found]

    def opened_pieces(self, example: Example, kept: Collection[str], reach: Reach) -> Sequence[Example]:
        return read_pieces(example, _words(example), kept, lambda part: self.pieces(part, reach))

    def _piece(self, example: Example, begin: int, words: Sequence[Span], one: Window, last: bool) -> Example:
        back = words[one.first][0] - begin
        spans = [(first - back, end - back) for first, end in words[one.owned.start : one.owned.stop]]
        spans += [NO_WORD] * (len(example.spans) - len(words)) if last else []
        text = example.text[:begin] + example.text[words[one.first][0] : words[one.last - 1][1]]
        return replace(example, text=text, spans=tuple(spans))

    def pools(self, example: Example, spans: Sequence[Span | None]) -> Pools:
        """Return the last token of each word; a word that the tokenizer drops is judged by the token before it."""
        tokens = [(place, span) for place, span in enumerate(spans) if span is not None and span[0] < span[1]]
        pools: list[list[int]] = []
        at, last = 0, 0
        for begin, end in example.spans:
            if (begin, end) == NO_WORD:
                pools.append([])
                continue
            while at < len(tokens) and tokens[at][1][0] < end:
                last = tokens[at][0]
                at += 1
            pools.append([last])
        return [pools]

    def pooled(self, pools: Tensor) -> Tensor:
        """Return the states of each context's words, their entries scaled to size one: ``(R, W, D)``."""
        from torch.nn.functional import normalize

        return normalize(pools, dim=-1).reshape(-1, self.context_words, pools.shape[-1]) * math.sqrt(pools.shape[-1])

    def kept(self, features: Tensor) -> Tensor:
        """Return the mean state of each context's words, ``(R, D)``."""
        from peft_rag.tasks.span_head import mean_words

        return mean_words(features)

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("words are pooled one by one")

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return log p(s) and log p(e) in nats, ``(R, 2, 1 + W)``; `LEAST_LOG_PROB` where there is no word."""
        logits = logits.float()
        return logits.log_softmax(-1).masked_fill(logits.isneginf(), LEAST_LOG_PROB)

    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of -log p(s) and -log p(e) over the answers that are read; 0 where none is."""
        chosen = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        read = targets != _UNREAD
        return -(chosen * read).sum() / read.sum().clamp(min=1)

    def log_likelihood(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        given = super().log_likelihood(log_probs, targets.clamp(min=0))
        return given.masked_fill(targets[:, 0] == _UNREAD, 2 * LEAST_LOG_PROB)

    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        from torch.nn.functional import one_hot

        return one_hot(targets.clamp(min=0), 1 + self.context_words).float()

    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Return exact match and F1 of the answers' words against any of the right ones, as SQuAD counts them."""
        from peft_rag.evaluation.answers import answer_scores

        return answer_scores(*self._answers(log_probs, examples), resamples=resamples, seed=seed)

    def tally(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> NDArray[np.float64]:
        """Return F1 of each answer, ``(B, 1)``."""
        from peft_rag.evaluation.answers import token_f1s

        return token_f1s(*self._answers(log_probs, examples))[:, None]

    def _answers(self, log_probs: Tensor, examples: Sequence[Example]) -> tuple[list[str], list[list[str]]]:
        """Return what is answered, and the right answers."""
        spans = self._spans(log_probs, examples)
        texts = [self._text(example, span) for example, span in zip(examples, spans, strict=True)]
        return texts, [[Answer.read(label).text for label in example.labels or ()] for example in examples]

    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        said: list[tuple[tuple[str, ...], float]] = []
        for given, example, span in zip(log_probs, examples, self._spans(log_probs, examples), strict=True):
            probability = math.exp(float(given[0, span[0]] + given[1, span[1]]))
            text, start = self._text(example, span), example.spans[span[0] - 1][0] - _context_begin(example)
            said.append(((str(Answer(text, start)),) if text else (), probability))
        return said

    def answer(self, example: Example, labels: tuple[str, ...]) -> dict[str, Any]:
        """Write an answer with its characters in the context; an empty one, and no characters, where there is none."""
        if not labels:
            return {"answer": "", "start": None, "end": None, **({"passage": None} if self.retrieved else {})}
        answer = Answer.read(labels[0])
        if self.retrieved:
            return supported(example, answer)
        return {"answer": answer.text, "start": answer.start, "end": answer.start + len(answer.text)}

    def _spans(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[int, int]]:
        """Return the positions of the first and the last word of the best answer to each question."""
        import torch

        from peft_rag.tasks.span_head import best_spans

        if len(examples) != len(log_probs):
            raise ValueError(f"{len(log_probs)} answers, but {len(examples)} examples to take their words from")
        if self.retrieved:
            pairs = zip(log_probs.cpu(), examples, strict=True)
            return [best_within(row, words_in(one, _words(one)), self.max_answer_words) for row, one in pairs]
        words = torch.tensor([len(example.spans) - example.spans.count(NO_WORD) for example in examples])
        return [(first, last) for first, last in best_spans(log_probs.cpu(), words, self.max_answer_words).tolist()]

    def _text(self, example: Example, span: tuple[int, int]) -> str:
        """Return the words at two positions and what stands between them; nothing where there is no answer."""
        first, last = span
        return example.text[example.spans[first - 1][0] : example.spans[last - 1][1]] if first > 0 else ""


def _first(example: Example) -> Answer:
    return Answer.read((example.labels or ("",))[0])


def _words(example: Example) -> list[Span]:
    return [span for span in example.spans if span != NO_WORD]


def _context_begin(example: Example) -> int:
    return example.text.index("\n") + 1

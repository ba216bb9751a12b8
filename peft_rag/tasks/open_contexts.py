"""Passages that were found for a question, read as contexts of its own and told apart in one text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from peft_rag.corpus import text_key
from peft_rag.errors import DataError
from peft_rag.retrieval.chunks import START, cut_from
from peft_rag.tasks.answers import NOWHERE, Answer
from peft_rag.tasks.base import Example, Passage, Span

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.corpus import Document
    from peft_rag.records import Record

NO_WORD = (0, 0)
"""Fills up the words of a context, so that every question has as many positions."""

JOINT = "\n\n"
"""What stands between two passages."""

Write = Callable[[str, str, Example], Example]
"""Writes a question and a context as an example; see `peft_rag.tasks.question_answering`."""


def alone(example: Example) -> Example:
    """Return a question without any context."""
    question = example.text[: example.text.index("\n") + 1]
    return replace(example, text=question, spans=(NO_WORD,) * len(example.spans), passages=())


def opened(example: Example, found: Sequence[Document], write: Write, *, learn: bool) -> Example:
    """Return a question with its passages as contexts, closest first.

    Where it is learned from, the context that holds its marked answer stands first, and passages that were found fill
    up the others. Answers are marked in that context alone, or, where it was not found, nowhere.

    Args:
        example: a question, with the context that was given for it, if any.
        found: the passages.
        write: makes the example.
        learn: whether the given context is read.
    """
    begin = example.text.index("\n") + 1
    given = example.passages[0] if example.passages else None
    texts = {document.id: document.text for document in found}
    own = _own(given, example, found)
    if learn and given is not None:
        others = [name for name in texts if name not in own][: max(0, len(found) - 1)]
        texts = {given.id: example.text[given.begin : given.end]} | {name: texts[name] for name in others}
        own = {given.id: 0}
    context, places = "", {}
    for name, text in texts.items():
        context += JOINT if context else ""
        places[name] = len(context)
        context += text
    pieces = [_Piece(texts[name], first, places[name]) for name, first in own.items()]
    labels = example.labels and tuple(_moved(one, pieces) for one in example.labels)
    ids = {document.id for document in found}
    passages = [
        Passage(name, begin + place, begin + place + len(texts[name]), found=name in ids)
        for name, place in places.items()
    ]
    return replace(write(example.text[: begin - 1], context, example), labels=labels, passages=tuple(passages))


class _Piece(NamedTuple):
    """What was read of a context: its text, where it begins in the context, and where in the passages."""

    text: str
    first: int
    place: int


def _own(given: Passage | None, example: Example, found: Sequence[Document]) -> dict[str, int]:
    """Return the passages that are the given context or were cut from it, by id, with where each begins in it."""
    if given is None:
        return {}
    key = text_key(example.text[given.begin : given.end])
    whole = {one.id: 0 for one in found if one.id == given.id or text_key(one.text) == key}
    return whole or {one.id: int(one.metadata[START]) for one in found if cut_from(one) == given.id}


def _moved(label: str, pieces: Sequence[_Piece]) -> str:
    """Return an answer that is marked in a context as one in the passages, among which pieces of the context are.

    A piece may be the context in another writing, of other white space: the answer is then looked for.
    """
    answer = Answer.read(label)
    if answer.start == NOWHERE:
        return label
    for piece in pieces:
        start = answer.start - piece.first
        if start >= 0 and piece.text.startswith(answer.text, start):
            return str(Answer(answer.text, piece.place + start))
    for piece in pieces:
        start = piece.text.find(answer.text)
        if start >= 0:
            return str(Answer(answer.text, piece.place + start))
    return str(Answer(answer.text, NOWHERE))


def read_pieces(
    example: Example, words: Sequence[Span], kept: Collection[str], windows_of: Callable[[Example], Sequence[Example]]
) -> list[Example]:
    """Return one example or several for each passage that is read, the question in each; words of the others are none.

    Args:
        example: a question with passages.
        words: where the words of these stand.
        kept: ids of the found passages that are read; one that was given always is.
        windows_of: cuts one passage beneath its question.
    """
    begin = example.text.index("\n") + 1
    pieces: list[Example] = []
    unread = 0
    for passage in example.passages:
        own = [span for span in words if passage.begin <= span[0] < passage.end]
        if not own or (passage.found and passage.id not in kept):
            unread += len(own)
            continue
        back = passage.begin - begin
        part = replace(
            example,
            text=example.text[:begin] + example.text[passage.begin : own[-1][1]],
            spans=tuple((first - back, end - back) for first, end in own),
            passages=(),
        )
        first, *others = windows_of(part)
        pieces += [replace(first, spans=(NO_WORD,) * unread + first.spans), *others]
        unread = 0
    if not pieces:
        return [alone(example)]
    unread += len(example.spans) - len(words)
    return [*pieces[:-1], replace(pieces[-1], spans=pieces[-1].spans + (NO_WORD,) * unread)]


def words_in(example: Example, words: Sequence[Span]) -> list[range]:
    """Return which words stand in each passage, by their numbers."""
    owned = [
        [place for place, span in enumerate(words) if passage.begin <= span[0] < passage.end]
        for passage in example.passages
    ]
    return [range(row[0], row[-1] + 1) if row else range(0) for row in owned]


def shares(example: Example, log_probs: Tensor) -> list[float]:
    """Return how probable it is that the answer lies in each passage: the mean of Σ_w p(s=w) and Σ_w p(e=w) over it.

    Args:
        example: a question with passages.
        log_probs: of the first and the last word, in nats, ``(2, 1 + W)``, those of no answer first.
    """
    mass = log_probs[:, 1:].exp().mean(0)
    words = [span for span in example.spans if span != NO_WORD]
    return [float(mass[own.start : own.stop].sum()) for own in words_in(example, words)]


def best_within(log_probs: Tensor, owned: Sequence[range], longest: int) -> tuple[int, int]:
    """Return the positions of the best first and last word of one passage; 0 for both where no answer is no worse.

    Args:
        log_probs: of the first and the last word, in nats, ``(2, 1 + W)``, those of no answer first.
        owned: the words of each passage.
        longest: words of an answer at most.
    """
    import torch

    from peft_rag.tasks.span_head import NOWHERE as NO_ANSWER
    from peft_rag.tasks.span_head import best_spans

    best, score = (NO_ANSWER, NO_ANSWER), float(log_probs[:, NO_ANSWER].sum())
    for words in owned:
        if not words:
            continue
        part = torch.cat([log_probs[:, :1], log_probs[:, 1 + words.start : 1 + words.stop]], dim=1)
        first, last = best_spans(part[None], torch.tensor([len(words)]), longest)[0].tolist()
        found = float(part[0, first] + part[1, last])
        if first != NO_ANSWER and found > score:
            best, score = (words.start + first, words.start + last), found
    return best


def supported(example: Example, answer: Answer) -> dict[str, Any]:
    """Write an answer with its characters in the passage that it stands in, and that passage, as JSON holds them.

    Args:
        example: a question with passages.
        answer: its characters are those of all passages as one context.
    """
    start = example.text.index("\n") + 1 + answer.start
    for passage in example.passages:
        if passage.begin <= start < passage.end:
            about = {"id": passage.id, "text": example.text[passage.begin : passage.end]}
            first = start - passage.begin
            return {"answer": answer.text, "start": first, "end": first + len(answer.text), "passage": about}
    return {"answer": answer.text, "start": None, "end": None, "passage": None}


def answer_texts(record: Record, name: str) -> list[Answer]:
    """Return a record's answers where no context is given that could hold them; none where there is no answer.

    Raises:
        DataError: the field does not hold texts.
    """
    given = record.fields.get(name)
    texts = given.get("text") if isinstance(given, Mapping) else None
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f'{record.where}: field \'{name}\' must hold texts, like {{"text": ["Paris"]}}, an empty list where there '
            "is no answer. Name the field with --task.answers_field."
        )
    return [Answer(text.strip(), NOWHERE) for text in dict.fromkeys(texts)]

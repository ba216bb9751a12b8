"""How a document is written as a passage, and how passages stand beside an input."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import MORE, READ
from peft_rag.tasks.spans import own_spans

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus, Document
    from peft_rag.fusion.base import Reader
    from peft_rag.tasks.base import Example, Task

TEMPLATE = "{labels}: {text}"
_FIELDS = ("labels", "text")

JOINT = "\n\n"
"""What stands between passages and a prompt that is written on."""


def check_template(template: str) -> None:
    """Raise on a template that does not show the text, or names what a document has not."""
    try:
        named = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"fusion.template is {template!r}: {error}. Write for example '{TEMPLATE}'.") from None
    unknown = [name for name in named if name not in _FIELDS]
    if unknown or "text" not in named:
        what = f"names {{{unknown[0]}}}" if unknown else "does not show {text}"
        raise ConfigError(f"fusion.template is {template!r}, which {what}. It may name {{labels}} and {{text}}.")
    try:
        template.format(**dict.fromkeys(_FIELDS, "a text"))
    except ValueError as error:
        raise ConfigError(f"fusion.template is {template!r}, which no text can be put in: {error}.") from None


def written(document: Document, template: str, *, show_labels: bool, task: Task | None = None) -> str:
    """Write a document by a template; one without labels, or whose labels are hidden, is its text alone.

    Args:
        document: what is written.
        template: of ``{labels}`` and ``{text}``.
        show_labels: whether labels are shown.
        task: how it puts a labelled text, and writes labels; by default as it is, and one after the other.

    >>> from peft_rag.corpus import Document
    >>> written(Document("1", "rain", ("weather",)), "{labels}: {text}", show_labels=True)
    'weather: rain'
    """
    if task is not None and template == TEMPLATE:
        template = task.passage_template
    labels = (task.shown_labels(document) if task else ", ".join(document.labels)) if show_labels else ""
    if not labels:
        return document.text
    return template.format(labels=labels, text=task.shown_text(document) if task else document.text)


@dataclass(frozen=True)
class Passages:
    """The documents of a corpus as passages of at most ``tokens`` tokens, each written and cut once.

    Attributes:
        reader: what reads them.
        corpus: the documents.
        tokens: of one passage at most.
        template: how one is written.
        show_labels: whether its labels are shown.
    """

    reader: Reader
    corpus: Corpus
    tokens: int
    template: str
    show_labels: bool
    _known: dict[int, tuple[str, int]] = field(default_factory=dict)

    @property
    def joining(self) -> int:
        """Tokens that stand once between input and passages."""
        if self.reader.writes_on:
            return 0
        tokenizer = self.reader.tokenizer
        return int(tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False))

    @property
    def ending(self) -> int:
        """Tokens that stand after each passage."""
        return len(self.reader.tokenizer(JOINT, add_special_tokens=False)["input_ids"]) if self.reader.writes_on else 0

    def __getitem__(self, position: int) -> tuple[str, int]:
        """Return the passage of a document and its number of tokens."""
        if position not in self._known:
            text = written(self.corpus[position], self.template, show_labels=self.show_labels, task=self.reader.task)
            self._known[position] = self._cut(text)
        return self._known[position]

    def beside(
        self, example: Example, alone: dict[str, Any], positions: Sequence[int], *, closest_last: bool = False
    ) -> dict[str, Any]:
        """Tokenise an example with the passages that fit, from the closest on; under `READ` stands which these are.

        The input stands first, where it stands without neighbours; before a causal backbone it stands last, because
        its tokens see nothing that follows. Tokens of the example's own part are pooled over.

        Args:
            example: the input.
            alone: the input as it is read without passages; it stays as it is where no passage fits, and where it is
                read in windows, which leave no room beside them.
            positions: of documents, closest first.
            closest_last: whether they are written the other way round.
        """
        room = self.reader.max_length - sum(alone["pooled_mask"]) - self.joining
        in_windows = MORE in alone and self.reader.task is not None and self.reader.task.pools_spans
        kept = [] if in_windows else self._that_fit(positions, room)
        write = self._before if self.reader.writes_on else self._paired
        while kept:
            row = write(example, kept[::-1] if closest_last else kept)
            if row is not None:
                return row | {READ: kept}
            kept = kept[:-1]  # Tokens at a joint may be more than those of its two sides.
        return alone | {READ: []}

    def _that_fit(self, positions: Sequence[int], room: int) -> list[int]:
        """Return the closest documents whose passages fit; the first that does not ends the list.

        A passage of nothing but characters that the tokenizer drops has no tokens, and is left out.
        """
        chosen: list[int] = []
        for position in positions:
            tokens = self[position][1]
            if not tokens:
                continue
            room -= tokens + self.ending
            if room < 0:
                break
            chosen.append(position)
        return chosen

    def _paired(self, example: Example, positions: list[int]) -> dict[str, Any] | None:
        """Tokenise an example and passages as two segments; one passage is cut, several give None if too long.

        Of a text of nothing but characters that the tokenizer drops there is nothing to pool over: None too.
        """
        passages = " ".join(self[position][0] for position in positions)
        causal, longest = self.reader.causal, self.reader.max_length
        pair = (passages, example.text) if causal else (example.text, passages)
        cut = ("only_first" if causal else "only_second") if len(positions) == 1 else False
        encoded = self.reader.tokenizer(*pair, truncation=cut, max_length=longest, return_offsets_mapping=True)
        if len(encoded["input_ids"]) > longest:
            return None
        segments = encoded.sequence_ids(0)
        if 1 not in segments:
            return None
        spans = own_spans(encoded.pop("offset_mapping"), segments, int(causal))
        border = segments.index(1)
        pooled = [int((place >= border) == causal) for place in range(len(segments))]
        return self.reader.with_pools(example, dict(encoded) | {"pooled_mask": pooled}, spans)

    def _before(self, example: Example, positions: list[int]) -> dict[str, Any] | None:
        """Tokenise passages and a prompt as one text, which a decoder goes on writing; None if it is too long."""
        text = JOINT.join([*(self[position][0] for position in positions), example.text])
        encoded = dict(self.reader.tokenizer(text, return_offsets_mapping=True))
        offsets = encoded.pop("offset_mapping")
        if len(offsets) > self.reader.max_length:
            return None
        begin = len(text) - len(example.text)
        encoded["pooled_mask"] = [int(end > begin) for _, end in offsets]
        return self.reader.with_pools(replace(example, text=text), encoded, ())

    def _cut(self, text: str) -> tuple[str, int]:
        encoded = self.reader.tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=self.tokens, return_offsets_mapping=True
        )
        tokens = len(encoded["input_ids"])
        return (text[: encoded["offset_mapping"][-1][1]], tokens) if tokens else ("", 0)

"""How a document is written as a passage, and how passages stand beside an input."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError
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


def written(document: Document, template: str, *, show_labels: bool, task: Task | None = None) -> str:
    """Write a document by a template; one without labels, or whose labels are hidden, is its text alone.

    Args:
        document: what is written.
        template: of ``{labels}`` and ``{text}``.
        show_labels: whether labels are shown.
        task: how it writes its labels; by default one after the other.

    >>> from peft_rag.corpus import Document
    >>> written(Document("1", "rain", ("weather",)), "{labels}: {text}", show_labels=True)
    'weather: rain'
    """
    if task is not None and template == TEMPLATE:
        template = task.passage_template
    labels = (task.shown_labels(document) if task else ", ".join(document.labels)) if show_labels else ""
    return template.format(labels=labels, text=document.text) if labels else document.text


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
        """Tokens that stand between input and passages."""
        tokenizer = self.reader.tokenizer
        if self.reader.writes_on:
            return len(tokenizer(JOINT, add_special_tokens=False)["input_ids"])
        return int(tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False))

    def __getitem__(self, position: int) -> tuple[str, int]:
        """Return the passage of a document and its number of tokens."""
        if position not in self._known:
            text = written(self.corpus[position], self.template, show_labels=self.show_labels, task=self.reader.task)
            self._known[position] = self._cut(text)
        return self._known[position]

    def that_fit(self, positions: Sequence[int], room: int) -> list[int]:
        """Return the closest documents whose passages fit; the first that does not ends the list.

        A passage of nothing but characters that the tokenizer drops has no tokens, and is left out.
        """
        chosen: list[int] = []
        for position in positions:
            tokens = self[position][1]
            if tokens > room:
                break
            chosen += [position] if tokens else []
            room -= tokens
        return chosen

    def beside(self, example: Example, positions: Sequence[int]) -> dict[str, Any]:
        """Tokenise an example and passages as one pair; the tokens of the example's segment are pooled over.

        The input stands first, where it stands without neighbours; before a causal backbone it stands last, because
        its tokens see nothing that follows.
        """
        if self.reader.writes_on:
            return self._before(example, list(positions))
        passages = " ".join(self[position][0] for position in positions)
        pair = (passages, example.text) if self.reader.causal else (example.text, passages)
        cut = "only_first" if self.reader.causal else "only_second"
        encoded = self.reader.tokenizer(
            *pair, truncation=cut, max_length=self.reader.max_length, return_offsets_mapping=True
        )
        segments = encoded.sequence_ids(0)
        spans = own_spans(encoded.pop("offset_mapping"), segments, int(self.reader.causal))
        border = segments.index(1)
        pooled = [int((place >= border) == self.reader.causal) for place in range(len(segments))]
        return self.reader.with_pools(example, dict(encoded) | {"pooled_mask": pooled}, spans)

    def _before(self, example: Example, positions: list[int]) -> dict[str, Any]:
        """Tokenise passages and a prompt as one text, which a decoder goes on writing."""
        from dataclasses import replace

        while True:
            passages = JOINT.join([*(self[position][0] for position in positions), example.text])
            encoded = dict(self.reader.tokenizer(passages, return_offsets_mapping=True))
            offsets = encoded.pop("offset_mapping")
            if len(offsets) <= self.reader.max_length or not positions:
                begin = len(passages) - len(example.text)
                encoded["pooled_mask"] = [int(end > begin) for _, end in offsets]
                return self.reader.with_pools(replace(example, text=passages), encoded, ())
            positions.pop()

    def _cut(self, text: str) -> tuple[str, int]:
        encoded = self.reader.tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=self.tokens, return_offsets_mapping=True
        )
        tokens = len(encoded["input_ids"])
        return (text[: encoded["offset_mapping"][-1][1]], tokens) if tokens else ("", 0)

"""Where a text stands in a corpus: as a document of it, or as the pieces of one that was cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peft_rag.corpus import Document, folded_text, text_key
from peft_rag.retrieval.chunks import END, START, cut_from

if TYPE_CHECKING:
    from typing import TypeAlias

    Positions: TypeAlias = Mapping[str, frozenset[int]]


class Texts:
    """Where each text of a corpus stands.

    Two texts are one where their `peft_rag.corpus.text_key` is the same. A document that lies there in chunks stands at
    all of them, since a chunk tells of its text as the whole would; of it letters and digits are compared, because a
    tokenizer may drop other signs, and a chunk ends where tokens do.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        """Take the documents, in the order of their positions."""
        documents = list(documents)
        pieces = in_pieces(documents).values()
        self._alone = _gathered((text_key(document.text), [place]) for place, document in enumerate(documents))
        self._cut = _gathered(
            (_signs(put_together([documents[place] for place in places])), places) for places in pieces
        )

    def places(self, text: str) -> frozenset[int]:
        """Return the positions of a text; none where it does not stand there."""
        found: frozenset[int] = self._alone.get(text_key(text), frozenset())
        return found | self._cut.get(_signs(text), frozenset()) if self._cut else found


def by_id(documents: Iterable[Document]) -> Positions:
    """Return the position of each document by its id, and those of all its chunks by the id of one that was cut."""
    documents = list(documents)
    alone = ((document.id, [place]) for place, document in enumerate(documents))
    return _gathered((*alone, *in_pieces(documents).items()))


def by_group(documents: Iterable[Document]) -> Positions:
    """Return the positions of each group."""
    return _gathered((document.group, [place]) for place, document in enumerate(documents))


def in_pieces(documents: Iterable[Document]) -> dict[str, list[int]]:
    """Return the positions of the chunks of each document that was cut, in the order of its text."""
    begins: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, document in enumerate(documents):
        whole = cut_from(document)
        if whole != document.id:
            begins[whole].append((document.metadata[START], place))
    return {whole: [place for _, place in sorted(found)] for whole, found in begins.items()}


def _signs(text: str) -> str:
    """Return the letters and digits of a text, in no case and Unicode form of its own; all of it where it has none."""
    folded = folded_text(text)
    return "".join(filter(str.isalnum, folded)) or folded


def put_together(chunks: Iterable[Document]) -> str:
    """Return the text that chunks were cut from, one space for what stood between two; they may share some of it."""
    parts: list[str] = []
    end = 0
    for chunk in chunks:
        start = chunk.metadata[START]
        parts.append(" " + chunk.text if start > end else chunk.text[end - start :])
        end = max(end, chunk.metadata[END])
    return "".join(parts)


def _gathered(found: Iterable[tuple[str, Iterable[int]]]) -> Positions:
    gathered: dict[str, set[int]] = defaultdict(set)
    for key, places in found:
        gathered[key].update(places)
    return {key: frozenset(places) for key, places in gathered.items()}

"""Long documents in pieces that are found one by one, and long inputs of which only the pieces that matter are read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, CorpusError
from peft_rag.retrieval.base import Encoder, check_k
from peft_rag.retrieval.vectors import exact_search

if TYPE_CHECKING:
    from typing import TypeAlias

    Span: TypeAlias = tuple[int, int]
    Chunker: TypeAlias = Callable[[Document], list[Document]]

DOCUMENT, START, END = "document", "start", "end"
CHUNK_NUMBER = "#[0-9]+$"
"""What a chunk's id adds to its document's, as a regular expression."""

# A sentence ends after its closing marks where white space follows, after a full stop of scripts that use no spaces, or
# at an empty line. Abbreviations are not known: "Dr. Who" is cut, which costs a chunk nothing but an odd border.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s)|[。！？][」』”’）]*|\n[^\S\n]*\n")


def chunk_by_tokens(document: Document, tokenizer: Any, size: int = 128, overlap: int = 32) -> list[Document]:
    """Cut a document every so many tokens.

    Chunk i begins at token i · (size - overlap) and holds ``size`` tokens, the last one what is left.

    Args:
        document: the document.
        tokenizer: a fast tokenizer of transformers, which knows each token's place in the text.
        size: tokens in a chunk, the encoder's special ones not counted.
        overlap: tokens that two chunks share.

    Returns:
        At least one chunk: documents with id ``ID#1``, ``ID#2``, …, the document's labels and metadata, besides in the
        metadata ``document`` (its id) and ``start`` and ``end`` (characters of its text), and its group or, where it
        has none, its id as their group, so that chunks of one document are never neighbours of one another.

    Raises:
        ConfigError: ``size`` is below 1, ``overlap`` not from 0 to ``size - 1``, or the tokenizer is not fast.
    """
    _check_sizes(size, overlap)
    tokens = _token_spans(document.text, tokenizer)
    return _chunks(document, list(_windows(tokens, size, overlap)))


def chunk_by_sentences(document: Document, tokenizer: Any, size: int = 128, overlap: int = 1) -> list[Document]:
    """Cut a document between sentences, as many to a chunk as fit; a sentence that alone is too long is cut by tokens.

    Args:
        document: the document.
        tokenizer: a fast tokenizer of transformers, which knows each token's place in the text.
        size: tokens in a chunk at most, the encoder's special ones not counted.
        overlap: sentences that two chunks share, as far as they leave room for a new one.

    Returns:
        As `chunk_by_tokens`.

    Raises:
        ConfigError: ``size`` is below 1, ``overlap`` below 0, or the tokenizer is not fast.
    """
    _check_sentences(size, overlap)
    tokens = _token_spans(document.text, tokenizer)
    pieces: list[tuple[Span, int]] = []
    for sentence in sentence_spans(document.text):
        inside = _inside(tokens, sentence)
        if len(inside) <= size:
            pieces.append((sentence, len(inside)))
        else:
            pieces += [(window, size) for window in _windows(inside, size, 0)]
    return _chunks(document, list(_packed(pieces, size, overlap)))


def chunker(
    kind: str, tokenizer: Any, window: int, chunk_size: int | None = None, chunk_overlap: int | None = None
) -> Chunker:
    """Return what cuts documents for an encoder, after checking that the chunks make sense for it.

    Args:
        kind: ``tokens`` or ``sentences``.
        tokenizer: the encoder's fast tokenizer.
        window: tokens that the encoder reads, special ones counted.
        chunk_size: tokens of a chunk at most; 128, or what the encoder reads if that is less, if None.
        chunk_overlap: tokens that two chunks share, or sentences; a quarter of the size, or 1, if None.

    Raises:
        ConfigError: the kind is unknown, a number is out of range, or a chunk is more than the encoder reads. What is
            returned raises `CorpusError` for a document that is a chunk already or has a field named as chunks' own.
    """
    if kind not in ("tokens", "sentences"):
        raise ConfigError(f"documents are cut by tokens or by sentences, not by {kind!r}.")
    longest = window - tokenizer.num_special_tokens_to_add()
    size = min(128, longest) if chunk_size is None else chunk_size
    if size > longest:
        raise ConfigError(
            f"chunks of {size} tokens are more than the {longest} that the encoder reads. Cut smaller ones."
        )
    if kind == "tokens":
        overlap = size // 4 if chunk_overlap is None else chunk_overlap
        _check_sizes(size, overlap)
        return lambda document: chunk_by_tokens(_cuttable(document), tokenizer, size, overlap)
    shared = 1 if chunk_overlap is None else chunk_overlap
    _check_sentences(size, shared)
    return lambda document: chunk_by_sentences(_cuttable(document), tokenizer, size, shared)


def _cuttable(document: Document) -> Document:
    """Refuse a document that is a chunk itself, or whose fields its chunks' places would take the place of."""
    if cut_from(document) != document.id:
        raise CorpusError(
            f"document '{document.id}' is a chunk already. Cut the documents that it and its like were cut from."
        )
    taken = sorted({DOCUMENT, START, END} & document.metadata.keys())
    if taken:
        raise CorpusError(
            f"document '{document.id}' has a field '{taken[0]}', where its chunks say which text they stand in and "
            "where. Give the field another name."
        )
    return document


def cut_from(document: Document) -> str:
    """Return the id of the document that a chunk was cut from; of a document that is no chunk, its own.

    >>> cut_from(Document("a#2", "text", metadata={"document": "a", "start": 5, "end": 9}))
    'a'
    >>> cut_from(Document("a#2", "text", metadata={"document": "b"}))
    'a#2'
    """
    whole = document.metadata.get(DOCUMENT)
    placed = all(isinstance(document.metadata.get(name), int) for name in (START, END))
    return whole if placed and whole == re.sub(CHUNK_NUMBER, "", document.id) else document.id


def chunk_corpus(corpus: Corpus, chunk: Chunker) -> Corpus:
    """Make a corpus of the chunks of another's documents, in their order.

    Args:
        corpus: the documents.
        chunk: cuts one, e.g. ``lambda document: chunk_by_tokens(document, tokenizer)``.

    Raises:
        CorpusError: two chunks have one id.
    """
    return Corpus((piece for document in corpus for piece in chunk(document)), f"{corpus.name} in chunks")


def within_document(chunks: Sequence[Document], query: str, encoder: Encoder, m: int = 4) -> list[Document]:
    """Find the chunks of one long text that a query asks for.

    Args:
        chunks: the text's chunks.
        query: what is looked for, e.g. the names of the classes, or a question.
        encoder: what compares them.
        m: how many chunks to return; all if there are fewer.

    Returns:
        The ``m`` chunks of largest cosine with the query, in the order of the text, equal ones by place.

    Raises:
        ConfigError: ``m`` is below 1.
    """
    check_k(m)
    if not chunks:
        return []
    vectors = encoder.encode([chunk.text for chunk in chunks])
    best = exact_search(encoder.encode([query]), vectors, min(m, len(chunks)))
    return [chunks[position] for position in sorted(position for position, _ in best.row(0))]


def condense(
    text: str, chunks: Sequence[Document], scores: Sequence[float], tokenizer: Any, *, window: int, gap: str = " … "
) -> str:
    """Shorten a text to its best chunks, in their order, so that a model reads what matters of a text of any length.

    Args:
        text: the text.
        chunks: its chunks.
        scores: of the chunks; higher is better, equal ones by place.
        tokenizer: the fast tokenizer of the model that will read the text.
        window: tokens the result may have, special ones not counted; only a best chunk that is longer exceeds it.
        gap: what stands where something was left out.

    Raises:
        ConfigError: the tokenizer is not fast.
    """
    kept: list[int] = []
    short = ""
    for position in sorted(range(len(chunks)), key=lambda place: (-scores[place], place)):
        kept = sorted([*kept, position])
        longer = _joined([chunks[place] for place in kept], text, gap)
        if short and len(_token_spans(longer, tokenizer)) > window:
            break
        short = longer
    return short


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return where the sentences of a text begin and end, white space around them left out.

    >>> text = "One. Two!  Three"
    >>> [text[start:end] for start, end in sentence_spans(text)]
    ['One.', 'Two!', 'Three']
    """
    borders = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    spans = (_tight(text, start, end) for start, end in pairwise(borders))
    return [(start, end) for start, end in spans if end > start]


def _tight(text: str, start: int, end: int) -> Span:
    """Return a span without the white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def _joined(chunks: Sequence[Document], text: str, gap: str) -> str:
    parts, last = [], 0
    for chunk in chunks:
        start, end = chunk.metadata[START], chunk.metadata[END]
        parts.append(text[last:start] if not text[last:start].strip() else gap)
        parts.append(chunk.text)
        last = end
    return "".join(parts).strip() + ("" if not text[last:].strip() else gap.rstrip())


def _packed(pieces: Sequence[tuple[Span, int]], size: int, overlap: int) -> Iterator[Span]:
    """Yield spans of as many pieces as fit into ``size`` tokens, each beginning anew with the last ``overlap``."""
    first = 0
    while first < len(pieces):
        end, held = first, 0
        while end < len(pieces) and (end == first or held + pieces[end][1] <= size):
            held += pieces[end][1]
            end += 1
        yield pieces[first][0][0], pieces[end - 1][0][1]
        if end == len(pieces):
            return
        again = max(end - overlap, first + 1)
        while again < end and sum(tokens for _, tokens in pieces[again : end + 1]) > size:
            again += 1
        first = again


def _windows(tokens: Sequence[Span], size: int, overlap: int) -> Iterator[Span]:
    for first in range(0, max(1, len(tokens) - overlap), size - overlap):
        window = tokens[first : first + size]
        if window:
            yield window[0][0], window[-1][1]


def _inside(tokens: Sequence[Span], span: Span) -> Sequence[Span]:
    """Return the tokens that end inside a span; where they begin, some tokenizers count the space before."""
    first = bisect_right(tokens, span[0], key=lambda token: token[1])
    last = bisect_right(tokens, span[1], key=lambda token: token[1])
    return tokens[first:last]


def _token_spans(text: str, tokenizer: Any) -> list[Span]:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"chunking needs a fast tokenizer, which knows each token's place, not {type(tokenizer).__name__}. "
            "Load it with AutoTokenizer.from_pretrained."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    return [(start, end) for start, end in encoded["offset_mapping"] if end > start]


def _chunks(document: Document, spans: Sequence[Span]) -> list[Document]:
    """Make the chunks; a text without any token is one chunk as it is."""
    tight = [_tight(document.text, start, end) for start, end in spans]
    kept = [(start, end) for start, end in tight if end > start]
    return [
        Document(
            id=f"{document.id}#{number}",
            text=document.text[start:end],
            labels=document.labels,
            group=document.group or document.id,
            metadata={**document.metadata, DOCUMENT: document.id, START: start, END: end},
        )
        for number, (start, end) in enumerate(kept or [(0, len(document.text))], start=1)
    ]


def _check_sizes(size: int, overlap: int) -> None:
    if size < 1:
        raise ConfigError(f"a chunk must hold at least 1 token, not {size}.")
    if not 0 <= overlap < size:
        raise ConfigError(f"chunks of {size} tokens can share 0 to {size - 1} tokens, not {overlap}.")


def _check_sentences(size: int, overlap: int) -> None:
    _check_sizes(size, 0)
    if overlap < 0:
        raise ConfigError(f"chunks cannot share {overlap} sentences. Give overlap a number of at least 0.")

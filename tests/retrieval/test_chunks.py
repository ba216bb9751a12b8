import random

import pytest
from transformers import AutoTokenizer

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError
from peft_rag.retrieval.chunks import (
    chunk_by_sentences,
    chunk_by_tokens,
    chunk_corpus,
    condense,
    sentence_spans,
    within_document,
)
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.neighbours import Query, forbidden_positions


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def document(text, **fields):
    return Document("doc", text, **fields)


WORDS = ["apple", "pear", "plum", "cherry", "grape", "peach", "iron", "copper", "zinc", "silver"]


def long_text(sentences, seed=0):
    draw = random.Random(seed)
    return "  ".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))).capitalize() + "." for _ in range(sentences))


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (4, 0), (4, 3), (7, 2), (100, 10), (10, 0), (5, 0)])
def test_chunks_by_tokens_equal_plain_windows(tokenizer, size, overlap):
    text = " ".join(WORDS)
    chunks = chunk_by_tokens(document(text), tokenizer, size, overlap)
    wanted, first = [], 0
    while True:
        wanted.append(" ".join(WORDS[first : first + size]))
        if first + size >= len(WORDS):
            break
        first += size - overlap
    assert [chunk.text for chunk in chunks] == wanted


def test_chunks_know_their_document_and_place(tokenizer):
    whole = document("apple  pear\nplum", labels=("fruit",), metadata={"page": 3})
    chunks = chunk_by_tokens(whole, tokenizer, 2, 1)
    assert [chunk.id for chunk in chunks] == ["doc#1", "doc#2"]
    for chunk in chunks:
        assert chunk.group == "doc"
        assert chunk.labels == ("fruit",)
        assert (chunk.metadata["document"], chunk.metadata["page"]) == ("doc", 3)
        assert whole.text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.text
    assert chunk_by_tokens(document("apple", group="book"), tokenizer)[0].group == "book"


@pytest.mark.parametrize("size", [3, 8, 20, 500])
@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_chunks_by_sentences_hold_whole_sentences_and_cover_the_text(tokenizer, size, overlap):
    text = long_text(40)
    chunks = chunk_by_sentences(document(text), tokenizer, size, overlap)
    spans = sentence_spans(text)
    covered = set()
    for chunk in chunks:
        start, end = chunk.metadata["start"], chunk.metadata["end"]
        assert text[start:end] == chunk.text
        assert count(tokenizer, chunk.text) <= size
        covered |= set(range(start, end))
    assert {place for place, letter in enumerate(text) if not letter.isspace()} <= covered
    if size >= 10:
        borders = {start for start, _ in spans}
        assert all(chunk.metadata["start"] in borders for chunk in chunks)
    starts = [chunk.metadata["start"] for chunk in chunks]
    assert starts == sorted(set(starts))
    if overlap == 0:
        ends = [chunk.metadata["end"] for chunk in chunks]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_sentences_of_several_scripts_and_marks():
    text = 'He said "Go!" Then (really?) 3.5 km… Done.\n\nTitle without a stop\n\n今日は。明日も！ End'
    assert [text[start:end] for start, end in sentence_spans(text)] == [
        'He said "Go!"',
        "Then (really?)",
        "3.5 km…",
        "Done.",
        "Title without a stop",
        "今日は。",
        "明日も！",
        "End",
    ]
    assert sentence_spans(" \n ") == []


def test_long_text_without_any_sentence_end_is_cut(tokenizer):
    text = " ".join(WORDS * 3000)
    chunks = chunk_by_sentences(document(text), tokenizer, 100)
    assert len(chunks) == 300
    assert all(count(tokenizer, chunk.text) == 100 for chunk in chunks)


def test_text_without_tokens_is_one_chunk(tokenizer):
    for cut in (chunk_by_tokens, chunk_by_sentences):
        assert [chunk.text for chunk in cut(document(" \t "), tokenizer)] == [" \t "]


def test_sizes_that_make_no_sense_and_slow_tokenizers_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="at least 1 token, not 0"):
        chunk_by_tokens(document("x"), tokenizer, 0, 0)
    with pytest.raises(ConfigError, match="chunks of 4 tokens can share 0 to 3 tokens, not 4"):
        chunk_by_tokens(document("x"), tokenizer, 4, 4)
    with pytest.raises(ConfigError, match="cannot share -1 sentences"):
        chunk_by_sentences(document("x"), tokenizer, 4, -1)
    with pytest.raises(ConfigError, match="needs a fast tokenizer, which knows each token's place, not object"):
        chunk_by_tokens(document("x"), object())


def test_chunks_of_one_document_are_never_neighbours(tokenizer, encoder):
    corpus = Corpus([Document("a", "apple pear plum apple pear"), Document("b", "apple pear iron zinc")])
    chunks = chunk_corpus(corpus, lambda one: chunk_by_tokens(one, tokenizer, 2, 0))
    assert [chunk.id for chunk in chunks] == ["a#1", "a#2", "a#3", "b#1", "b#2"]
    queries = [Query(chunk.id, chunk.text, chunk.group) for chunk in chunks]
    retriever = ExactRetriever(encoder)
    retriever.index(chunks)
    exclude = forbidden_positions(chunks, queries, same_data=True, exclude_duplicates=False)
    found = retriever.search(chunks.texts, 5, exclude)
    for row, query in enumerate(queries):
        groups = {chunks[position].metadata["document"] for position, _ in found.row(row)}
        assert groups == {"a", "b"} - {query.group}


def test_within_document_returns_the_best_chunks_in_reading_order(tokenizer, encoder):
    chunks = chunk_by_tokens(document("iron zinc apple pear copper tin apple plum"), tokenizer, 2, 0)
    best = within_document(chunks, "apple plum pear", encoder, 2)
    assert [chunk.text for chunk in best] == ["apple pear", "apple plum"]
    assert within_document(chunks, "apple", encoder, 99) == chunks
    assert within_document([], "apple", encoder) == []
    with pytest.raises(ConfigError, match="k must be at least 1"):
        within_document(chunks, "apple", encoder, 0)


def test_condense_keeps_the_best_chunks_in_their_order_and_fits_the_window(tokenizer):
    text = "  ".join(f"{word} {word} {word} tin." for word in WORDS)
    chunks = chunk_by_sentences(document(text), tokenizer, 5, 0)
    scores = [0.1, 0.5, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.5, 0.1]
    short = condense(text, chunks, scores, tokenizer, window=18)
    assert short == " … pear pear pear tin. … peach peach peach tin.  iron iron iron tin. …".strip()
    assert count(tokenizer, short) <= 18
    assert condense(text, chunks, scores, tokenizer, window=1) == "… peach peach peach tin. …"
    assert condense(text, chunks, scores, tokenizer, window=1000) == text

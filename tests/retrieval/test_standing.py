"""A document in chunks is one text: what must not see the whole must see no piece of it."""

from __future__ import annotations

from functools import partial

import pytest
from transformers import AutoTokenizer

from peft_rag.corpus import Corpus, Document
from peft_rag.retrieval.chunks import chunk_by_sentences, chunk_by_tokens, chunk_corpus
from peft_rag.retrieval.neighbours import Query, forbidden_positions
from peft_rag.retrieval.overlap import EXACT, find_overlap
from peft_rag.retrieval.standing import Texts, by_group, by_id

LONG = "Apple pear plum.  The fig was ripe!\n\nIron and copper rust. The Danube flows to the sea, the Volga too."
OTHER = "Apple pear plum.  The fig was green."


@pytest.fixture(params=["tokens", "tokens apart", "sentences"])
def cut(request: pytest.FixtureRequest, tiny_bert: str) -> Corpus:
    """Two long documents in chunks, and a short one besides."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    chunker = {
        "tokens": partial(chunk_by_tokens, tokenizer=tokenizer, size=6, overlap=2),
        "tokens apart": partial(chunk_by_tokens, tokenizer=tokenizer, size=5, overlap=0),
        "sentences": partial(chunk_by_sentences, tokenizer=tokenizer, size=12, overlap=1),
    }[request.param]
    documents = [Document("long", LONG), Document("other", OTHER, group="mine"), Document("short", "iron")]
    return chunk_corpus(Corpus(documents), chunker)


def pieces(corpus: Corpus, whole: str) -> frozenset[int]:
    return frozenset(place for place, one in enumerate(corpus) if one.id.rpartition("#")[0] == whole)


def test_a_text_stands_at_all_pieces_of_it(cut: Corpus) -> None:
    texts, ids = Texts(cut), by_id(cut)
    assert len(pieces(cut, "long")) > 2
    for name, text in (("long", LONG), ("other", OTHER), ("short", "iron")):
        assert texts.places(text.upper()) == ids[name] == pieces(cut, name), name
    for place, one in enumerate(cut):
        assert place in texts.places(one.text) & ids[one.id]
    assert by_group(cut) == {"long": pieces(cut, "long"), "mine": pieces(cut, "other"), "short": pieces(cut, "short")}


def test_what_lacks_a_piece_is_no_text_that_stands_there(cut: Corpus) -> None:
    left = Corpus([one for one in cut if one.id != "long#2"])
    assert Texts(left).places(LONG) == frozenset()
    assert by_id(left)["long"] == pieces(left, "long")


def test_metadata_like_that_of_a_chunk_makes_none() -> None:
    documents = [
        Document("page#1", "apple", metadata={"document": "page"}),
        Document("page#2", "pear", metadata={"document": "page", "start": "x", "end": "y"}),
        Document("a-3", "plum", metadata={"document": "a", "start": 0, "end": 4}),
    ]
    assert by_id(documents) == {"page#1": {0}, "page#2": {1}, "a-3": {2}}


def test_what_a_tokenizer_drops_makes_no_other_text() -> None:
    text = "\ufffd Apple pear\ufffd, plum. \ufffd"
    chunks = [
        Document(f"a#{number}", text[start:end], metadata={"document": "a", "start": start, "end": end})
        for number, (start, end) in enumerate([(2, 7), (8, 12), (15, 20)], start=1)
    ]
    assert [one.text for one in chunks] == ["Apple", "pear", "plum."]
    for same in (text, text.replace("\ufffd", ""), "apple PEAR plum"):
        assert Texts(chunks).places(same) == {0, 1, 2}
    for other in ("apple pear plums", "apple", "\ufffd"):
        assert Texts(chunks).places(other) == ({0} if other == "apple" else set())


@pytest.mark.parametrize("same_data", [True, False])
def test_an_example_never_sees_a_piece_of_its_own_text(cut: Corpus, same_data: bool) -> None:
    queries = [Query("long", LONG), Query("other" if same_data else "x", OTHER.lower()), Query("short", "iron")]
    forbidden = forbidden_positions(cut, queries, same_data=same_data, exclude_duplicates=True)
    assert forbidden == [pieces(cut, "long"), pieces(cut, "other"), pieces(cut, "short")]
    free = forbidden_positions(cut, queries, same_data=False, exclude_duplicates=False)
    assert free == [frozenset()] * 3


def test_the_overlap_with_a_corpus_in_chunks_is_that_with_its_documents(cut: Corpus) -> None:
    report = find_overlap([Query("1", LONG), Query("2", "the fig"), Query("short", "IRON")], cut)
    assert report.mask(EXACT).tolist() == [True, False, True]
    assert {pair.position for pair in report.pairs if pair.query == 0} == pieces(cut, "long")
    own = find_overlap([Query("long", LONG), Query("9", OTHER)], cut, same_data=True)
    assert own.mask(EXACT).tolist() == [False, True]

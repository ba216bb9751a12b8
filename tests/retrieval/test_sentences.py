"""A document is as near as its nearest sentence."""

import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.sentences import SentencesRetriever
from peft_rag.testing import WordEncoder

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture
def corpus():
    draw = np.random.default_rng(0)

    def text():
        return " ".join(
            " ".join(draw.choice(WORDS, size=draw.integers(2, 6))) + "." for _ in range(draw.integers(1, 7))
        )

    return Corpus([Document(f"d{number}", text()) for number in range(40)] + [Document("bare", "no end")])


def test_score_is_the_largest_cosine_of_a_sentence_in_plain_loops(corpus):
    encoder = WordEncoder()
    retriever = SentencesRetriever(encoder)
    retriever.index(corpus)
    queries = [" ".join(np.random.default_rng(row).choice(WORDS, size=4)) for row in range(9)]
    exclude = [{row, 7} for row in range(9)]
    found = retriever.search(queries, 50, exclude)
    for row, query in enumerate(queries):
        vector = encoder.encode([query])[0].astype(np.float64)
        scores = {}
        for position, text in enumerate(corpus.texts):
            if position not in exclude[row]:
                sentences = [sentence + "." * (text != "no end") for sentence in text.rstrip(".").split(". ")]
                scores[position] = max(float(np.float32(vector @ encoder.encode([one])[0])) for one in sentences)
        expected = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
        assert [position for position, _ in found.row(row)] == [position for position, _ in expected]
        assert [score for _, score in found.row(row)] == pytest.approx([score for _, score in expected], abs=1e-6)
        assert found.head(3).row(row) == retriever.search([query], 3, [exclude[row]]).row(0)


def test_sentence_among_others_is_found_that_one_vector_of_the_text_misses():
    about = " ".join(f"w{n} w{n + 1} w{n + 2}." for n in range(3, 27)) + " The code of the door."
    corpus = Corpus([Document("other", "The code of w1."), Document("told", about)])
    found = {}
    for kind in (SentencesRetriever, ExactRetriever):
        retriever = kind(WordEncoder())
        retriever.index(corpus)
        found[kind] = corpus[retriever.search(["The code of the door."], 1).positions.item()].id
    assert found == {SentencesRetriever: "told", ExactRetriever: "other"}


def test_sentences_of_a_corpus_of_one_document_and_of_none():
    retriever = SentencesRetriever(WordEncoder())
    retriever.index(Corpus([Document("a", "One. Two.")]))
    assert [position for position, _ in retriever.search(["two"], 3).row(0)] == [0]

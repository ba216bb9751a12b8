import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.neighbours import Query
from peft_rag.retrieval.overlap import EXACT, NEAR, find_overlap

TEXTS = ["Red cat runs", "red  CAT runs", "green dog sleeps by the blue door", "a bird", "nothing alike"]


@pytest.fixture
def documents():
    return Corpus([Document(f"d{number}", text) for number, text in enumerate(TEXTS)])


def queries(*texts):
    return [Query(f"q{number}", text) for number, text in enumerate(texts)]


def test_exact_duplicates_are_all_listed_and_near_ones_by_similarity(documents, encoder):
    asked = queries("RED CAT RUNS", "green dog sleeps by a blue door", "unknown words")
    report = find_overlap(asked, documents, ExactRetriever(encoder), threshold=0.8)
    assert [(pair.query, pair.position, pair.kind) for pair in report.pairs] == [
        (0, 0, EXACT),
        (0, 1, EXACT),
        (1, 2, NEAR),
    ]
    assert report.pairs[0].similarity == 1
    assert 0.8 <= report.pairs[2].similarity < 1
    assert (report.count(EXACT), report.count(NEAR)) == (1, 1)
    assert report.mask().tolist() == [True, True, False]
    assert report.mask(EXACT).tolist() == [True, False, False]
    assert report.mask(NEAR).tolist() == [False, True, False]
    assert (report.queries, report.documents, report.threshold) == (3, 5, 0.8)


def test_overlap_equals_plain_loops(encoder, corpus):
    asked = queries("red cat", "red cat runs", "blue bird eats eats", "dog dog runs")
    found = {
        (pair.query, pair.position): pair.similarity
        for pair in find_overlap(asked, corpus, ExactRetriever(encoder), threshold=0.7).pairs
    }
    left, right = encoder.encode([query.text for query in asked]), encoder.encode(corpus.texts)
    wanted = {}
    for row in range(len(asked)):
        for position in range(len(corpus)):
            cosine = sum(float(a) * float(b) for a, b in zip(left[row], right[position], strict=True))
            if cosine >= 0.7:
                wanted[row, position] = pytest.approx(cosine, abs=1e-6)
    assert found == wanted


def test_without_an_encoder_only_exact_duplicates_are_looked_for(documents):
    report = find_overlap(queries("a bird", "a birds"), documents)
    assert [(pair.query, pair.position) for pair in report.pairs] == [(0, 3)]
    assert report.threshold is None


def test_document_is_no_duplicate_of_itself(documents, encoder):
    asked = [Query(document.id, document.text) for document in documents]
    report = find_overlap(asked, documents, ExactRetriever(encoder), threshold=0.99, same_data=True)
    assert [(pair.query, pair.position, pair.kind) for pair in report.pairs] == [(0, 1, EXACT), (1, 0, EXACT)]
    assert find_overlap(asked, documents, ExactRetriever(encoder), threshold=0.99).mask().all()


def test_no_queries_overlap_nothing(documents, encoder):
    report = find_overlap([], documents, ExactRetriever(encoder))
    assert report.pairs == ()
    assert report.mask().shape == (0,)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_threshold_out_of_range_is_refused(documents, threshold):
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\]"):
        find_overlap(queries("x"), documents, threshold=threshold)


def test_group_and_kept_neighbours_hide_no_overlap(documents, encoder):
    grouped = Corpus([Document(one.id, one.text, group="g") for one in documents])
    asked = [Query("q", "red cat runs", "g"), Query("r", "green dog sleeps by a blue door", "g")]
    reports = [find_overlap(asked, grouped, ExactRetriever(encoder), threshold=0.8) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].mask().tolist() == [True, True]
    assert encoder.encoded == [5, 2]

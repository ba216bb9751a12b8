import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document, text_key
from peft_rag.errors import ConfigError
from peft_rag.knowledge import Knowledge
from peft_rag.retrieval.base import NO_POSITION, Neighbours
from peft_rag.retrieval.bm25 import BM25Retriever
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever
from peft_rag.retrieval.leaks import only_below, similar_positions
from peft_rag.retrieval.neighbours import Query
from peft_rag.retrieval.overlap import find_overlap
from peft_rag.retrieval.sentences import SentencesRetriever
from peft_rag.tasks.base import Example


def cosine(left, right):
    return np.float32(sum(float(a) * float(b) for a, b in zip(left, right, strict=True)))


@pytest.fixture
def crowd():
    """60 documents, 40 of them nearly alike, so that the first look is not wide enough."""
    alike = [f"red cat runs to the old tree by the small house w{number}" for number in range(40)]
    others = [f"v{number} u{number % 5} bird" for number in range(20)]
    texts = [*alike, *others, "Red cat runs to the old tree by the small house W0"]
    groups = ["g" if number in (41, 42) else "" for number in range(len(texts))]
    return Corpus(
        [Document(f"d{n}", text, group=group) for n, (text, group) in enumerate(zip(texts, groups, strict=True))]
    )


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 0.95])
@pytest.mark.parametrize("make", [ExactRetriever, HnswRetriever])
def test_similar_positions_equal_plain_loops(crowd, encoder, tmp_path, make, threshold):
    vectors = encoder.encode(crowd.texts)
    wanted = [
        {position for position in range(len(crowd)) if cosine(vectors[row], vectors[position]) >= threshold}
        for row in range(len(crowd))
    ]
    assert {len(row) > 16 for row in wanted} == {True, False} or threshold > 0.9
    found = similar_positions(make(encoder), crowd, crowd.texts, threshold, cache_folder=tmp_path, name="train")
    assert found == wanted


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("make", [ExactRetriever, HnswRetriever])
def test_training_data_never_sees_itself_its_group_its_text_or_its_like_in_any_space(
    crowd, encoder, tmp_path, make, threshold
):
    vectors = encoder.encode(crowd.texts)
    examples = [Example(one.id, one.text, group=one.group) for one in crowd]
    knowledge = Knowledge(crowd, make(encoder), make.name, "words", cache=tmp_path, leak_threshold=threshold)
    by_text = knowledge.split(examples, 8, name="train", same_data=True, exclude_duplicates=True)
    tuned = knowledge.split(examples, 0, name="train", same_data=True, exclude_duplicates=True)
    assert tuned.neighbours is None
    for row, query in enumerate(crowd):
        scores = [cosine(vectors[row], vectors[position]) for position in range(len(crowd))]
        hidden = set()
        for position, document in enumerate(crowd):
            own = document.id == query.id or text_key(document.text) == text_key(query.text)
            group = query.group and document.group == query.group
            if own or group or (threshold and scores[position] >= threshold):
                hidden.add(position)
        seen = sorted((-scores[position], position) for position in range(len(crowd)) if position not in hidden)
        assert set(tuned.forbidden[row]) == set(by_text.forbidden[row]) == hidden
        assert [position for position, _ in by_text.neighbours.row(row)] == [position for _, position in seen[:8]]


def words(first, count=24):
    return " ".join(f"w{number}" for number in range(first, first + count))


def in_chunks(name, text, size=8):
    parts, start = text.split(" "), 0
    chunks = []
    for number in range(0, len(parts), size):
        piece = " ".join(parts[number : number + size])
        place = {"document": name, "start": start, "end": start + len(piece)}
        chunks.append(Document(f"{name}#{number // size + 1}", piece, metadata=place))
        start += len(piece) + 1
    return chunks


def test_a_near_copy_in_chunks_is_hidden_and_reported_whole(encoder, tmp_path):
    text, other = words(0), words(100)
    corpus = Corpus([*in_chunks("a", f"{text} more"), *in_chunks("b", other), Document("c", "w0 w1")])
    copy = {0, 1, 2, 3}
    assert max(encoder.encode(corpus.texts) @ encoder.encode([text])[0]) < 0.9
    found = similar_positions(ExactRetriever(encoder), corpus, [text, words(50)], 0.95, cache_folder=tmp_path, name="")
    assert found == [copy, set()]
    report = find_overlap(
        [Query("1", text), Query("2", "w0 w1")], corpus, ExactRetriever(encoder), cache_folder=tmp_path
    )
    assert [(one.query, one.position, one.kind) for one in report.pairs] == [
        *((0, place, "near") for place in sorted(copy)),
        (1, 7, "exact"),
    ]
    assert report.pairs[0].similarity == pytest.approx((24 / 25) ** 0.5, abs=0.02)


def test_a_retriever_of_sentences_hides_near_copies_as_wholes(encoder, tmp_path):
    text = f"{words(0, 12)}. {words(12, 12)}."
    corpus = Corpus([Document("a", f"{text} more"), Document("b", f"{words(0, 12)}. {words(80, 12)}.")])
    retriever = SentencesRetriever(encoder)
    found = similar_positions(retriever, corpus, [text], 0.9, cache_folder=tmp_path, name="")
    assert found == [{0}]
    report = find_overlap([Query("1", text)], corpus, retriever, cache_folder=tmp_path, threshold=0.9)
    assert [(one.position, one.kind) for one in report.pairs] == [(0, "near")]


def test_texts_that_are_not_learned_from_see_their_like(crowd, encoder, tmp_path):
    knowledge = Knowledge(crowd, ExactRetriever(encoder), "exact", "words", cache=tmp_path, leak_threshold=0.5)
    split = knowledge.split([Example("x", crowd[3].text)], 2, name="test", exclude_duplicates=False)
    assert split.forbidden == ()
    assert split.neighbours.row(0)[0][0] == 3


def test_threshold_is_part_of_what_neighbours_are_kept_under(crowd, encoder, tmp_path):
    examples = [Example(one.id, one.text) for one in crowd]
    found = []
    for threshold in (0.0, 0.9, 0.0, 0.9, 0.6):
        knowledge = Knowledge(
            crowd, ExactRetriever(encoder), "exact", "words", cache=tmp_path, leak_threshold=threshold
        )
        split = knowledge.split(examples, 4, name="train", same_data=True, exclude_duplicates=True)
        found.append(split.neighbours.positions.tolist())
    assert found[0] == found[2] != found[1] == found[3] != found[4]
    encoded = len(encoder.encoded)
    knowledge.split(examples, 4, name="train", same_data=True, exclude_duplicates=True)
    assert len(encoder.encoded) == encoded


def test_only_below_moves_what_is_left_to_the_front():
    found = Neighbours(np.array([[4, 2, 7], [1, 3, NO_POSITION]]), np.array([[0.9, 0.5, 0.4], [0.3, 0.2, -np.inf]]))
    kept = only_below(found, 0.5)
    assert kept.positions.tolist() == [[7, NO_POSITION, NO_POSITION], [1, 3, NO_POSITION]]
    assert kept.row(0) == [(7, 0.4)]
    assert kept.scores[0].tolist()[1:] == [-np.inf, -np.inf]


def test_nothing_similar_is_kept_and_read_again(crowd, encoder, tmp_path):
    strangers = ["nothing alike", "at all"]
    for _ in range(2):
        assert similar_positions(ExactRetriever(encoder), crowd, strangers, 0.9, cache_folder=tmp_path, name="x") == [
            frozenset(),
            frozenset(),
        ]


def test_threshold_needs_cosines_and_a_range(crowd, encoder):
    with pytest.raises(ConfigError, match="leak_threshold is a cosine, but the scores of retriever 'bm25' are none"):
        Knowledge(crowd, BM25Retriever(encoder), "bm25", "words", leak_threshold=0.9)
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="it is a cosine from 0"):
            Knowledge(crowd, ExactRetriever(encoder), "exact", "words", leak_threshold=threshold)

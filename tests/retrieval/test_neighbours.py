import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document, text_key
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever
from peft_rag.retrieval.neighbours import Query, precompute_neighbours

DOCUMENTS = [
    Document("a", "red cat runs"),
    Document("b", "Red  CAT runs"),
    Document("c", "red cat sleeps", group="g"),
    Document("d", "red dog runs", group="g"),
    Document("e", "blue bird eats"),
    Document("f", "red bird runs", group="h"),
]


@pytest.fixture
def small():
    return Corpus(DOCUMENTS)


@pytest.fixture
def queries(small):
    return [Query(document.id, document.text, document.group) for document in small]


@pytest.fixture
def precompute(tmp_path, encoder, small, queries):
    """Call `precompute_neighbours` with small defaults, any of which may be given otherwise."""

    def call(**changes):
        arguments = {
            "retriever": ExactRetriever(encoder),
            "corpus": small,
            "queries": queries,
            "k": 6,
            "cache_folder": tmp_path / "cache",
            "name": "train",
            "same_data": True,
        } | changes
        return precompute_neighbours(
            arguments.pop("retriever"),
            arguments.pop("corpus"),
            arguments.pop("queries"),
            arguments.pop("k"),
            **arguments,
        )

    return call


def expected(encoder, corpus, queries, k, *, same_data, duplicates):
    """Plain loops over all pairs."""
    vectors, found = encoder.encode(corpus.texts), []
    for query, vector in zip(queries, encoder.encode([query.text for query in queries]), strict=True):
        scored = []
        for position, document in enumerate(corpus):
            itself = same_data and document.id == query.id
            duplicate = duplicates and text_key(document.text) == text_key(query.text)
            if itself or duplicate or (query.group and document.group == query.group):
                continue
            score = np.float32(np.dot(vector.astype(np.float64), vectors[position].astype(np.float64)))
            scored.append((-score, position))
        found.append([position for _, position in sorted(scored)[:k]])
    return found


def positions(neighbours):
    return [[position for position, _ in neighbours.row(row)] for row in range(len(neighbours))]


@pytest.mark.parametrize("retriever", [ExactRetriever, HnswRetriever])
@pytest.mark.parametrize("same_data", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
def test_neighbours_equal_plain_loops(precompute, encoder, small, queries, retriever, same_data, duplicates):
    found = precompute(retriever=retriever(encoder), same_data=same_data, exclude_duplicates=duplicates)
    assert positions(found) == expected(encoder, small, queries, 6, same_data=same_data, duplicates=duplicates)


def test_no_query_of_the_same_data_sees_itself_its_duplicates_or_its_group(precompute):
    found = positions(precompute())
    assert [set(row) for row in found] == [
        {2, 3, 4, 5},
        {2, 3, 4, 5},
        {0, 1, 4, 5},
        {0, 1, 4, 5},
        {0, 1, 2, 3, 5},
        {0, 1, 2, 3, 4},
    ]


def test_queries_of_other_data_see_their_duplicates_unless_told_but_never_their_group(precompute):
    queries = [Query("a", "RED cat runs", "g"), Query("zz", "red cat runs")]
    seen = [set(row) for row in positions(precompute(queries=queries, same_data=False))]
    assert seen == [{0, 1, 4, 5}, {0, 1, 2, 3, 4, 5}]
    told = positions(precompute(queries=queries, same_data=False, exclude_duplicates=True))
    assert [set(row) for row in told] == [{4, 5}, {2, 3, 4, 5}]


def test_every_query_is_excluded_from_a_larger_corpus(precompute, encoder, corpus):
    queries = [Query(document.id, document.text) for document in corpus]
    found = precompute(corpus=corpus, queries=queries, k=26)
    assert positions(found) == expected(encoder, corpus, queries, 26, same_data=True, duplicates=True)
    assert all(row not in found.positions[row] for row in range(27))
    assert (found.positions >= 0).all()


def test_fewer_than_k_come_back_padded(precompute):
    found = precompute(k=10)
    assert found.positions.shape == (6, 10)
    assert (found.positions[:, 5:] == -1).all()
    assert (found.scores[:, 5:] == -np.inf).all()


def test_id_unknown_to_the_corpus_is_an_error_when_the_data_is_the_same(precompute, tmp_path):
    with pytest.raises(RetrievalError) as caught:
        precompute(queries=[Query("nobody", "x")])
    assert str(caught.value) == (
        "query 'nobody' has no document of that id in the corpus 'corpus', though same_data "
        "says that its data is the corpus. Read both with the same id field."
    )
    assert [path for path in (tmp_path / "cache" / "neighbours").iterdir() if path.is_dir()] == []


def test_k_below_one_is_an_error(precompute):
    with pytest.raises(ConfigError, match="k must be at least 1"):
        precompute(k=0)


def test_neighbours_are_read_and_not_computed_again(precompute, encoder):
    first = precompute()
    computed = len(encoder.encoded)
    again = precompute(name="another name")
    assert len(encoder.encoded) == computed == 2
    assert np.array_equal(first.positions, again.positions)
    assert np.array_equal(first.scores, again.scores)
    assert isinstance(again.positions, np.memmap)
    assert not again.positions.flags.writeable


def test_corpus_already_indexed_is_not_encoded_again(precompute, encoder, small):
    retriever = ExactRetriever(encoder)
    retriever.index(small)
    precompute(retriever=retriever)
    assert encoder.encoded == [6, 6]


@pytest.mark.parametrize(
    "change",
    [
        {"k": 5},
        {"same_data": False},
        {"exclude_duplicates": False},
        {"queries": [Query("a", "red cat runs"), Query("b", "Red  CAT runs")]},
        {"queries": [Query(document.id, document.text + " too", document.group) for document in DOCUMENTS]},
        {"queries": [Query(document.id, document.text) for document in DOCUMENTS]},
        {"queries": [Query(document.id, document.text, document.group) for document in DOCUMENTS[::-1]]},
        {"corpus": Corpus(DOCUMENTS[::-1])},
        {"corpus": Corpus([*DOCUMENTS[:-1], Document("f", "another text", group="h")])},
        {"corpus": Corpus([*DOCUMENTS[:-1], Document("f", "red bird runs", group="g")])},
        {"corpus": Corpus([*DOCUMENTS[:-1], Document("f", "red bird runs", ("label",), group="h")])},
    ],
)
def test_change_of_any_ingredient_computes_anew(precompute, encoder, change):
    precompute()
    before = len(encoder.encoded)
    precompute(**change)
    assert len(encoder.encoded) > before


def test_change_of_encoder_or_retriever_settings_computes_anew(precompute, encoder, make_encoder):
    precompute(retriever=HnswRetriever(encoder))
    before = len(encoder.encoded)
    precompute(retriever=HnswRetriever(encoder, ef=65))
    assert len(encoder.encoded) == before + 2
    other = make_encoder(seed=1)
    precompute(retriever=HnswRetriever(other))
    assert other.encoded == [6, 6]


@pytest.mark.parametrize("name", ["positions.npy", "scores.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_cache_is_computed_anew(precompute, encoder, tmp_path, name, damage):
    first = np.array(precompute().positions)
    (path,) = (tmp_path / "cache" / "neighbours").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-9])
    else:
        content[-20] ^= 1
        path.write_bytes(content)
    before = len(encoder.encoded)
    assert np.array_equal(precompute().positions, first)
    assert len(encoder.encoded) == before + 2
    precompute()
    assert len(encoder.encoded) == before + 2


def test_failure_while_computing_leaves_nothing_and_may_be_repeated(precompute, encoder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("the encoder's own fault")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", fail)
        with pytest.raises(OSError, match="the encoder's own fault"):
            precompute()
    assert [path for path in (tmp_path / "cache" / "neighbours").iterdir() if path.is_dir()] == []
    assert len(precompute()) == 6


def test_unfinished_folder_of_a_killed_process_is_removed(precompute, tmp_path):
    precompute()
    (folder,) = (path for path in (tmp_path / "cache" / "neighbours").iterdir() if path.is_dir())
    left = folder.parent / f".{folder.name}.abc"
    left.mkdir()
    (folder / "manifest.json").unlink()
    precompute()
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written_is_an_error(precompute, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(RetrievalError, match=r"cannot be written \(Permission denied\)\. Set PEFT_RAG_CACHE"):
        precompute(cache_folder=closed / "cache")


def test_cache_that_is_a_file_is_an_error(precompute, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RetrievalError, match=r"cannot be written \(.+\)\. Set PEFT_RAG_CACHE to a folder"):
        precompute(cache_folder=tmp_path / "file")


def test_manifest_tells_what_was_computed(precompute, tmp_path, small):
    precompute()
    (path,) = (tmp_path / "cache" / "neighbours").glob("*/manifest.json")
    content = json.loads(path.read_text())
    assert content["corpus"] == small.fingerprint
    assert (content["k"], content["name"], content["same_data"]) == (6, "train", True)
    assert set(content["files"]) == {"positions.npy", "scores.npy"}


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import WordEncoder
from peft_rag.corpus import Corpus, Document
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.neighbours import Query, precompute_neighbours

folder = Path(sys.argv[2])

class SlowEncoder(WordEncoder):
    def encode(self, texts, progress=None):
        with (folder / "log").open("a") as log:
            log.write("encode\\n")
        time.sleep(0.5)
        return super().encode(texts)

corpus = Corpus([Document(str(number), f"text {number}") for number in range(20)])
queries = [Query(document.id, document.text) for document in corpus]
(folder / f"ready{sys.argv[3]}").touch()
while len(list(folder.glob("ready*"))) < 3:
    time.sleep(0.01)
found = precompute_neighbours(
    ExactRetriever(SlowEncoder()), corpus, queries, 3, cache_folder=folder, name="train", same_data=True
)
print(found.positions.tolist())
"""


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path):
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(3)]
    answers = [worker.communicate(timeout=60)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    assert len(set(answers)) == 1
    assert len(answers[0]) > 50
    assert (tmp_path / "log").read_text() == "encode\nencode\n"


def test_reading_neighbours_again_takes_milliseconds(precompute):
    precompute()
    start = time.perf_counter()
    precompute()
    assert time.perf_counter() - start < 1

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, CorpusError, FingerprintError, RetrievalError, ShapeError
from peft_rag.retrieval import writing
from peft_rag.retrieval.locking import LOCK, writer_lock
from peft_rag.retrieval.manifest import BUILDING, MANIFEST, StoreSettings, read_signed, write_signed
from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.store_retriever import StoreRetriever
from peft_rag.retrieval.streaming import stream_documents

SMALL = StoreSettings(exact_below=60, shard_size=32)


class Points:
    """Draws a point for each text; of any length and dimension."""

    name = "points"

    def __init__(self, dimension=16, name="points"):
        self.dimension = dimension
        self.fingerprint = f"{name}-{dimension}"
        self.encoded = 0

    def encode(self, texts, progress=None):
        self.encoded += len(texts)
        return np.stack([self.point(text) for text in texts]).astype(np.float32)

    def point(self, text):
        seed = int.from_bytes(text.strip().encode()[:8].rjust(8), "big") + len(text)
        return np.random.default_rng(seed).normal(size=self.dimension)


def documents(start, stop):
    return [
        Document(f"d{n}", f"{n} text", (f"l{n % 3}",), f"g{n % 5}", {"number": n, "ä": [n]}) for n in range(start, stop)
    ]


def reference(store, queries, k, exclude=()):
    """Rank every document in plain loops."""
    metric = store.snapshot.manifest.settings.metric
    found = []
    for query in queries.astype(np.float64):
        scored = []
        for row in store.snapshot.rows.tolist():
            vector = store.snapshot.shards.vectors(np.array([row]))[0].astype(np.float64)
            one = query / np.linalg.norm(query) if metric == "cosine" else query
            score = -((one - vector) ** 2).sum() if metric == "l2" else (one * vector).sum()
            name = store.snapshot.shards.ids(np.array([row]))[0]
            if name not in exclude:
                scored.append((-np.float32(score), name))
        found.append([name for _, name in sorted(scored)[:k]])
    return found


@pytest.fixture
def points():
    return Points()


@pytest.fixture
def store(tmp_path, points):
    return IndexStore.build(tmp_path / "index", documents(0, 100), points, SMALL)


def test_what_was_built_is_opened_with_all_that_a_document_holds(store, points):
    opened = IndexStore.open(store.folder, points)
    assert list(opened.documents()) == documents(0, 100)
    assert opened.get(["d7", "d3"]) == [documents(7, 8)[0], documents(3, 4)[0]]
    assert "d7" in opened
    assert "nothing" not in opened
    assert opened.fingerprint == Corpus(documents(0, 100)).fingerprint
    assert opened.info()["graph"]["slots"] == 100


def test_spans_of_documents_are_stored_and_part_of_their_fingerprint(tmp_path, points):
    about = [replace(one, spans=((0, 1), (2, 6))) if n % 2 else one for n, one in enumerate(documents(0, 9))]
    IndexStore.build(tmp_path / "index", about, points, SMALL)
    opened = IndexStore.open(tmp_path / "index", points)
    assert list(opened.documents()) == about
    assert opened.fingerprint == Corpus(about).fingerprint != Corpus(documents(0, 9)).fingerprint


def test_documents_are_readable_by_datasets(store):
    import datasets

    table = datasets.Dataset.from_file(str(store.folder / "shard-000001-000000.arrow"))
    assert (table[3]["id"], table[3]["labels"], len(table)) == ("d3", ["l0"], 32)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("exact_below", [60, 10_000])
@pytest.mark.parametrize(("precision", "graph_dimensions"), [("float32", 0), ("float16", 0), ("int8", 8)])
def test_search_finds_what_plain_loops_find_through_every_change(
    tmp_path, points, metric, exact_below, precision, graph_dimensions
):
    settings = StoreSettings(
        metric, ef=200, exact_below=exact_below, shard_size=16, precision=precision, graph_dimensions=graph_dimensions
    )
    store = IndexStore.build(tmp_path / "index", documents(0, 90), points, settings)
    queries = points.encode([f"query {n}" for n in range(8)])
    changes = [
        lambda: None,
        lambda: store.add(documents(90, 95)),
        lambda: store.delete([f"d{n}" for n in range(0, 60, 2)]),
        lambda: store.add(documents(95, 120)),
        lambda: store.update([Document("d1", "another text"), Document("d500", "a new one")]),
        lambda: store.compact(),
    ]
    for change in changes:
        change()
        for opened in (store, IndexStore.open(store.folder, points)):
            expected = reference(opened, queries, 5, exclude=("d61", "d63"))
            found = opened.search_vectors(queries, 5, [("d61", "d63", "unknown")] * 8)
            assert [[hit.id for hit in hits] for hits in found] == expected
            exact = opened.search_vectors(queries, 5, [("d61", "d63")] * 8, exact=True)
            assert [[hit.id for hit in hits] for hits in exact] == expected
            for some, others in zip(found, exact, strict=True):
                assert [hit.score for hit in some] == pytest.approx([hit.score for hit in others], rel=1e-5, abs=1e-5)
    assert store.verify()["documents"] == 91


def test_deleted_slots_are_used_again_and_capacity_grows_by_itself(store, points):
    for start in range(100, 220, 20):
        store.delete([f"d{n}" for n in range(start - 100, start - 80)])
        store.add(documents(start, start + 20))
    assert len(store) == 100
    assert store.info()["graph"]["slots"] == 100
    store.add(documents(220, 420))
    assert store.info()["graph"]["slots"] == 300
    assert store.info()["deleted"] == 120
    store.compact()
    assert (store.info()["deleted"], store.info()["documents"]) == (0, 300)
    assert IndexStore.open(store.folder, points).search(["419 text"], 1)[0][0].id == "d419"


def test_a_short_graph_proposes_what_stored_vectors_rank(tmp_path):
    points = Points(48)
    settings = StoreSettings(exact_below=100, shard_size=128, precision="float16", graph_dimensions=24, ef=60)
    store = IndexStore.build(tmp_path / "short", documents(0, 400), points, settings)
    plain = IndexStore.build(tmp_path / "plain", documents(0, 400), points, StoreSettings(exact_below=100))
    assert store.snapshot.graph.projection.shape == (48, 24)
    queries = points.encode([f"{n} texts" for n in range(40)])
    found, exact = store.search_vectors(queries, 5), store.search_vectors(queries, 5, exact=True)
    same = [len({hit.id for hit in a} & {hit.id for hit in b}) / 5 for a, b in zip(found, exact, strict=True)]
    assert np.mean(same) > 0.9
    for query, hits in zip(queries, found, strict=True):
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        whole = {hit.id: hit.score for hit in plain.search_vectors(query[None], 400)[0]}
        assert [hit.score for hit in hits] == pytest.approx([whole[hit.id] for hit in hits], abs=1e-3)
    sizes = [sum(path.stat().st_size for path in one.folder.glob("graph-*")) for one in (store, plain)]
    assert sizes[0] < 0.75 * sizes[1]


def test_a_short_graph_keeps_its_directions_until_it_is_built_anew(tmp_path):
    points = Points(16)
    settings = StoreSettings(exact_below=60, shard_size=32, precision="int8", graph_dimensions=4)
    store = IndexStore.build(tmp_path / "short", documents(0, 100), points, settings)
    first = store.snapshot.manifest.graph.projection
    store.add(documents(100, 200))
    assert store.snapshot.manifest.graph.projection == first
    assert store.verify()["documents"] == 200
    store.compact()
    assert store.snapshot.manifest.graph.projection != first
    assert not (store.folder / first).exists()
    assert IndexStore.open(store.folder, points).verify()["files"] == len(store.snapshot.manifest.files)


def test_as_many_graph_dimensions_as_there_are_compare_all(tmp_path, points):
    settings = StoreSettings(exact_below=60, graph_dimensions=16)
    store = IndexStore.build(tmp_path / "all", documents(0, 100), points, settings)
    assert store.snapshot.graph.projection is None


def test_compacting_leaves_stored_vectors_as_they_are(tmp_path, points):
    settings = StoreSettings(exact_below=60, shard_size=32, precision="int8")
    store = IndexStore.build(tmp_path / "index", documents(0, 100), points, settings)
    before = {hit.id: hit.score for hit in store.search(["7 text"], 100)[0]}
    store.delete(["d3"])
    store.compact()
    after = {hit.id: hit.score for hit in store.search(["7 text"], 100)[0]}
    assert after == {name: score for name, score in before.items() if name != "d3"}


def test_an_emptied_index_is_compacted_and_filled_again(tmp_path, points):
    settings = StoreSettings(exact_below=0, graph_dimensions=8)
    store = IndexStore.build(tmp_path / "index", documents(0, 20), points, settings)
    store.delete([f"d{n}" for n in range(20)])
    store.compact()
    assert len(store) == 0
    store.add(documents(20, 25))
    assert len(store.search(["21 text"], 3)[0]) == 3


def test_update_replaces_text_labels_and_vector(store):
    assert store.update([Document("d5", "quite another", ("new",))]) == 1
    assert (len(store), store.get(["d5"])[0].labels) == (100, ("new",))
    assert store.search(["quite another"], 1)[0][0].id == "d5"
    assert store.search(["5 text"], 1)[0][0].document.text != "5 text"


def test_search_returns_fewer_rather_than_raise(store):
    assert len(store.search(["1 text"], 500)[0]) == 100
    assert len(store.search(["1 text"], 10, [[f"d{n}" for n in range(97)]])[0]) == 3
    assert [hit.document.group for hit in store.search(["x"], 30, where=lambda one: one.group == "g2")[0]] == [
        "g2"
    ] * 20
    store.delete([f"d{n}" for n in range(100)])
    assert store.search(["1 text"], 3) == [[]]
    assert len(IndexStore.open(store.folder)) == 0
    store.compact()
    assert IndexStore.open(store.folder).search_vectors(np.ones((2, 16)), 3) == [[], []]


def test_equal_scores_are_ordered_by_id_even_where_the_graph_meets_only_some(tmp_path, points):
    twins = [Document(f"t{n:03}", "the same text") for n in reversed(range(120))]
    store = IndexStore.build(tmp_path / "index", [*documents(0, 100), *twins], points, SMALL)
    assert [hit.id for hit in store.search(["the same text"], 4)[0]] == ["t000", "t001", "t002", "t003"]


def test_an_interrupted_build_goes_on_after_the_last_finished_shard(tmp_path, points):
    class Interrupted(Points):
        def encode(self, texts, progress=None):
            if self.encoded >= 64:
                raise KeyboardInterrupt
            return super().encode(texts)

    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        IndexStore.build(folder, documents(0, 100), Interrupted(), SMALL)
    with pytest.raises(RetrievalError, match=r"holds an unfinished index\. Run the same peft-rag index build again"):
        IndexStore.open(folder)
    IndexStore.build(folder, documents(0, 100), points, SMALL)
    assert points.encoded == 36
    assert list(IndexStore.open(folder).documents()) == documents(0, 100)
    assert not (folder / BUILDING).exists()


def test_a_resumed_build_never_keeps_what_has_changed(tmp_path, points):
    class Interrupted(Points):
        def encode(self, texts, progress=None):
            if self.encoded >= 64:
                raise KeyboardInterrupt
            return super().encode(texts)

    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        IndexStore.build(folder, documents(0, 100), Interrupted(), SMALL)
    (folder / "shard-000001-000000.npy").write_bytes(b"damaged")
    changed = [Document("d40", "changed"), *documents(0, 40), *documents(41, 100)]
    IndexStore.build(folder, changed, points, SMALL)
    assert list(IndexStore.open(folder).documents()) == changed


def test_a_second_writer_is_refused_by_name_while_readers_go_on(store, points):
    script = (
        "import sys, pathlib; from peft_rag.retrieval.locking import writer_lock\n"
        "with writer_lock(pathlib.Path(sys.argv[1]), 'add'):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RetrievalError, match=rf"is being written by process {holder.pid} on .* \(add\)\. Wait"):
            store.delete(["d1"])
        assert IndexStore.open(store.folder, points).search(["3 text"], 1)[0][0].id == "d3"
        holder.kill()
    assert store.delete(["d1"]) == 1


def test_a_lock_held_by_this_process_is_refused_too(store):
    with writer_lock(store.folder, "compact"), pytest.raises(RetrievalError, match=rf"process {os.getpid()} on"):
        store.compact()


def test_a_reader_keeps_what_it_opened_until_it_refreshes(store, points):
    reader = IndexStore.open(store.folder, points)
    store.delete(["d3"])
    store.compact()
    assert reader.search(["3 text"], 1)[0][0].document.text == "3 text"
    reader.refresh()
    assert "d3" not in reader
    reader.add(documents(200, 201))
    assert store.delete(["d200"]) == 1


def test_an_index_built_anew_in_its_folder_is_not_taken_for_the_one_that_was_opened(tmp_path, points):
    folder = tmp_path / "index"
    reader = IndexStore.build(folder, documents(0, 40), points, SMALL)
    writer = IndexStore.open(folder, points)
    shutil.rmtree(folder)
    IndexStore.build(folder, documents(50, 90), points, SMALL)
    assert "d3" in reader
    reader.refresh()
    assert "d3" not in reader
    assert "d53" in reader
    assert writer.add(documents(100, 101)) == 1
    assert [one.id for one in writer.documents()] == [f"d{n}" for n in (*range(50, 90), 100)]
    before = reader.snapshot
    writer.set_ef(77)
    reader.refresh()
    assert reader.snapshot is not before
    before = reader.snapshot
    reader.refresh()
    assert reader.snapshot is before


def test_an_index_built_anew_with_another_encoder_is_neither_searched_nor_written_with_the_old_one(tmp_path, points):
    folder = tmp_path / "index"
    opened = IndexStore.build(folder, documents(0, 40), points, SMALL)
    shutil.rmtree(folder)
    IndexStore.build(folder, documents(0, 40), Points(name="others"), SMALL)
    for use in (opened.refresh, lambda: opened.add(documents(50, 51))):
        with pytest.raises(FingerprintError, match=r"was built with the encoder 'points' others-16…, but 'points' is"):
            use()
    assert len(IndexStore.open(folder)) == 40


def test_an_index_that_names_files_elsewhere_is_not_opened(store, tmp_path):
    content = read_signed(store.folder / "manifest.json")
    for name in ("../outside", "/outside", "shard-000001/../../outside"):
        content["shards"][0]["name"] = name
        write_signed(store.folder / "manifest.json", content)
        with pytest.raises(RetrievalError, match=rf"names a file that no index has, '{re.escape(name)}.arrow'"):
            IndexStore.open(store.folder)


def test_a_source_that_fails_is_not_taken_for_a_full_disk_nor_a_lost_file_for_a_sound_one(store, points, tmp_path):
    def broken():
        yield from documents(300, 301)
        raise ConnectionResetError(104, "Connection reset by peer")

    for use in (lambda: store.add(broken()), lambda: IndexStore.build(tmp_path / "new", broken(), points)):
        with pytest.raises(RetrievalError, match=r"could not be read to their end \(Connection reset by peer\)"):
            use()
    next(store.folder.glob("shard-*.npy")).unlink()
    with pytest.raises(RetrievalError, match=r"is missing or damaged .* or remove the folder and build the index anew"):
        store.delete(["d1"])


def test_an_index_of_another_version_is_called_one(store):
    content = read_signed(store.folder / "manifest.json")
    later = {**content, "settings": {**content["settings"], "shine": 1}}
    for other in ({**content, "colour": "red"}, later, {name: content[name] for name in content if name != "graph"}):
        write_signed(store.folder / "manifest.json", other)
        with pytest.raises(
            RetrievalError, match=r"was written by another version of peft-rag \(.*\)\. Open it with that"
        ):
            IndexStore.open(store.folder)


def test_files_of_others_are_left_alone_and_leftovers_removed(store):
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / ".tmp-shard-000009-000000.npy").write_text("left over")
    store.delete(["d1"])
    assert (store.folder / "notes.txt").exists()
    names = {path.name for path in store.folder.iterdir()}
    assert names == {*store.snapshot.manifest.names, MANIFEST, LOCK, "notes.txt"}


def test_mistakes_are_named(store, points, tmp_path):
    def fails(error, message, call):
        with pytest.raises(error, match=message):
            call()

    fails(FingerprintError, "dimension 16, but the encoder 'points' gives 8", lambda: open_with(store, Points(8)))
    fails(FingerprintError, "was built with the encoder 'points' points-16", lambda: open_with(store, Points(name="o")))
    fails(RetrievalError, "no document 'nobody' and 1 more in the index", lambda: store.delete(["d1", "nobody", "no"]))
    fails(RetrievalError, "no document 'nobody' in the index", lambda: store.get(["nobody"]))
    fails(CorpusError, "id 'd1' is in the index .* already. Update documents with --replace", lambda: add(store, "d1"))
    fails(CorpusError, "documents number 1 and 2 of those given have one id, 'n'", lambda: add(store, "n", "n"))
    fails(CorpusError, "document 'n': the text is empty", lambda: store.add([Document("n", " \n")]))
    fails(CorpusError, "a document has an empty id", lambda: add(store, ""))
    fails(CorpusError, "has 10,000,000 characters", lambda: store.add([Document("n", "x " * 5_000_000)]))
    fails(CorpusError, r"half of a surrogate pair \(\\ud800\)", lambda: store.add([Document("n", "a\ud800")]))
    fails(
        ShapeError,
        r"vectors of dimension 16, but the queries have shape \(1, 3\)",
        lambda: find(store, np.ones((1, 3))),
    )
    fails(RetrievalError, "query vector 0 holds NaN", lambda: find(store, np.full((1, 16), np.nan)))
    fails(ConfigError, "k must be at least 1, but is 0", lambda: store.search(["x"], 0))
    fails(ShapeError, "exclude must have one entry a query", lambda: store.search(["x"], 1, []))
    fails(
        ConfigError, "metric must be one of cosine, ip, l2, but is 'hamming'", lambda: StoreSettings(metric="hamming")
    )
    fails(ConfigError, "ef must be a whole number of at least 1, but is 0", lambda: StoreSettings(ef=0))
    fails(CorpusError, "there are no documents", lambda: IndexStore.build(tmp_path / "none", [], points))
    fails(RetrievalError, "holds an index already", lambda: IndexStore.build(store.folder, documents(0, 1), points))
    fails(RetrievalError, "holds no index", lambda: IndexStore.open(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    fails(
        RetrievalError, "other files .thesis.tex", lambda: IndexStore.build(tmp_path / "full", documents(0, 1), points)
    )
    assert list(IndexStore.open(store.folder).documents()) == documents(0, 100)


def open_with(store, encoder):
    return IndexStore.open(store.folder, encoder)


def add(store, *names):
    return store.add([Document(name, "text") for name in names])


def find(store, queries):
    return store.search_vectors(queries, 1)


def test_two_shards_with_one_id_are_refused_and_nothing_is_added(store):
    with pytest.raises(CorpusError, match="of those given have one id, 'd100'"):
        store.add([*documents(100, 150), Document("d100", "again")])
    assert len(IndexStore.open(store.folder)) == 100


def test_encoder_that_gives_nan_or_another_shape_is_refused(tmp_path, points):
    points.point = lambda text: np.full(16, np.nan)
    with pytest.raises(RetrievalError, match="encoded vector 0 holds NaN"):
        IndexStore.build(tmp_path / "a", documents(0, 3), points)
    points.point = lambda text: np.ones(5)
    with pytest.raises(ShapeError, match=r"need vectors of shape \(3, 16\)"):
        IndexStore.build(tmp_path / "b", documents(0, 3), points)


def test_verify_notices_an_encoder_that_answers_otherwise(store, points):
    points.point = lambda text: np.arange(16)
    with pytest.raises(RetrievalError, match="now gives vectors that differ"):
        store.verify()


def test_known_queries_are_checked_on_every_opening(store, monkeypatch):
    content = json.loads((store.folder / MANIFEST).read_text())
    content.pop("signature")
    content["known"][1]["scores"][0] -= 0.5
    writing.write_signed(store.folder / MANIFEST, content)
    with pytest.raises(RetrievalError, match="the known query 'd49' must find"):
        IndexStore.open(store.folder)


def test_retriever_over_an_index_counts_documents_in_their_order(store, points, tmp_path):
    store.delete(["d0", "d1"])
    retriever = StoreRetriever.load(store.folder, points)
    corpus = Corpus.read(store.folder)
    retriever.index(corpus)
    found = retriever.search(["7 text", "8 text"], 3, [(5,), ()])
    assert corpus[found.row(1)[0][0]].id == "d8"
    assert 5 not in [place for place, _ in found.row(0)]
    assert retriever.corpus_fingerprint == corpus.fingerprint
    retriever.save(tmp_path / "copy")
    copy = StoreRetriever.load(tmp_path / "copy", points)
    assert copy.fingerprint == retriever.fingerprint
    assert (copy.search(["7 text"], 3).positions == retriever.search(["7 text"], 3).positions).all()
    with pytest.raises(RetrievalError, match=r"holds 98 documents that are not those of 'corpus' \(5\)"):
        retriever.index(Corpus(documents(0, 5)))


def test_documents_stream_from_json_lines_as_a_corpus_reads_them(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": f"text {n}", "label": "x"}) + "\n" for n in range(50)))
    assert list(stream_documents(path)) == list(Corpus.read(path))
    with path.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    stream = stream_documents(path)
    assert [next(stream).id for _ in range(50)][-1] == "49"
    with pytest.raises(Exception, match=r"corpus.jsonl line 51: byte 0xe9 .* is no UTF-8"):
        next(stream)

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peft_rag.cli.index import SUBCOMMANDS
from peft_rag.retrieval.store import IndexStore
from tests.cli.conftest import Run
from tests.conftest import write_jsonl


@pytest.fixture
def index(peft_rag: Run) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        return peft_rag("index", *map(str, words))

    return run


def test_an_index_lives_through_every_command(
    index: Run, tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "kb"
    status, out, err = index(
        "build", folder, "--corpus", toy_data["train"], "--encoder", tiny_bert, "--exact-below", 20
    )
    assert (status, out) == (0, f"built: 60 documents in {folder}\n")
    assert "build" in err
    assert "document/s" in err

    status, out, _ = index("add", folder, "--corpus", toy_data["test"])
    assert (status, out.splitlines()) == (0, [f"added: 30 documents, in place of 0; 90 in {folder}"])

    gone = tmp_path / "gone.txt"
    gone.write_text("3-1\n\n3-2\n")
    assert index("delete", folder, "3-0", "--ids-from", gone)[1] == f"deleted: 3 documents; 87 left in {folder}\n"

    update = write_jsonl(
        tmp_path / "update.jsonl", [{"id": "3-3", "text": "apple pear plum", "label": "new", "by": "me"}]
    )
    status, _, err = index("add", folder, "--corpus", update)
    assert status == 2
    assert err.splitlines()[-1].startswith("CorpusError: id '3-3' is in the index")
    assert "added: 1 documents, in place of 1; " in index("add", folder, "--corpus", update, "--replace")[1]
    nameless = write_jsonl(tmp_path / "nameless.jsonl", [{"text": "tin and zinc"}])
    status, _, err = index("add", folder, "--corpus", nameless, "--replace")
    assert status == 2
    assert "nameless.jsonl line 1: has no id in field 'id', so that it is not said which document" in err
    assert len(IndexStore.open(Path(folder))) == 87

    status, out, _ = index("search", folder, "apple pear plum", "--k", 2, "--label", "new")
    hits = [json.loads(line) for line in out.splitlines()]
    assert (status, [hit["id"] for hit in hits]) == (0, ["3-3"])
    assert hits[0]["metadata"] == {"by": "me"}
    assert (hits[0]["rank"], hits[0]["score"]) == (1, 1.0)
    out = index("search", folder, "apple pear plum", "--exclude", "3-3")[1]
    assert "3-3" not in [json.loads(line)["id"] for line in out.splitlines()]
    assert len(out.splitlines()) == 5

    assert index("verify", folder)[1].startswith("sound: ")
    assert "87 documents" in index("compact", folder)[1]
    info = json.loads(index("info", folder)[1])
    assert (info["documents"], info["deleted"], info["encoder"]["name"]) == (87, 0, tiny_bert)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("info", "nowhere"), "RetrievalError: 'nowhere' holds no index"),
        (("search", "nowhere"), "ConfigError: there is nothing to search for."),
        (("delete", "nowhere"), "ConfigError: there is nothing to delete."),
        (("delete", "nowhere", "--ids-from", "none.txt"), "DataError: none.txt: cannot be read (No such file"),
        (
            ("build", "kb", "--corpus", "x.jsonl", "--metric", "cos"),
            "ConfigError: metric must be one of cosine, ip, l2",
        ),
        (("build", "kb", "--corpus", "x.jsonl", "--shards", "3"), "ConfigError: unknown option '--shards'."),
        (
            ("build", "kb", "--corpus", "x", "--chunk-size", "9"),
            "ConfigError: --chunk-size says how to cut, but not where.",
        ),
    ],
)
def test_mistakes_are_one_line_with_status_2(index: Run, words: tuple[str, ...], message: str) -> None:
    status, out, err = index(*words)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_help_teaches_every_subcommand(index: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert index()[1].count("peft-rag index ") >= len(SUBCOMMANDS)
    for name in ("build", "add", "delete", "search", "info", "verify", "compact"):
        with pytest.raises(SystemExit) as exit_status:
            index(name, "--help")
        assert exit_status.value.code == 0
        assert f"  peft-rag index {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--chunk", "pages"), "documents are cut by tokens or by sentences, not by 'pages'"),
        (("--chunk", "tokens", "--chunk-size", 0), "a chunk must hold at least 1 token, not 0"),
        (("--chunk", "tokens", "--chunk-size", 63), "chunks of 63 tokens are more than the 62 that the encoder reads"),
        (("--chunk", "tokens", "--chunk-size", 8, "--chunk-overlap", 8), "can share 0 to 7 tokens, not 8"),
        (("--chunk", "sentences", "--chunk-overlap", -1), "chunks cannot share -1 sentences"),
    ],
)
def test_chunks_that_make_no_sense_are_refused_before_anything_is_written(
    index: Run, tiny_bert: str, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "apple pear"}])
    status, out, err = index("build", tmp_path / "kb", "--corpus", corpus, "--encoder", tiny_bert, *flags)
    assert (status, out) == (2, "")
    assert err.startswith("ConfigError: ")
    assert message in err
    assert not (tmp_path / "kb").exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "page#2", "document": "page", "start": 5, "end": 9}, "document 'page#2' is a chunk already. Cut the"),
        ({"id": "a", "start": "2020-01-01"}, "document 'a' has a field 'start', where its chunks say which text they"),
    ],
)
def test_what_cannot_be_cut_without_loss_is_refused(
    index: Run, tiny_bert: str, tmp_path: Path, record: dict[str, object], message: str
) -> None:
    corpus = write_jsonl(tmp_path / "pages.jsonl", [{"text": "apple pear", **record}])
    status, _, err = index(
        "build", str(tmp_path / "kb"), "--corpus", corpus, "--encoder", tiny_bert, "--chunk", "tokens"
    )
    assert status == 2
    assert f"CorpusError: {message}" in err


def test_a_document_called_as_a_chunk_is_never_taken_for_it(index: Run, tiny_bert: str, tmp_path: Path) -> None:
    def stored() -> list[str]:
        return [document.id for document in IndexStore.open(kb).documents()]

    kb, cut = tmp_path / "kb", ("--chunk", "tokens", "--chunk-size", 4, "--chunk-overlap", 0)
    page = {"id": "page", "text": "apple pear plum grape peach apple pear plum grape"}
    other = {"id": "page#2", "text": "iron zinc tin nickel silver"}
    both, one = write_jsonl(tmp_path / "both.jsonl", [page, other]), write_jsonl(tmp_path / "one.jsonl", [other])
    assert index("build", kb, "--corpus", both, *cut, "--encoder", tiny_bert)[0] == 0
    before = stored()
    assert {"page#2", "page#2#1"} < set(before)
    assert index("add", kb, "--corpus", one, *cut, "--replace")[0] == 0
    assert sorted(stored()) == sorted(before)
    assert "id 'page#2' is that of a chunk of 'page' in" in index("add", kb, "--corpus", one, "--replace")[2]
    assert "'page#2' is both a document in 2 chunks and a chunk of 'page'" in index("delete", kb, "page#2")[2]
    assert sorted(stored()) == sorted(before)
    assert index("delete", kb, "page#2#1", "page#2#2")[0] == 0
    assert index("add", kb, "--corpus", one, *cut)[0] == 0
    assert sorted(stored()) == sorted(before)


def test_a_text_in_chunks_is_not_replaced_by_one_that_is_whole(index: Run, tiny_bert: str, tmp_path: Path) -> None:
    kb, cut = tmp_path / "kb", ("--chunk", "tokens", "--chunk-size", 4, "--chunk-overlap", 0)
    corpus = write_jsonl(
        tmp_path / "a.jsonl", [{"id": "a", "text": "iron zinc tin nickel silver iron zinc tin nickel"}]
    )
    assert index("build", kb, "--corpus", corpus, *cut, "--encoder", tiny_bert)[0] == 0
    status, _, err = index("add", kb, "--corpus", corpus, "--replace")
    assert status == 2
    assert re.search(r"document 'a' lies in the index '.*kb' in \d chunks, and one vector of its beginning would", err)
    assert index("add", kb, "--corpus", corpus, *cut, "--replace")[0] == 0


def test_chunks_are_found_replaced_and_deleted_with_their_document(index: Run, tiny_bert: str, tmp_path: Path) -> None:
    def stored() -> list[str]:
        from peft_rag.retrieval.store import IndexStore

        return [document.id for document in IndexStore.open(tmp_path / "kb").documents()]

    def chunk(name: str, *records: dict[str, str]) -> tuple[object, ...]:
        corpus = write_jsonl(tmp_path / f"{name}.jsonl", records)
        return tmp_path / "kb", "--corpus", corpus, "--chunk", "tokens", "--chunk-size", 4, "--chunk-overlap", 1

    fruit, metal = "apple pear plum grape peach apple pear", "iron zinc tin nickel silver iron zinc tin nickel silver"
    first = chunk("first", {"id": "a", "text": fruit}, {"id": "b#1", "text": metal}, {"id": "c", "text": "nile"})
    assert index("build", *first, "--encoder", tiny_bert)[:2] == (0, f"built: 6 chunks in {tmp_path / 'kb'}\n")
    assert stored() == ["a#1", "a#2", "b#1#1", "b#1#2", "b#1#3", "c#1"]

    hit = json.loads(index("search", tmp_path / "kb", "iron zinc tin nickel", "--k", 1)[1])
    assert (hit["id"], hit["metadata"]["document"], hit["metadata"]["end"]) == ("b#1#1", "b#1", 20)

    shorter = chunk("shorter", {"id": "b#1", "text": "iron zinc"}, {"id": "a", "text": f"{fruit} {fruit}"})
    status, _, err = index("add", *shorter)
    assert status == 2
    assert "id 'a' is in the index" in err
    assert index("add", *shorter, "--replace")[1].startswith("added: 6 chunks, in place of 5; 7 in ")
    assert stored() == ["c#1", "b#1#1", "a#1", "a#2", "a#3", "a#4", "a#5"]

    whole = write_jsonl(tmp_path / "whole.jsonl", [{"id": "a", "text": fruit}])
    assert index("delete", tmp_path / "kb", "a#2")[1].startswith("deleted: 1 documents; 6 left")
    assert "id 'a' is in the index" in index("add", tmp_path / "kb", "--corpus", whole)[2]
    assert index("delete", tmp_path / "kb", "a", "c")[1].startswith("deleted: 2 documents in 5 pieces; 1 left")
    assert stored() == ["b#1#1"]
    assert "no document 'b' in the index" in index("delete", tmp_path / "kb", "b")[2]
    assert index("add", tmp_path / "kb", "--corpus", whole)[0] == 0
    assert index("add", *chunk("again", {"id": "a", "text": fruit}), "--replace")[1].startswith(
        "added: 2 chunks, in pl"
    )
    assert stored() == ["b#1#1", "a#1", "a#2"]
    assert index("verify", tmp_path / "kb")[0] == 0


def test_a_document_in_chunks_is_excluded_and_judged_by_its_own_id(index: Run, tiny_bert: str, tmp_path: Path) -> None:
    metal = "iron zinc tin nickel silver iron zinc tin nickel silver"
    corpus = write_jsonl(
        tmp_path / "corpus.jsonl", [{"id": "a", "text": metal}, {"id": "b", "text": "apple pear plum"}]
    )
    cut = ("--chunk", "tokens", "--chunk-size", 4, "--chunk-overlap", 1)
    assert index("build", tmp_path / "kb", "--corpus", corpus, *cut, "--encoder", tiny_bert)[0] == 0

    def found(*flags: str) -> set[str]:
        printed = index("search", tmp_path / "kb", "iron zinc tin", "--k", 9, *flags)[1]
        return {json.loads(line)["id"] for line in printed.splitlines()}

    assert found() == {"a#1", "a#2", "a#3", "b#1"}
    assert found("--exclude", "a") == {"b#1"}
    assert found("--exclude", "a#2") == {"a#1", "a#3", "b#1"}
    assert "no document 'c' in the index" in index("search", tmp_path / "kb", "iron", "--exclude", "c")[2]

    rows = [
        {"id": "q1", "text": "iron zinc tin", "answers": ["a"]},
        {"id": "q2", "text": "apple pear", "answers": ["b#1"]},
    ]
    asked = write_jsonl(tmp_path / "asked.jsonl", rows)
    scores = tmp_path / "scores.json"
    flags = ("--queries", asked, "--relevant-field", "answers", "--k", 4, "--output", scores)
    assert index("evaluate", tmp_path / "kb", *flags)[0] == 0
    measured = json.loads(scores.read_text())["scores"]
    assert (measured["recall@4"], measured["judged queries"]) == (1.0, 2)

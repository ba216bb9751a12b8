"""What goes wrong with an index on the command line: one line that says what, with which value, and what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_rag.cli import main
from peft_rag.errors import RetrievalError
from peft_rag.retrieval.manifest import explained_writes, unreadable
from peft_rag.retrieval.writing import writing
from tests.conftest import toy_records, write_jsonl

Fails = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: str) -> Path:
    """A folder with an index ``kb`` of 30 documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    write_jsonl(tmp_path / "docs.jsonl", toy_records(30, 1))
    assert main(["index", "build", "kb", "--corpus", "docs.jsonl", "--encoder", tiny_bert]) == 0
    return tmp_path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    def run(*words: object) -> str:
        capsys.readouterr()
        assert main(["index", *map(str, words)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n{"id": "a", "text": "z"}\n',
            "CorpusError: documents number 1 and 3 of those given have one id, 'a'. Make the ids unique, or name "
            "another field with --id-field.",
        ),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "  "}\n',
            "CorpusError: a.jsonl line 2: field 'text' is empty. Remove the record or give it a text.",
        ),
        (
            "a.jsonl",
            json.dumps({"id": "long", "text": "apple " * 1_700_000}),
            "CorpusError: document 'long': the text has 10,200,000 characters; an encoder reads a few thousand, and an "
            "index takes at most 1,000,000. Cut it into several documents of one group.",
        ),
        (
            "a.jsonl",
            '{"id": "new", "text": "x", "source": "\\ud800"}\n',
            "CorpusError: document 'new': holds half of a surrogate pair (\\ud800), which is no Unicode text. Repair "
            "or remove the document.",
        ),
        (
            "a.jsonl",
            '{"text": "caf\udce9"}\n',
            "DataError: a.jsonl line 1: byte 0xe9 (byte 14 of the line) is no UTF-8. Convert it with iconv: "
            "iconv -f WINDOWS-1252 -t UTF-8 a.jsonl > utf8.jsonl",
        ),
        (
            "a.csv",
            "text\nx\ny\0z\n",
            "DataError: a.csv line 3: a NUL byte at byte 2 of the line, so this is no text file or a damaged one. "
            "Remove it with: tr -d '\\000' < a.csv > clean.csv",
        ),
    ],
    ids=["duplicate-ids", "empty-text", "ten-megabytes", "surrogate-in-metadata", "not-utf-8", "nul"],
)
def test_corpus_that_cannot_be_stored_changes_nothing(
    here: Path, fails: Fails, name: str, content: str, message: str
) -> None:
    (here / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    held = sorted((path.name, path.read_bytes()) for path in (here / "kb").iterdir() if path.name != "lock")
    assert fails("add", "kb", "--corpus", name) == message
    assert sorted((path.name, path.read_bytes()) for path in (here / "kb").iterdir() if path.name != "lock") == held


def test_documents_without_ids_that_meet_others_are_told_what_they_lack(
    tmp_path: Path, fails: Fails, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"url": name, "text": "x"} for name in "abc"])
    assert main(["index", "build", "kb", "--corpus", "a.jsonl", "--encoder", tiny_bert]) == 0
    said = fails("add", "kb", "--corpus", "a.jsonl")
    assert said.startswith(
        "CorpusError: id '1' is in the index 'kb' already. Update documents with --replace, or give "
    )
    assert said.endswith(" A document without an id goes by its number; name the field of ids with --id_field.")
    assert main(["index", "add", "kb", "--corpus", "a.jsonl", "--id_field", "url"]) == 0


def test_more_neighbours_than_there_are_documents_are_all_of_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["index", "search", "kb", "apple", "--k", "99999999999"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    words = ["index", "evaluate", "kb", "--queries", "docs.jsonl", "--k", "99999999999", "--output", "out.json"]
    assert main(words) == 0
    assert json.loads((here / "out.json").read_text())["k"] == 30


def test_what_is_found_is_json_whatever_the_metadata(
    here: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "odd.jsonl").write_text('{"id": "odd", "text": "zinc", "price": NaN, "sizes": [1.5, Infinity]}\n')
    assert main(["index", "add", "kb", "--corpus", "odd.jsonl"]) == 0
    capsys.readouterr()
    assert main(["index", "search", "kb", "zinc", "--k", "40"]) == 0
    rows = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert {"price": None, "sizes": [1.5, None]} in [row["metadata"] for row in rows]
    assert fails("search", "kb", "caf\udce9").startswith("ConfigError: 'caf\\udce9' is not UTF-8.")


def test_ids_given_twice_in_two_shards_are_named_by_their_numbers(here: Path, fails: Fails, tiny_bert: str) -> None:
    write_jsonl(here / "a.jsonl", [{"id": name, "text": "x"} for name in "abcdb"])
    message = fails("build", "new", "--corpus", "a.jsonl", "--encoder", tiny_bert, "--shard-size", 2)
    assert message.startswith("CorpusError: documents number 2 and 5 of those given have one id, 'b'.")


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(here: Path, fails: Fails, k: int) -> None:
    write_jsonl(here / "q.jsonl", [{"text": "apple"}])
    assert fails("search", "kb", "apple", "--k", k) == f"ConfigError: k must be at least 1, but is {k}."
    assert (
        fails("evaluate", "kb", "--queries", "q.jsonl", "--k", k) == f"ConfigError: k must be at least 1, but is {k}."
    )


def test_queries_that_cannot_be_asked_are_refused(here: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = "ConfigError: there is nothing to search for. Give a text, or a file of texts with --queries."
    for content, message in (
        (b"", nothing),
        (b" \n\n", nothing),
        (b"fine\ncaf\xe9\n", "DataError: q.txt line 2: byte 0xe9 (byte 4 of the line) is no UTF-8."),
        (b"a\0b\n", "DataError: q.txt line 1: a NUL byte at byte 2 of the line"),
    ):
        (here / "q.txt").write_bytes(content)
        assert fails("search", "kb", "--queries", "q.txt").startswith(message)
    assert fails("search", "kb", "  ") == nothing
    assert fails("search", "kb", "apple", "--exclude", "a\udcff").startswith("ConfigError: 'a\\udcff' is not UTF-8.")
    assert fails("delete", "kb", "a\udcff").startswith("ConfigError: 'a\\udcff' is not UTF-8.")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xff\n"), errors="surrogateescape"))
    assert fails("search", "kb", "--queries", "-").startswith("DataError: standard input line 2: byte 0xff")
    (here / "q.jsonl").touch()
    assert fails("evaluate", "kb", "--queries", "q.jsonl").startswith("DataError: q.jsonl: the file is empty.")


def test_unknown_ids_are_named(here: Path, fails: Fails) -> None:
    assert fails("delete", "kb", "1-0", "nope", "never") == (
        "RetrievalError: no document 'nope' and 1 more in the index 'kb' (30 documents). Nothing was changed. "
        "Check the ids."
    )
    assert fails("search", "kb", "apple", "--exclude", "nope") == (
        "RetrievalError: no document 'nope' in the index 'kb' to exclude. Check the id."
    )


def test_wrong_judgements_and_recalls_are_named(here: Path, fails: Fails) -> None:
    write_jsonl(here / "q.jsonl", [{"id": "q", "text": "apple"}])
    (here / "j.qrels").write_text("q 0 1-0 1\nq 0 1-1\n")
    evaluate = ("evaluate", "kb", "--queries", "q.jsonl")
    assert fails(*evaluate, "--qrels", "j.qrels") == (
        "DataError: j.qrels line 2: 'q 0 1-1' is no judgement. Each line is: query-id 0 document-id grade."
    )
    assert fails(*evaluate, "--recall", 2) == "ConfigError: --recall is a share above 0 and at most 1, but is 2."
    assert fails(*evaluate, "--recall", 0.9) == (
        "RetrievalError: the index has no graph to choose ef for: below 10,000 documents it is searched exactly, and "
        "all are found. Build it with a smaller exact_below."
    )


def test_another_encoder_is_refused_by_dimension_and_by_weights(here: Path, fails: Fails, tiny_bert: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_bert)
    next(model.parameters()).data += 1
    model.save(str(here / "other"))
    message = fails("search", "kb", "apple", "--encoder", "other")
    assert message.startswith(f"FingerprintError: the index 'kb' was built with the encoder '{tiny_bert}' sha256:")
    assert message.endswith("Use that encoder, or build the index anew.")
    model.truncate_dim = 16
    model.save(str(here / "short"))
    message = fails("search", "kb", "apple", "--encoder", "short")
    assert message.startswith(
        "FingerprintError: the index 'kb' holds vectors of dimension 32, but the encoder 'short' "
    )


def test_folder_that_is_no_index_is_refused(here: Path, fails: Fails, tiny_bert: str) -> None:
    (here / "other").mkdir()
    (here / "other" / "notes.txt").touch()
    for command in (("info", "other"), ("search", "other", "x"), ("verify", "other"), ("compact", "other")):
        assert fails(*command) == (
            "RetrievalError: 'other' holds no index (no manifest.json). "
            "Make one with: peft-rag index build other --corpus …"
        )
    assert fails("info", "docs.jsonl") == (
        "RetrievalError: the index 'docs.jsonl' cannot be read (Not a directory). Name the folder of an index."
    )
    build = ("--corpus", "docs.jsonl", "--encoder", tiny_bert)
    assert fails("build", "other", *build) == (
        "RetrievalError: 'other' already holds other files (notes.txt). Name an empty or a new folder."
    )
    assert fails("build", "kb", *build).startswith("RetrievalError: 'kb' holds an index already. Add to it with:")
    assert fails("build", "docs.jsonl", *build) == (
        "RetrievalError: the index 'docs.jsonl' cannot be written (File exists). A file stands where a folder should "
        "be: name another folder, then run the same command again."
    )


def test_index_that_another_process_writes_is_read_but_not_written(here: Path, fails: Fails) -> None:
    with writing(Path("kb"), "compact"):
        for command in (
            ("add", "kb", "--corpus", "docs.jsonl", "--replace"),
            ("delete", "kb", "1-0"),
            ("compact", "kb"),
        ):
            message = fails(*command)
            assert message.startswith(f"RetrievalError: the index 'kb' is being written by process {os.getpid()} on ")
            assert message.endswith(
                "(compact). Wait until it has finished, then try again; reading and searching go on."
            )
        assert main(["index", "search", "kb", "apple"]) == 0


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "What it held before is intact. Let this user write there, or name another folder, then"),
        (errno.EROFS, "What it held before is intact. Let this user write there, or name another folder, then"),
        (errno.ENOSPC, "What it held before is intact. Free some space or choose another disk, then"),
        (errno.ENOTDIR, "A file stands where a folder should be: name another folder, then"),
    ],
)
def test_refusals_of_the_system_come_with_what_helps(number: int, advice: str) -> None:
    with pytest.raises(RetrievalError) as caught, explained_writes(Path("kb")):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"the index 'kb' cannot be written ({os.strerror(number)}). {advice}")
    with pytest.raises(RetrievalError, match=r"cannot be read \(Permission denied\)\. Let this user read it\.$"):
        raise unreadable(Path("kb"), PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no ulimit")
def test_no_room_is_one_line_and_the_index_stays(here: Path, tiny_bert: str) -> None:
    write_jsonl(here / "more.jsonl", toy_records(90, 2))
    command = f"ulimit -f 8; exec {sys.executable} -m peft_rag index add kb --corpus more.jsonl"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("RetrievalError: the index 'kb' cannot be written (")
    assert "What it held before is intact. Free some space" in done.stderr.splitlines()[-1]
    assert main(["index", "verify", "kb"]) == 0


def test_result_that_cannot_be_written_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(here / "q.jsonl", [{"text": "apple"}])
    words = ["index", "evaluate", "kb", "--queries", "q.jsonl", "--output", "docs.jsonl/out.json"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ConfigError: --output docs.jsonl/out.json cannot be written (File exists). Name a file in a folder of yours."
    )

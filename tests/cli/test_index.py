from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_rag.cli import main
from peft_rag.cli.index import SUBCOMMANDS
from tests.conftest import write_jsonl

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def index(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["index", *map(str, words)])
        output = capsys.readouterr()
        return status, output.out, output.err

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
    assert (status, out.splitlines()) == (0, [f"added: 30 documents, 0 of them in place of others; 90 in {folder}"])

    gone = tmp_path / "gone.txt"
    gone.write_text("3-1\n\n3-2\n")
    assert index("delete", folder, "3-0", "--ids-from", gone)[1] == f"deleted: 3 documents; 87 left in {folder}\n"

    update = write_jsonl(
        tmp_path / "update.jsonl", [{"id": "3-3", "text": "apple pear plum", "label": "new", "by": "me"}]
    )
    status, _, err = index("add", folder, "--corpus", update)
    assert status == 2
    assert err.splitlines()[-1].startswith("CorpusError: id '3-3' is in the index")
    assert "1 of them in place" in index("add", folder, "--corpus", update, "--replace")[1]

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

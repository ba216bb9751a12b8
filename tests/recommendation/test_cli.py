from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peft_rag.cli import main
from peft_rag.config import RunConfig
from peft_rag.recommendation.options import METHODS_TRIED, SearchOptions

Asked = list[tuple[RunConfig, SearchOptions]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the command asks for, in place of a search."""
    calls: Asked = []

    def note(config: RunConfig, options: SearchOptions, say: Callable[[str], None]) -> None:
        calls.append((config, options))

    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    monkeypatch.setattr("peft_rag.recommendation.recommend.recommend", note)
    return calls


def test_method_and_fusion_of_a_run_file_give_way_and_say_so(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("train: a.jsonl\nmethod: {name: lora, r: 4}\nfusion: knn\nmax_length: 48\noutput: runs/a\n")
    words = ["recommend", str(run_file), "--budget-minutes", "2", "--budget_bytes=500k", "--output", "runs/b"]
    assert main(words) == 0
    [(config, options)] = asked
    assert (config.max_length, config.output, config.options) == (48, "runs/b", {})
    assert options == SearchOptions(methods=METHODS_TRIED, budget_bytes=500_000, budget_minutes=2.0)
    assert "method, fusion give way to what the search chooses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "o"], "--train is missing"),
        (["--train", "a.jsonl"], "--output is missing"),
        (["--train", "a.jsonl", "--output", "o", "--methods", "lorra"], "Did you mean 'lora'?"),
        (["--train", "a.jsonl", "--output", "o", "--method", "lora"], "Name the methods to choose from with --methods"),
        (["--train", "a.jsonl", "--output", "o", "--budget-minuts", "3"], "unknown name 'budget_minuts'"),
        (["--train", "a.jsonl", "--output", "o", "--budget-bytes", "few"], "--budget-bytes is 'few', no size"),
    ],
)
def test_bad_words_are_one_line_with_status_2(
    asked: Asked, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert asked == []


def test_help_teaches_search_budgets_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recommend", "--help"])
    out = capsys.readouterr().out
    for word in ("--methods", "--budget-bytes", "--budget-minutes", "--train", "successive halving", "--resume"):
        assert word in out
    assert "--method VALUE" not in out

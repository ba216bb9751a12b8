"""The tables in the pages are the stored results, and the stored results are complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from benchmarks.markdown import stored
from benchmarks.retrieval import table as retrieval
from benchmarks.training import table as training
from benchmarks.training.data import load
from benchmarks.training.side import SIDES, Work, measure
from peft_rag.cli import INTERRUPTED

ROOT = Path(__file__).parents[1]
TABLE = runpy.run_path(str(ROOT / "benchmarks/table.py"))
RESULTS = TABLE["stored"]()


def test_interrupted_suite_ends_the_stored_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks/run.py"))
    statuses, asked = iter([2, 0, INTERRUPTED]), []

    def command(words: list[str]) -> int:
        asked.append((Path(words[1]).stem, *words[2:]))
        return next(statuses)

    monkeypatch.setitem(script["run"].__globals__, "main", command)
    assert script["run"](["sst2", "wnut17", "--dry-run"]) == 2
    assert asked == [("sst2", "--dry-run"), ("wnut17", "--dry-run")]
    assert script["run"]([]) == INTERRUPTED
    assert len(asked) == 3


def block(page: str, marker: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert found, f"{page} has no block {marker}"
    return found.group(1)


def test_readme_shows_the_stored_results_of_the_demo() -> None:
    assert block("README.md", "results:wiki-topics-lora") == TABLE["arms"](RESULTS["wiki-topics-lora"])


def test_benchmarks_page_shows_every_stored_result() -> None:
    assert block("benchmarks/README.md", "summary") == TABLE["summary"](RESULTS)


def test_benchmarks_page_shows_what_was_measured_of_the_retrieval_engine() -> None:
    measured = stored("retrieval")["100k"]
    assert (measured["documents"], measured["dimension"]) == (100_000, 384)
    assert block("benchmarks/README.md", "retrieval") == retrieval.markdown(measured)


@pytest.mark.parametrize(("marker", "name"), training.SHOWN.items())
def test_benchmarks_page_shows_what_was_measured_of_training(marker: str, name: str) -> None:
    assert block("benchmarks/README.md", marker) == training.markdown(stored("training")[name])


def test_training_table_compares_round_by_round_and_shows_the_range() -> None:
    def rounds(*rates: float, startup: float) -> list[dict[str, float]]:
        return [
            {"examples_per_second": rate, "startup": startup, "peak_memory_bytes": 2e9, "accuracy": 0.5}
            for rate in rates
        ]

    measured = {"bare": rounds(10.0, 20.0, 10.0, startup=4.0), "peft-rag": rounds(15.0, 20.0, 20.0, startup=4.5)}
    lines = training.markdown({"comparisons": [{"name": "texts", "measured": measured}]}).splitlines()
    assert lines[2] == ("| bare | 10.0 (10.0 to 20.0) |  | 2,000 MB |  | 4.0 s (4.0 to 4.0) |  | 50.0 (50.0 to 50.0) |")
    assert lines[3] == (
        "| peft-rag | 20.0 (15.0 to 20.0) | 1.50 (1.00 to 2.00) | 2,000 MB | 1.00 (1.00 to 1.00) "
        "| 4.5 s (4.5 to 4.5) | +0.5 (+0.5 to +0.5) | 50.0 (50.0 to 50.0) |"
    )


def test_training_tables_are_put_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    other = "<!-- training on an accelerator -->\nstays\n<!-- end -->\n"
    page.write_text(f"{other}<!-- training -->\nold\n<!-- end -->\nafter <!-- end -->\n", encoding="utf-8")
    result = stored("training")["default"]
    training.write(page, "training", result)
    shown = page.read_text(encoding="utf-8")
    assert shown == f"{other}<!-- training -->\n{training.markdown(result)}<!-- end -->\nafter <!-- end -->\n"


def test_texts_of_one_length_have_at_least_that_many_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from peft_rag.config import DEFAULT_MODEL
    from peft_rag.packaged import model_location

    data = load("wiki-topics", 40, 20, at_least=64)
    tokenizer = AutoTokenizer.from_pretrained(model_location(DEFAULT_MODEL))
    texts = [record.fields["text"] for record in (*data.train, *data.test)]
    assert all(len(ids) == 64 for ids in tokenizer(texts, truncation=True, max_length=64)["input_ids"])
    folder = data.write(tmp_path / "data")
    lengths = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.iterdir()}
    assert lengths == {"train": 40, "validation": 16, "test": 20}


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_sides_of_the_training_comparison_train_and_answer(side: str, tmp_path: Path) -> None:
    data = load("wiki-topics", 200, 12).write(tmp_path / "data")
    measured = measure(side, Work(str(data), 32, 2, 4, 1e-3, 0))
    assert 0 <= measured["accuracy"] <= 1
    assert measured["startup"] > 0
    assert measured["examples_per_second"] > 0
    assert measured["peak_memory_bytes"] > 10**8


@pytest.mark.parametrize("name", RESULTS)
def test_stored_result_names_what_made_it(name: str) -> None:
    metrics = RESULTS[name]
    assert metrics["config"]["method"] in name
    assert metrics["test_examples"] > 0
    assert metrics["versions"]["peft-rag"]
    assert {"untrained", "without_retrieval"} <= metrics["arms"].keys()
    assert "/" not in metrics["config"].get("output", "")

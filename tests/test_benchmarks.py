"""The tables in the pages are the stored results, and the stored results are complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from benchmarks.markdown import stored
from benchmarks.retrieval import table as retrieval
from benchmarks.training import table as training

ROOT = Path(__file__).parents[1]
TABLE = runpy.run_path(str(ROOT / "benchmarks/table.py"))
RESULTS = TABLE["stored"]()


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


@pytest.mark.parametrize("name", RESULTS)
def test_stored_result_names_what_made_it(name: str) -> None:
    metrics = RESULTS[name]
    assert metrics["config"]["method"] in name
    assert metrics["test_examples"] > 0
    assert metrics["versions"]["peft-rag"]
    assert {"untrained", "without_retrieval"} <= metrics["arms"].keys()
    assert "/" not in metrics["config"].get("output", "")

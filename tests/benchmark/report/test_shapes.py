"""Every fusion has a mark of its own and every method a colour, the same on the page and in the plots."""

from __future__ import annotations

import re

from peft_rag.benchmark.report.shapes import COLOURS, MARKERS, colours, shapes
from peft_rag.pages.document import static

FUSIONS = ["projector", "fid", "concat", "marginal", "none", "knn", "cross-attention"]


def test_fusions_are_told_apart_and_the_common_ones_look_the_same_everywhere() -> None:
    assert sorted(shapes(FUSIONS).values()) == list(range(len(MARKERS)))
    assert {name: shapes(FUSIONS)[name] for name in ("none", "knn", "concat")} == {"none": 0, "knn": 1, "concat": 2}
    assert shapes(["knn"]) == {"knn": 1}


def test_more_fusions_than_marks_share_the_last() -> None:
    assert set(shapes([*FUSIONS, "x", "y"]).values()) == set(range(len(MARKERS)))


def test_page_draws_as_many_marks_as_plots_have() -> None:
    package = "peft_rag.benchmark.report"
    paths = re.search(r"const PATHS = \[\n(.*?)\n  \];", static(package, "page.js"), re.DOTALL)
    assert paths is not None
    assert len(re.findall(r"^    \(r\) =>", paths[1], re.MULTILINE)) == len(MARKERS)
    drawn = {int(number) for number in re.findall(r"\.shape\.s(\d)", static(package, "page.css"))}
    assert drawn | {2} == set(range(len(MARKERS)))  # a square needs no style


def test_methods_are_told_apart_and_the_common_ones_look_the_same_everywhere() -> None:
    common = ["full", "ia3", "head", "lora", "bitfit", "adapter", "prompt-tuning", "retrieval alone"]
    alone = {name: colours([name])[name] for name in common}
    assert sorted(alone.values()) == list(range(8))
    assert colours([*common, "vera", "dora"]) == alone | {"dora": 8, "vera": 9}
    assert colours(["vera", "lora"]) == {"lora": 1, "vera": 0}


def test_more_methods_than_colours_share_those_that_no_common_one_has() -> None:
    many = [f"m{number}" for number in range(12)]
    assert set(colours(many).values()) == set(range(len(COLOURS)))
    assert list(colours(["head", *many]).values()).count(0) == 1


def test_page_has_as_many_colours_as_plots_have() -> None:
    drawn = {int(number) for number in re.findall(r"\.c(\d) \{", static("peft_rag.benchmark.report", "page.css"))}
    assert drawn == set(range(len(COLOURS)))

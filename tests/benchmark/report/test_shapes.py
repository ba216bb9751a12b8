"""Every fusion has a mark of its own, the same on the page and in the plots."""

from __future__ import annotations

import re

from peft_rag.benchmark.report.shapes import MARKERS, shapes
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

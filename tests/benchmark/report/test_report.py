import csv
import io
import re
import sys

import pytest

from peft_rag.benchmark.report import write
from peft_rag.benchmark.report.costs import pareto_front
from tests.benchmark.report.simulated import write_results

ABOUT = {"methods": ("head", "lora", "ia3"), "examples": 80, "failed": ("wiki-topics-ia3-concat-s1",)}
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_results(tmp_path_factory.mktemp("results"), **ABOUT)
    (folder / "suite.yaml").write_text("reference: {method: lora, fusion: none}\n")
    lines = []
    write(folder.parent, lines.append)
    return folder, lines


def test_a_report_is_written_beside_the_cells(report):
    folder, lines = report
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix not in (".json", ".yaml")}
    plots = {
        f"plots/{kind}-{name}-tiny.png" for kind in ("pareto", "intervals") for name in ("banking77", "wiki-topics")
    }
    assert made == {"report.md", "results.csv", "index.html", "plots", *plots}
    assert lines[-1] == f"report: {folder / 'index.html'}"
    for name in plots:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_tables_findings_and_failures(report):
    _, lines = report
    assert lines[0] == "note: Runs failed, 1: wiki-topics-ia3-concat-s1."
    assert "wiki-topics: in percent on 80 test examples, 3 seeds" in lines
    assert any(line.startswith("lora ") and "the reference" in line for line in lines)
    assert any(line.startswith("ia3 + concat") and line.endswith("2 of 3 seeds, 1 failed") for line in lines)
    assert any(line.startswith("Of 80 test examples, 2 stand word for word") for line in lines)
    assert any(line.startswith("Retrieval by knn ") for line in lines)
    assert "average ranks over 2 data sets:" in lines


def test_writing_twice_gives_the_same_files(report, tmp_path):
    folder, _ = report
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write(folder, lambda line: None)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_csv_has_a_row_for_each_cell_and_arm(report):
    folder, _ = report
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    cells = 2 * 3 * 2 * 3
    assert len(rows) == (cells // 2) * 7 + (cells // 2 - 1) * 8 + 1
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["arm"], row["accuracy"], row["error"][:11]) for row in failed] == [("", "", "MemoryError")]
    one = next(row for row in rows if (row["method"], row["fusion"], row["arm"]) == ("lora", "knn", "retrieved"))
    assert float(one["accuracy"]) == float(one["right"])
    assert one["trainable_parameters"] == "78000"


def test_markdown_tables_are_whole(report):
    folder, _ = report
    lines = (folder / "report.md").read_text().splitlines()
    widths = {}
    for number, line in enumerate(lines):
        if line.startswith("|"):
            widths.setdefault(next(k for k in range(number, -1, -1) if not lines[k].startswith("|")), set()).add(
                len(re.findall(r"(?<!\\)\|", line))
            )
    assert len(widths) == 2 * 4 + 2
    assert all(len(found) == 1 for found in widths.values())
    assert "## What the numbers mean" in lines


def test_no_name_can_become_markup(tmp_path):
    name = "topics-lora-knn-s0"
    key = {"dataset": EVIL, "shots": 0, "backbone": f"'\"{EVIL}", "method": EVIL, "fusion": "knn", "seed": 0}
    about = {"cell": key, "command": f"peft-rag {EVIL} '\"&", "machine": {"processor": EVIL}, "commit": EVIL}
    folder = write_results(
        tmp_path,
        datasets=("topics",),
        methods=("lora", "head"),
        fusions=("knn",),
        examples=30,
        failed=("topics-head-knn-s0",),
        changes={name: about, "topics-head-knn-s0": {"error": EVIL}},
    )
    write(folder, lambda line: None)
    html = (folder / "index.html").read_text()
    assert EVIL not in html
    assert "alert(1)&lt;/script&gt;" in html
    assert html.count("<script") == html.count("</script>") == 2
    assert EVIL not in (folder / "report.md").read_text()


def test_the_page_names_nothing_outside_itself(report):
    folder, _ = report
    html = (folder / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!#)[^"]*', html) == []
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html or "default-src &#x27;none&#x27;" in html


def test_without_matplotlib_all_but_plots_is_written(tmp_path, monkeypatch):
    folder = write_results(tmp_path, datasets=("topics",), methods=("head",), fusions=("knn",), examples=30)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lines = []
    write(folder, lines.append)
    assert [line for line in lines if "pip install 'peft-rag[bench]'" in line]
    assert (folder / "index.html").is_file()
    assert not (folder / "plots").exists()


def test_pareto_front_equals_comparing_all_pairs():
    import random

    draw = random.Random(0)
    points = {str(name): (draw.randint(0, 9), draw.randint(0, 9)) for name in range(60)}
    beaten = {
        name
        for name, (cost, quality) in points.items()
        for other, (less, more) in points.items()
        if other != name and less <= cost and more >= quality and (less, more) != (cost, quality)
    }
    assert set(pareto_front(points)) == points.keys() - beaten

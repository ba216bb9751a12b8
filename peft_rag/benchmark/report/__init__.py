"""What the cells of a benchmark say together: tables, plots and a page beside the files of the cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_rag.benchmark.report.analysis import Table

__all__ = ["write"]

_MISSING_PLOTS = "no plots: matplotlib is not installed. pip install 'peft-rag[bench]', and write the report again."


def write(results_folder: Path, say: Callable[[str], None]) -> None:
    """Write ``report.md``, ``results.csv``, ``index.html`` and ``plots/*.png`` beside the cells of each suite.

    Args:
        results_folder: holds the files of cells, or a folder of them for each suite.
        say: takes each line of the terminal's tables.

    Raises:
        ArtefactError: there are no results, or a file cannot be read or does not belong to the others.
    """
    from peft_rag.benchmark.report.analysis import analyse
    from peft_rag.benchmark.report.markdown import markdown
    from peft_rag.benchmark.report.page import page
    from peft_rag.benchmark.report.results import read_results
    from peft_rag.benchmark.report.terminal import terminal_lines
    from peft_rag.benchmark.report.tidy import tidy_csv
    from peft_rag.files import write_text

    for results in read_results(results_folder):
        tables = analyse(results, _reference(results.folder))
        write_text(results.folder / "report.md", markdown(results, tables))
        write_text(results.folder / "results.csv", tidy_csv(results))
        write_text(results.folder / "index.html", page(results, tables))
        for line in terminal_lines(results, tables):
            say(line)
        _write_plots(results.folder / "plots", tables, say)
        say(f"report: {results.folder / 'index.html'}")


def _write_plots(folder: Path, tables: list[Table], say: Callable[[str], None]) -> None:
    from peft_rag.benchmark.report.plots import plots
    from peft_rag.files import write_bytes

    try:
        for name, image in plots(tables):
            write_bytes(folder / name, image)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        say(_MISSING_PLOTS)


def _reference(folder: Path) -> Mapping[str, str]:
    """Return the reference row that the suite names, where its file lies beside the results."""
    from peft_rag.config import read_yaml

    path = folder / "suite.yaml"
    named = read_yaml(path).get("reference") if path.is_file() else None
    return named if isinstance(named, Mapping) else {}

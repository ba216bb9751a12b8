"""Which fusion works on which backbone and under which method, found by checking each: ``docs/fusions.md`` holds it.

``python -m peft_rag.testing.fusion_table`` prints the tables, ``… docs/fusions.md`` writes them between the marks of a
page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from peft_rag.errors import PeftRagError
from peft_rag.files import write_text
from peft_rag.registry import FUSIONS, names
from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.fusions import check_fusion

BACKBONES = ("bert", "roberta", "distilbert", "gpt2", "llama", "gemma3", "t5", "encoder_decoder")
WRITERS = ("gpt2", "llama", "gemma3", "t5", "bart", "encoder_decoder")
METHODS = ("head", "lora", "adapter", "bitfit", "prompt-tuning", "ia3", "full")
WRITING = "fusion, under LoRA, where a text is written"
WORKS, FAILS = "yes", "no"
BEGIN, END = "<!-- fusions -->", "<!-- end -->"


def works(fusion: str, backbone: str, method: str, *, writes: bool = False) -> bool:
    """Say whether a fusion conforms on a tiny backbone of that family, under a method."""
    try:
        check_fusion(fusion, TINY_BACKBONES[backbone], method, writes=writes)
    except PeftRagError:
        return False
    return True


def tables() -> str:
    """Check every fusion on every backbone under LoRA, and on BERT under every method; three Markdown tables."""
    fusions = names(FUSIONS)
    on_backbones = [[works(fusion, backbone, "lora") for backbone in BACKBONES] for fusion in fusions]
    writing = [[works(fusion, backbone, "lora", writes=True) for backbone in WRITERS] for fusion in fusions]
    under_methods = [[works(fusion, "bert", method) for method in METHODS] for fusion in fusions]
    return "\n\n".join(
        [
            _table("fusion, under LoRA", BACKBONES, fusions, on_backbones),
            _table(WRITING, WRITERS, fusions, writing),
            _table("fusion, on BERT", METHODS, fusions, under_methods),
        ]
    )


def stored(page: str) -> dict[tuple[str, str], bool]:
    """Read the tables of a page: whether a fusion works, by its name and a backbone's or a method's.

    A backbone that writes is told from the same one that judges: ``gpt2 writes``.
    """
    cells: dict[tuple[str, str], bool] = {}
    head: list[str] = []
    for line in _between(page).splitlines():
        row = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if row[0].startswith("fusion,"):
            head = [f"{column} writes" if row[0] == WRITING else column for column in row[1:]]
        elif line.startswith("|") and not line.startswith("| ---"):
            cells |= {(row[0], column): cell == WORKS for column, cell in zip(head, row[1:], strict=True)}
    return cells


def with_tables(page: str, tables: str) -> str:
    """Return a page with tables between its marks, in place of what stood there."""
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    return f"{before}\n{tables}\n{after}"


def _table(corner: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[bool]]) -> str:
    lines = [f"| {' | '.join([corner, *columns])} |", f"| {' | '.join(['---'] * (len(columns) + 1))} |"]
    for row, found in zip(rows, cells, strict=True):
        lines.append(f"| {' | '.join([f'`{row}`', *(WORKS if one else FAILS for one in found)])} |")
    return "\n".join(lines)


def _between(page: str) -> str:
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


if __name__ == "__main__":
    found = tables()
    if len(sys.argv) > 1:
        place = Path(sys.argv[1])
        page = place.read_text(encoding="utf-8")
        write_text(place, with_tables(page, found))
    else:
        print(found)

"""A corpus of any format is read a few records at a time."""

import csv
import json
import random
import tracemalloc

import pytest

from peft_rag.errors import DataError
from peft_rag.retrieval.streaming import stream_documents

ROWS, CHARACTERS = 10_000, 3_000
MOST = 12 << 20


def rows():
    draw = random.Random(0)
    return ({"id": f"d{row}", "text": draw.randbytes(CHARACTERS // 2).hex()} for row in range(ROWS))


def write_lines(path):
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())


def write_columns(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows())


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows())), path)


def write_saved(path):
    import datasets

    datasets.Dataset.from_list(list(rows())).save_to_disk(path)


SOURCES = {
    "lines.jsonl": write_lines,
    "lines.json": write_lines,
    "columns.csv": write_columns,
    "columns.tsv": write_columns,
    "rows.parquet": write_parquet,
    "saved": write_saved,
}


@pytest.mark.parametrize("name", SOURCES)
def test_corpus_of_thirty_megabytes_is_streamed_in_less_than_twelve(name, tmp_path):
    import pyarrow

    SOURCES[name](tmp_path / name)
    pool, arrow = pyarrow.default_memory_pool(), 0
    before = pool.bytes_allocated()
    tracemalloc.start()
    for number, document in enumerate(stream_documents(tmp_path / name)):
        assert document.id == f"d{number}"
        assert len(document.text) == CHARACTERS
        arrow = max(arrow, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == ROWS - 1
    assert peak + arrow < MOST


def test_bad_line_is_met_when_its_turn_comes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\nfine\nb\xe9d\n")
    documents = stream_documents(path)
    assert next(documents).text == "fine"
    with pytest.raises(DataError, match=r"a\.csv line 3: byte 0xe9 \(byte 2 of the line\) is no UTF-8"):
        next(documents)

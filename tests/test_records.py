import csv
import json
import os
import random
import re

import pytest

from peft_rag.errors import DataError
from peft_rag.records import Labels, Record, iter_records, label_field, read_records, text_field

EXAMPLE = '{"text": "…", "label": "…"}'
ROWS = [{"text": "größer", "label": "a"}, {"text": "two\nlines", "label": "b"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def failure(source):
    with pytest.raises(DataError) as caught:
        read_records(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fields(source):
    return [dict(record.fields) for record in read_records(source)]


def test_json_lines_are_read_with_their_line_numbers_when_blank_lines_stand_between(here):
    write(here / "a.jsonl", "\n".join([json.dumps(ROWS[0]), "", "  ", json.dumps(ROWS[1]), ""]))
    records = read_records("a.jsonl")
    assert [dict(record.fields) for record in records] == ROWS
    assert [record.where for record in records] == ["a.jsonl line 1", "a.jsonl line 4"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_lines_are_read_whatever_the_line_ending_and_with_a_byte_order_mark(here, ending, mark):
    content = mark + ending.join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    assert fields(write(here / "a.jsonl", content)) == ROWS


def test_json_lines_keep_a_unicode_line_separator_inside_a_text(here):
    write(here / "a.jsonl", '{"text": "one\u2028two\x85three"}\n')
    assert fields("a.jsonl") == [{"text": "one\u2028two\x85three"}]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [("[:2]", [0, 1]), ("[1:3]", [1, 2]), ("[3:]", [3, 4]), ("[:]", [0, 1, 2, 3, 4]), ("[4:9]", [4])],
)
def test_slice_behind_a_source_takes_some_of_its_records_with_their_own_lines(here, wanted, kept):
    (here / "five.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(5)))
    records = read_records(f"five.jsonl{wanted}")
    assert [int(record.fields["text"]) for record in records] == kept
    assert [record.line for record in records] == [number + 1 for number in kept]


def test_slice_of_nothing_is_refused(here):
    (here / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"one\.jsonl\[1:\]: holds no records"):
        read_records("one.jsonl[1:]")


def test_json_file_may_hold_one_array_or_an_object_a_line(here):
    write(here / "array.json", json.dumps(ROWS, indent=2))
    write(here / "lines.json", "\n".join(map(json.dumps, ROWS)))
    assert fields("array.json") == fields("lines.json") == ROWS
    assert read_records("array.json")[1].where == "array.json row 2"


def test_csv_rows_know_the_line_on_which_they_begin_when_quoted_fields_span_lines(here):
    write(here / "a.csv", 'text,label\r\n"two\r\nlines, and ""more""",x\r\n\r\nplain,y\r\n')
    records = read_records("a.csv")
    assert [dict(record.fields) for record in records] == [
        {"text": 'two\r\nlines, and "more"', "label": "x"},
        {"text": "plain", "label": "y"},
    ]
    assert [record.line for record in records] == [2, 5]


def test_tsv_is_read_with_tabs_and_a_byte_order_mark(here):
    write(here / "a.tsv", b"\xef\xbb\xbftext\tlabel\nwell, yes\tb\n")
    assert fields("a.tsv") == [{"text": "well, yes", "label": "b"}]


def test_csv_takes_a_field_larger_than_the_readers_default_limit(here):
    write(here / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(fields("a.csv")[0]["text"]) == 200_000


def test_csv_reading_leaves_the_limit_that_all_readers_share_as_it_was(here):
    write(here / "a.csv", "text\n" + "x" * 200_000 + "\ny\n")
    before = csv.field_size_limit()
    records = iter_records("a.csv")
    next(records)
    assert csv.field_size_limit() == before


def test_csv_lines_may_end_in_carriage_returns_alone(here):
    write(here / "a.csv", b'text,label\r"two\rlines",x\ry,z\r')
    assert fields("a.csv") == [{"text": "two\rlines", "label": "x"}, {"text": "y", "label": "z"}]
    assert [record.line for record in read_records("a.csv")] == [2, 4]


def test_parquet_rows_are_read(here):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), here / "a.parquet")
    records = read_records(here / "a.parquet")
    assert [dict(record.fields) for record in records] == ROWS
    assert records[1].where == "a.parquet row 2"


def test_list_of_dicts_and_dataset_in_memory_are_read():
    import datasets

    assert fields(ROWS) == fields(datasets.Dataset.from_list(ROWS)) == ROWS
    assert read_records(ROWS)[1].where == "the data given row 2"


def test_saved_dataset_is_read_with_class_names_in_place_of_numbers(here):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["p", "q"])),
        }
    )
    rows = [{"text": "t", "label": 1, "tags": [1, 0]}, {"text": "u", "label": -1, "tags": []}]
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk("alone")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk("parts")
    named = [{"text": "t", "label": "yes", "tags": ["q", "p"]}, {"text": "u", "label": None, "tags": []}]
    assert fields("alone") == fields("parts") == fields("parts:train") == named
    assert fields("parts:test") == named[:1]
    assert failure("parts:dev") == "parts:dev: no split 'dev' (found: train, test). Name one as FOLDER:SPLIT."


def test_missing_file_suggests_the_nearest_name(here):
    write(here / "train.jsonl", "{}")
    assert failure("trian.jsonl") == (f"trian.jsonl: no such file in '{here}'. Did you mean 'train.jsonl'?")
    assert failure("far/away.csv") == "far/away.csv: no such file, and no folder 'far' either. Check the path."
    (here / "data").mkdir()
    assert failure("data/train") == (f"data/train: no such file in '{here}/data'. Give the path of a file that exists.")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_empty_file_is_refused(here, suffix):
    write(here / f"a.{suffix}", b"")
    assert failure(f"a.{suffix}") == f"a.{suffix}: the file is empty. Give one with at least one record."


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b"\n \n"), ("a.jsonl", b"\xef\xbb\xbf"), ("a.json", b"[]"), ("a.csv", b"text,label\n")],
)
def test_file_without_records_is_refused(here, name, content):
    write(here / name, content)
    assert failure(name) == f"{name}: holds no records. Give a file with at least one."


def test_line_that_is_not_json_is_named_with_its_column(here):
    write(here / "a.jsonl", '{"text": "a"}\n{"text": "b",}\n')
    message = failure("a.jsonl")
    assert re.fullmatch(
        r"a\.jsonl line 2: not JSON at column \d+ \(.+\)\. "
        + re.escape(f"Each line must be one JSON object such as {EXAMPLE}."),
        message,
    )


@pytest.mark.parametrize(("line", "kind"), [("[1]", "a list"), ("3", "the int 3"), ('"x"', "text"), ("null", "null")])
def test_line_that_is_no_object_is_refused(here, line, kind):
    write(here / "a.jsonl", f'{{"text": "a"}}\n{line}\n')
    assert failure("a.jsonl") == (
        f"a.jsonl line 2: holds {kind}, not an object. Each line must be one such as {EXAMPLE}."
    )


def test_line_nested_too_deeply_is_refused(here):
    write(here / "a.jsonl", '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    assert failure("a.jsonl").startswith("a.jsonl line 1: cannot be read as JSON (")


def test_number_too_long_to_read_is_refused(here):
    write(here / "a.jsonl", '{"label": ' + "9" * 5000 + "}\n")
    assert failure("a.jsonl").startswith("a.jsonl line 1: cannot be read as JSON (")


def test_array_element_that_is_no_object_and_broken_array_are_refused(here):
    write(here / "a.json", '[{"text": "a"}, 3]')
    assert failure("a.json") == f"a.json row 2: holds the int 3, not an object such as {EXAMPLE}."
    write(here / "b.json", '[{"text": "a"},\n')
    assert failure("b.json").startswith("b.json line 2: not JSON at column 1 (")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_wrong_encoding_is_named_with_line_and_byte(here, mark):
    write(here / "a.csv", mark + b"text,label\ngood,x\ncaf\xe9,y\n")
    assert failure("a.csv") == (
        "a.csv line 3: byte 0xe9 (byte 4 of the line) is no UTF-8. "
        "Convert it with iconv: iconv -f WINDOWS-1252 -t UTF-8 a.csv > utf8.csv"
    )


def test_utf_16_and_nul_bytes_are_refused(here):
    write(here / "a.jsonl", '{"text": "a"}\n'.encode("utf-16"))
    assert failure("a.jsonl") == (
        "a.jsonl line 1: this is UTF-16, not UTF-8. "
        "Convert it with iconv: iconv -f UTF-16 -t UTF-8 a.jsonl > utf8.jsonl"
    )
    write(here / "b.csv", b"text\nok\nn\0o\n")
    assert failure("b.csv") == (
        "b.csv line 3: a NUL byte at byte 2 of the line, so this is no text file or a damaged one. "
        "Remove it with: tr -d '\\000' < b.csv > clean.csv"
    )


@pytest.mark.parametrize(("row", "count"), [("a,b,c", 3), ("a", 1)])
def test_csv_row_with_wrong_number_of_columns_is_refused(here, row, count):
    write(here / "a.csv", f"text,label\n\nx,y\n{row}\n")
    assert failure("a.csv") == (
        f"a.csv line 4: {count} columns, but the header has 2 (text, label). "
        "Put quotes around a field that holds a comma."
    )


def test_csv_with_an_open_quote_or_a_column_twice_is_refused(here):
    write(here / "a.csv", 'text,label\nx,y\n"open,y\nz,y\n')
    assert failure("a.csv") == (
        "a.csv line 3: not CSV (unexpected end of data). Close the quote that begins here, "
        'and write a quote inside a quoted field as "".'
    )
    write(here / "b.csv", "text,label,text\nx,y,z\n")
    assert failure("b.csv") == "b.csv line 1: column 'text' stands there twice. Rename one of them."


def test_broken_parquet_is_refused(here):
    write(here / "a.parquet", b"PAR1 and nothing good")
    message = failure("a.parquet")
    assert message.startswith("a.parquet: not a Parquet file, or a damaged one (ArrowInvalid: ")
    assert message.endswith("). Write it anew.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(here):
    write(here / "a.jsonl", "{}").chmod(0)
    assert failure("a.jsonl") == "a.jsonl: cannot be read (Permission denied). Check the file."


def test_folder_or_file_of_another_kind_is_refused(here):
    (here / "folder").mkdir()
    assert failure("folder") == "folder: a folder, but none that datasets.save_to_disk wrote. Name a file."
    write(here / "folder" / "a.csv", "text\nx\n")
    assert failure("folder").endswith("wrote. Name a file in it, e.g. folder/a.csv.")
    write(here / "a.xlsx", "x")
    assert failure("a.xlsx") == (
        "a.xlsx: unknown kind of file '.xlsx'. Use one of .jsonl, .json, .csv, .tsv, .parquet."
    )


def test_saved_dataset_that_is_damaged_is_refused(here):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    write(here / "saved" / "state.json", "{")
    assert failure("saved").startswith("saved: the saved data set is damaged (")


def test_data_in_memory_of_another_kind_or_empty_is_refused():
    assert failure(3) == "data in memory must be a datasets.Dataset or a list of dicts, not a int."
    assert failure([1]) == "data in memory must be a datasets.Dataset or a list of dicts, not a list."
    assert failure([]) == "the data given: holds no records. Give a file with at least one."


def test_hub_data_set_without_a_network_is_refused_at_once(here, monkeypatch):
    monkeypatch.setattr("peft_rag.records.hub_forbidden", lambda: False)
    monkeypatch.setattr("peft_rag.records.hub_reachable", lambda: False)
    assert failure("owner/name:dev") == (
        "owner/name:dev: no such file here, and no hub to ask for a data set of that name (no network). "
        "Name a local file, or set HF_HUB_OFFLINE=1 to use a data set downloaded before."
    )


def test_hub_data_set_is_loaded_by_name_and_split(here, monkeypatch):
    import datasets

    asked = []

    def load(name, split):
        asked.append((name, split))
        if name == "owner/none":
            raise FileNotFoundError("no such\nset")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("peft_rag.records.hub_reachable", lambda: True)
    assert fields("owner/name") == fields("owner/name:dev") == ROWS
    assert asked == [("owner/name", "train"), ("owner/name", "dev")]
    assert failure("owner/none") == (
        "owner/none: neither a file here nor a data set that could be loaded from the hub, split 'train' "
        "(FileNotFoundError: no such). Check the name and the network, or name a local file."
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_damaged_file_is_read_or_refused_in_one_line(here, name):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 5), here / "a.parquet")
    write(here / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    write(here / "a.json", json.dumps(ROWS))
    write(here / "a.csv", 'text,label\n"a ""b"" c",x\nd,y\n')
    write(here / "a.tsv", "text\tlabel\na\tx\nd\ty\n")
    intact, chance = (here / name).read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(intact[: chance.choice([len(intact), chance.randrange(len(intact))])])
        for _ in range(min(len(damaged), chance.randrange(4))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        write(here / name, bytes(damaged))
        try:
            read_records(name)
        except DataError as error:
            assert re.fullmatch(rf"{name}[ :][^\n]+", str(error))  # noqa: PT017 - some damage does no harm


def record(**values):
    return Record(values, "data/train.jsonl", 4112)


@pytest.mark.parametrize(
    ("suffix", "mark", "wanted"), [("csv", ";", "commas"), ("csv", "\t", "commas"), ("tsv", "|", "tabs")]
)
def test_a_table_of_one_column_may_be_separated_by_something_else(here, suffix, mark, wanted):
    write(here / f"a.{suffix}", f"text{mark}label\na{mark}b\n".encode())
    with pytest.raises(DataError) as caught:
        text_field(read_records(f"a.{suffix}")[0], "text", "--text_field")
    assert f"Its columns seem to be separated by {mark!r}, but here {wanted} do that: convert it. " in str(caught.value)


def test_text_field_returns_the_text():
    assert text_field(record(text=" a "), "text", "--text_field") == " a "


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"id": 1, "body": "long text"},
            "field 'text' is missing (found: body, id). Name the field with --text_field body.",
        ),
        (
            {"headline": "some", "story": "the longest one"},
            "field 'text' is missing (found: headline, story). Name the field with --text_field story.",
        ),
        (
            {"id": 1},
            "field 'text' is missing (found: id). Name the field with --text_field NAME.",
        ),
        (
            {" text": "some", "a;b": "x"},
            "field 'text' is missing (found: ' text', 'a;b'). Name the field with --text_field ' text'.",
        ),
        ({}, "field 'text' is missing (found: no field at all). Name the field with --text_field NAME."),
        ({"text": None}, "field 'text' is null. Remove the record or give it a value."),
        ({"text": " \n"}, "field 'text' is empty. Remove the record or give it a text."),
        (
            {"text": ["a"]},
            "field 'text' holds a list, not text. Name a field that holds text with --text_field.",
        ),
        (
            {"text": "ab\ud800"},
            "field 'text' holds half of a surrogate pair (\\ud800) at character 3, which is no Unicode text. "
            "Repair or remove the record.",
        ),
    ],
)
def test_text_field_that_cannot_be_used_is_named(values, message):
    with pytest.raises(DataError) as caught:
        text_field(record(**values), "text", "--text_field")
    assert str(caught.value) == f"train.jsonl line 4,112: {message}"


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("x", Labels(("x",), is_list=False)),
        (0, Labels(("0",), is_list=False)),
        (False, Labels(("false",), is_list=False)),
        (["x", 1, True, "x"], Labels(("x", "1", "true"), is_list=True)),
    ],
)
def test_label_field_returns_labels_as_text(value, labels):
    assert label_field(record(label=value), "label", "--label_field") == labels


def test_label_field_takes_an_empty_list_only_when_told():
    empty = record(label=[])
    assert label_field(empty, "label", "--label_field", allow_empty_list=True) == Labels((), is_list=True)
    with pytest.raises(DataError, match=r"field 'label' is an empty list\."):
        label_field(empty, "label", "--label_field")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"text": "some", "intent": "x"},
            "field 'label' is missing (found: intent, text). Name the field with --label_field intent.",
        ),
        (
            {"text": "some", "verdict": "x"},
            "field 'label' is missing (found: text, verdict). Name the field with --label_field verdict.",
        ),
        ({"label": None}, "field 'label' is null. Remove the record or give it a value."),
        ({"label": " "}, "field 'label' is empty. Remove the record or give it a label."),
        ({"label": ["x", ""]}, "field 'label' is empty. Remove the record or give it a label."),
        (
            {"label": 1.5},
            "field 'label' holds the float 1.5. A label is text, a whole number, true or false.",
        ),
        (
            {"label": [["x"]]},
            "field 'label' holds a list. A label is text, a whole number, true or false.",
        ),
        (
            {"label": [None]},
            "field 'label' holds null. A label is text, a whole number, true or false.",
        ),
    ],
)
def test_label_field_that_cannot_be_used_is_named(values, message):
    with pytest.raises(DataError) as caught:
        label_field(record(**values), "label", "--label_field")
    assert str(caught.value) == f"train.jsonl line 4,112: {message}"

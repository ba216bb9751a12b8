"""Records: rows of any user's data, each knowing the file and the line it came from.

A source is a JSON Lines, CSV, TSV or Parquet file, a folder written by ``datasets.save_to_disk``,
``demo:NAME/SPLIT``, a data set of the Hugging Face hub, or data in memory. Whatever is wrong with it is one
`DataError` of one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import DataError
from peft_rag.hub import hub_forbidden, hub_reachable
from peft_rag.refusals import Refuse
from peft_rag.registry import suggest
from peft_rag.slices import split_slice
from peft_rag.text_files import kind_of, read_rows

if TYPE_CHECKING:
    from typing import TypeAlias

    Source: TypeAlias = "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Any"

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_BUFFER, _BATCH = 1 << 20, 256
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[^:]+))?")
_TEXT_NAMES = ("text", "sentence", "body", "content", "question", "utterance", "review", "document", "extract")
_LABEL_NAMES = ("label", "labels", "class", "category", "intent", "topic", "target", "answer")


@dataclass(frozen=True)
class Record:
    """One row of data and where it stands.

    Attributes:
        fields: the row's values by field name.
        source: the file or data set, as the user named it.
        line: 1-based line of the file on which the row begins, or number of the row.
        unit: what ``line`` counts, ``line`` or ``row``.

    >>> Record({}, "data/train.jsonl", 4112).where
    'train.jsonl line 4,112'
    """

    fields: Mapping[str, Any]
    source: str
    line: int
    unit: str = "line"

    @property
    def where(self) -> str:
        """The place as messages name it: base name of the source, and line or row."""
        return f"{short_name(self.source)} {self.unit} {self.line:,}"


@dataclass(frozen=True)
class Labels:
    """The labels of one record.

    Attributes:
        values: the labels as text, each once, in the order given.
        is_list: whether the field held a list, which makes the data multi-label.
    """

    values: tuple[str, ...]
    is_list: bool


def short_name(source: str) -> str:
    """Return the base name of a file, and the name of anything else as it is.

    >>> short_name("data/train.csv"), short_name("demo:wiki-topics/test")
    ('train.csv', 'demo:wiki-topics/test')
    """
    return Path(source).name if source.lower().endswith(SUFFIXES) else source


def read_records(source: Source) -> list[Record]:
    """Read every record of a source, in its order.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; a folder of
            ``datasets.save_to_disk`` (``folder:split`` if it holds splits); ``demo:NAME/SPLIT``; a hub data
            set ``owner/name[:split]`` (split ``train`` if none is named), each with ``[first:last]`` behind it for
            some of its records; a ``datasets.Dataset``; or a sequence of mappings.

    Raises:
        DataError: the source cannot be found or read, or holds no record.
    """
    return list(iter_records(source))


def iter_records(source: Source, refuse: Refuse | None = None) -> Iterator[Record]:
    """Yield the records of a source in their order, as `read_records` does, holding a few at a time.

    All are streamed but an array in a ``.json`` file, which is read whole first.

    Args:
        source: as `read_records` takes it.
        refuse: told of a line that is no record, in place of an error, and of nothing where a source has none at all.

    Raises:
        DataError: the source cannot be found or read, or holds no record.
    """
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    try:
        named, wanted = split_slice(name or "")
        records = islice(_in_memory(source) if name is None else _read_named(named, refuse), wanted.start, wanted.stop)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}). Check the path.") from None
    found = False
    for record in records:
        found = True
        yield record
    if not (found or refuse):
        raise DataError(f"{short_name(name or 'the data given')}: holds no records. Give a file with at least one.")


def text_field(record: Record, name: str, flag: str) -> str:
    """Return a record's text.

    Args:
        record: the record.
        name: the field's name.
        flag: the option by which a user names the field, e.g. ``--text_field``.

    Raises:
        DataError: the field is missing, no string, empty, or holds half of a surrogate pair.
    """
    value = _field(record, name, flag, lambda: _likely_text(record))
    if not isinstance(value, str):
        raise DataError(
            f"{record.where}: field '{name}' holds {kind_of(value)}, not text. "
            f"Name a field that holds text with {flag}."
        )
    if not value.strip():
        raise DataError(f"{record.where}: field '{name}' is empty. Remove the record or give it a text.")
    return _well_formed(record, name, value)


def label_field(record: Record, name: str, flag: str, *, allow_empty_list: bool = False) -> Labels:
    """Return a record's label or labels as text: whole numbers by their digits, truth values as ``true``,
    ``false``.

    Args:
        record: the record.
        name: the field's name.
        flag: the option by which a user names the field, e.g. ``--label_field``.
        allow_empty_list: whether ``[]`` is a record that carries none of the labels, not a mistake.

    Raises:
        DataError: the field is missing, null or empty, or holds something that is no label.
    """
    value = _field(record, name, flag, lambda: _likely_label(record))
    if not isinstance(value, (list, tuple)):
        return Labels((_label(record, name, value),), is_list=False)
    if not value and not allow_empty_list:
        raise DataError(f"{record.where}: field '{name}' is an empty list. Remove the record or give it a label.")
    return Labels(tuple(dict.fromkeys(_label(record, name, item) for item in value)), is_list=True)


def name_field(record: Record, name: str) -> str:
    """Return an id or a group as text; empty when the record has none."""
    value = record.fields.get(name)
    return "" if value is None else str(value).strip()


def words_field(record: Record, name: str, flag: str, *, spaces: bool = False) -> list[str]:
    """Return a record's list of words or tags, each a text without spaces.

    Args:
        record: the record.
        name: the field's name.
        flag: the option by which a user names the field.
        spaces: whether they may hold spaces, or nothing else, all the same.

    Raises:
        DataError: the field is missing, no list, empty, or holds something that is no single word.
    """
    value = _field(record, name, flag, lambda: "NAME")
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(
            f"{record.where}: field '{name}' holds {kind_of(value) if value else 'an empty list'}, not a list of "
            f"words. Name the field with {flag}, or remove the record."
        )
    for number, word in enumerate(value, start=1):
        if not isinstance(word, str) or not (spaces or len(word.split()) == 1):
            raise DataError(
                f"{record.where}: field '{name}' holds {word!r} at place {number}, which is no single word. "
                f"Give texts{'' if spaces else ' without spaces'}."
            )
        _well_formed(record, name, word)
    return list(value) if spaces else [word.strip() for word in value]


def _field(record: Record, name: str, flag: str, likely: Callable[[], str]) -> Any:
    if name not in record.fields:
        found = ", ".join(map(_as_written, sorted(record.fields))) or "no field at all"
        raise DataError(
            f"{record.where}: field '{name}' is missing (found: {found}). {_separated(record)}Name the field with "
            f"{flag} {_as_written(likely())}."
        )
    if record.fields[name] is None:
        raise DataError(f"{record.where}: field '{name}' is null. Remove the record or give it a value.")
    return record.fields[name]


def _as_written(name: str) -> str:
    """Write the name of a field, in quotes where a reader would not see all of it or a shell not take it as it is."""
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)


def _separated(record: Record) -> str:
    """Say of a table of one column that others may be hidden in its name."""
    only = next(iter(record.fields)) if len(record.fields) == 1 else ""
    marks = [mark for mark in ";\t|" if mark in only]
    if not marks or not record.source.lower().endswith((".csv", ".tsv")):
        return ""
    wanted = "commas" if record.source.lower().endswith(".csv") else "tabs"
    return f"Its columns seem to be separated by {marks[0]!r}, but here {wanted} do that: convert it. "


def _likely_text(record: Record) -> str:
    texts = {name: value for name, value in record.fields.items() if isinstance(value, str)}
    known = [name for name in _TEXT_NAMES if name in texts]
    return known[0] if known else max(texts, key=lambda name: len(texts[name]), default="NAME")


def _likely_label(record: Record) -> str:
    known = [name for name in _LABEL_NAMES if name in record.fields]
    short = {
        name: len(str(value))
        for name, value in record.fields.items()
        if isinstance(value, (str, int)) and name not in (*_TEXT_NAMES, "id")
    }
    return known[0] if known else min(short, key=lambda name: short[name], default="NAME")


def _label(record: Record, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{record.where}: field '{name}' holds {kind_of(value)}. A label is text, a whole number, true or false."
        )
    if not value.strip():
        raise DataError(f"{record.where}: field '{name}' is empty. Remove the record or give it a label.")
    return _well_formed(record, name, value.strip())


def _well_formed(record: Record, name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise DataError(
            f"{record.where}: field '{name}' holds half of a surrogate pair (\\u{code:04x}) at character "
            f"{error.start + 1:,}, which is no Unicode text. Repair or remove the record."
        ) from None
    return value


def _read_named(name: str, refuse: Refuse | None) -> Iterator[Record]:
    if name.startswith("demo:"):
        from peft_rag.demo import demo_records

        demo, _, split = name.removeprefix("demo:").partition("/")
        return iter(demo_records(demo, split))
    path, suffix = Path(name), Path(name).suffix.lower()
    if path.is_dir():
        return _saved_dataset(name, path, split="")
    if suffix in SUFFIXES:
        return _read_file(name, path, suffix, refuse)
    if path.exists():
        raise DataError(f"{name}: unknown kind of file '{suffix}'. Use one of {', '.join(SUFFIXES)}.")
    folder, colon, split = name.rpartition(":")
    if colon and Path(folder).is_dir():
        return _saved_dataset(name, Path(folder), split)
    hub = _HUB_ID.fullmatch(name)
    if hub and not Path(name.split("/")[0]).is_dir():
        return _hub_dataset(name, hub["name"], hub["split"] or "train")
    raise _missing(name, path)


def _missing(name: str, path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{name}: no such file, and no folder '{folder}' either. Check the path.")
    near = suggest(path.name, sorted(entry.name for entry in folder.iterdir()))
    return DataError(f"{name}: no such file in '{folder.resolve()}'.{near or ' Give the path of a file that exists.'}")


def _read_file(name: str, path: Path, suffix: str, refuse: Refuse | None) -> Iterator[Record]:
    if not path.is_file():
        raise _missing(name, path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name}: the file is empty. Give one with at least one record.")
        if suffix == ".parquet":
            yield from _parquet(name, path)
            return
        for line, unit, fields in read_rows(path, refuse):
            yield Record(fields, name, line, unit)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}). Check the file.") from None


def _parquet(name: str, path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    def rows() -> Iterator[dict[str, Any]]:
        try:
            # Without a buffer of its own size, a whole row group, by default a million rows, is read at once.
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
                for batch in file.iter_batches(_BATCH):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path.name}: not a Parquet file, or a damaged one ({_first_line(error)}). Write it anew."
            ) from None

    return _numbered(rows(), name)


def _in_memory(source: Any) -> Iterator[Record]:
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _dataset("the data set given", source, split="")
    if not isinstance(source, Sequence) or not all(isinstance(row, Mapping) for row in source):
        raise DataError(f"data in memory must be a datasets.Dataset or a list of dicts, not a {type(source).__name__}.")
    return _numbered(source, "the data given")


def _saved_dataset(name: str, folder: Path, split: str) -> Iterator[Record]:
    if not any((folder / marker).is_file() for marker in ("dataset_info.json", "dataset_dict.json")):
        files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        hint = f"Name a file in it, e.g. {folder / files[0]}." if files else "Name a file."
        raise DataError(f"{name}: a folder, but none that datasets.save_to_disk wrote. {hint}")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{name}: the saved data set is damaged ({_first_line(error)}). Save it anew.") from None
    return _dataset(name, loaded, split)


def _hub_dataset(name: str, repository: str, split: str) -> Iterator[Record]:
    if not hub_forbidden() and not hub_reachable():
        raise DataError(
            f"{name}: no such file here, and no hub to ask for a data set of that name (no network). "
            "Name a local file, or set HF_HUB_OFFLINE=1 to use a data set downloaded before."
        )
    import datasets

    try:
        loaded = datasets.load_dataset(repository, split=split)
    except Exception as error:
        raise DataError(
            f"{name}: neither a file here nor a data set that could be loaded from the hub, split '{split}' "
            f"({_first_line(error)}). Check the name and the network, or name a local file."
        ) from None
    return _dataset(name, loaded, split)


def _dataset(name: str, loaded: Any, split: str) -> Iterator[Record]:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        if (split or "train") not in loaded:
            raise DataError(
                f"{name}: no split '{split or 'train'}' (found: {', '.join(loaded)}). Name one as FOLDER:SPLIT."
            )
        loaded = loaded[split or "train"]
    decoders = {field: _class_names(feature) for field, feature in loaded.features.items()}
    rows = ({field: decoders[field](value) for field, value in row.items()} for row in loaded)
    return _numbered(rows, name)


def _class_names(feature: Any) -> Callable[[Any], Any]:
    """Return what puts the names of classes in place of their numbers."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda value: value if value is None else feature.int2str(value) if value >= 0 else None
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return lambda value: value if value is None else [inner.int2str(item) for item in value]
    return lambda value: value


def _numbered(rows: Any, name: str) -> Iterator[Record]:
    return (Record(row, name, number, "row") for number, row in enumerate(rows, start=1))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

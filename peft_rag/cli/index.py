"""``peft-rag index``: an index on disk, from its first build to its last search."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.cli import index_quality
from peft_rag.cli.flags import flags_of, refuse
from peft_rag.cli.index_corpus import add_corpus_options, documents
from peft_rag.config import DEFAULT_MODEL
from peft_rag.retrieval.manifest import StoreSettings

if TYPE_CHECKING:
    from peft_rag.corpus import Document
    from peft_rag.retrieval.store import Hit, IndexStore

_DESCRIPTION = """\
Keep documents in a folder that can be searched by meaning, and that grows and shrinks without being built anew.

  peft-rag index build kb/ --corpus articles.jsonl    encode and index every record of a file
  peft-rag index search kb/ "how do birds fly?"       the nearest documents, one JSON line each
  peft-rag index add kb/ --corpus new.jsonl           more documents; --replace updates those of the same id
  peft-rag index delete kb/ a17 a18                   delete documents by id
  peft-rag index info kb/                             what the folder holds
  peft-rag index verify kb/                           check every file, known answers and the encoder
  peft-rag index compact kb/                          free the room of deleted documents

Long documents are cut into chunks, which are found one by one and changed together:
  peft-rag index build kb/ --corpus books.jsonl --chunk sentences --chunk-size 96

An index is a corpus, and its own vectors are searched:
  peft-rag index overlap --corpus kb/ --queries test.jsonl
  peft-rag train --train train.jsonl --corpus kb/ --output out/

A corpus is a .jsonl, .json, .csv, .tsv or .parquet file, a folder of datasets.save_to_disk, demo:NAME/SPLIT, a data
set of the hub, or another index; each is read a few records at a time, but a .json file that is one array is read
whole. Whatever interrupts a command, the folder holds what it held before or what it should hold after.
"""

Add = Callable[[Any], None]


def add_to(commands: Any) -> None:
    """Add the command with all its subcommands."""
    parser = commands.add_parser(
        "index",
        help="build, change, check and search an index of documents",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=lambda known, rest: parser.print_help())
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(subcommands)


def subcommand(commands: Any, name: str, line: str, teach: str, run: Callable[..., None]) -> argparse.ArgumentParser:
    """Add a subcommand whose first argument is an index folder.

    Args:
        commands: the subcommands of ``peft-rag index``.
        name: of the new one.
        line: what it does, in a line.
        teach: the text above its flags.
        run: is called with the known arguments and the words that are left over.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=teach,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="the index")
    parser.set_defaults(run=_known_only(parser, run))
    return parser


def open_store(known: argparse.Namespace) -> IndexStore:
    """Open the index that the arguments name, with the encoder they name if they do."""
    from peft_rag.cli.progress import hold_back_chatter
    from peft_rag.retrieval.encoder import SentenceEncoder
    from peft_rag.retrieval.manifest import read_manifest
    from peft_rag.retrieval.store import IndexStore

    hold_back_chatter()
    name = getattr(known, "encoder", None)
    if not name:
        return IndexStore.open(known.folder)
    record = read_manifest(Path(known.folder)).encoder
    return IndexStore.open(known.folder, SentenceEncoder(name, max_length=record["max_length"]))


def _known_only(parser: argparse.ArgumentParser, run: Callable[..., None]) -> Callable[..., None]:
    def checked(known: argparse.Namespace, rest: Sequence[str]) -> None:
        refuse(rest, flags_of(parser))
        run(known)

    return checked


def _add_build(commands: Any) -> None:
    parser = subcommand(
        commands,
        "build",
        "build an index of a corpus",
        "Encode and index every document of a corpus. The corpus is streamed, so it may be larger than memory. If the\n"
        "build is interrupted, run the same command again: it goes on after the last finished shard.\n\n"
        "  peft-rag index build kb/ --corpus articles.jsonl --text-field body --id-field url\n"
        "  peft-rag index build wiki/ --corpus demo:wiki-topics/corpus --threads 1\n"
        "  peft-rag index build small/ --corpus articles.jsonl --compact\n"
        "  peft-rag index build pages/ --corpus books.jsonl --chunk sentences --chunk-size 96",
        _build,
    )
    small = StoreSettings.compact()
    add_corpus_options(parser)
    parser.add_argument("--encoder", default=DEFAULT_MODEL, help=f"hub name, NAME@REVISION or folder ({DEFAULT_MODEL})")
    parser.add_argument("--max-length", "--max_length", type=int, help="tokens after which a text is cut")
    parser.add_argument("--metric", help="cosine, ip or l2 (cosine)")
    parser.add_argument(
        "--compact",
        action="store_true",
        help=f"take half of the memory: --precision {small.precision} --graph-dimensions {small.graph_dimensions} "
        f"--ef {small.ef}, unless given",
    )
    parser.add_argument("--precision", help="numbers of a stored vector: float32, float16 or int8 (float32)")
    numbers = {
        "M": (16, "links a node of the graph has; more find more and take more memory"),
        "ef-construction": (100, "candidates looked at for each document while building"),
        "ef": (64, "candidates looked at for each query; more find more and take longer"),
        "threads": (0, "threads that build the graph; 0 uses every core, 1 builds the same graph every time"),
        "exact-below": (10_000, "fewer documents are searched exactly and need no graph"),
        "shard-size": (4096, "documents a file; an interrupted build loses at most so many encodings"),
        "graph-dimensions": (0, "dimensions that the graph compares; 0 compares all"),
    }
    for name, (default, meaning) in numbers.items():
        names = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        parser.add_argument(*names, type=int, help=f"{meaning} ({default})")


def _build(known: argparse.Namespace) -> None:
    from peft_rag.cli.progress import hold_back_chatter, say
    from peft_rag.retrieval.encoder import SentenceEncoder
    from peft_rag.retrieval.store import IndexStore

    given = {entry.name: getattr(known, entry.name) for entry in fields(StoreSettings)}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = StoreSettings.compact(**chosen) if known.compact else StoreSettings(**chosen)
    hold_back_chatter()
    encoder = SentenceEncoder(known.encoder, max_length=known.max_length)
    store = IndexStore.build(known.folder, documents(known, encoder), encoder, settings, progress="build")
    say(f"built: {len(store):,} {'chunks' if known.chunk else 'documents'} in {known.folder}")


def _add_add(commands: Any) -> None:
    parser = subcommand(
        commands,
        "add",
        "add or update documents",
        "Add every document of a corpus to an index; all of them or, if anything fails, none. An id that the index\n"
        "holds already is an error, or with --replace an update: all chunks of a document are replaced together.\n"
        "Documents are cut where --chunk says so; cut them as those that the index holds.\n\n"
        "  peft-rag index add kb/ --corpus new.jsonl\n"
        "  peft-rag index add kb/ --corpus corrected.jsonl --replace",
        _add,
    )
    add_corpus_options(parser)
    _add_encoder(parser)
    parser.add_argument("--replace", action="store_true", help="a document takes the place of the one with its id")


def _add(known: argparse.Namespace) -> None:
    from peft_rag.cli.progress import say

    store = open_store(known)
    before = len(store)
    added = store.add(documents(known, store.encoder), replace=known.replace, progress="add")
    replaced = before + added - len(store)
    what = "chunks" if known.chunk else "documents"
    say(f"added: {added:,} {what}, in place of {replaced:,}; {len(store):,} in {known.folder}")


def _add_delete(commands: Any) -> None:
    parser = subcommand(
        commands,
        "delete",
        "delete documents by id",
        "Delete documents by id; all of them or, if one is unknown, none. The id of a document that was cut deletes\n"
        "all its chunks. Their room is used again, or freed by compact.\n\n"
        "  peft-rag index delete kb/ a17 a18\n"
        "  peft-rag index delete kb/ --ids-from gone.txt",
        _delete,
    )
    parser.add_argument("ids", nargs="*", help="ids of documents")
    parser.add_argument("--ids-from", "--ids_from", help="a file of ids, one a line; '-' for standard input")


def _delete(known: argparse.Namespace) -> None:
    from peft_rag.cli.progress import say
    from peft_rag.errors import ConfigError

    _check_unicode(*known.ids)
    ids = [*known.ids, *(_lines(known.ids_from) if known.ids_from else ())]
    if not ids:
        raise ConfigError("there is nothing to delete. Name ids, or a file of them with --ids-from.")
    store = open_store(known)
    pieces, whole = store.delete(ids), len(set(ids))
    stored = f" in {pieces:,} pieces" if pieces > whole else ""
    say(f"deleted: {whole:,} documents{stored}; {len(store):,} left in {known.folder}")


def _add_search(commands: Any) -> None:
    parser = subcommand(
        commands,
        "search",
        "find the documents nearest to a text",
        "Print the documents nearest to a text, best first, one JSON line each.\n\n"
        '  peft-rag index search kb/ "how do birds fly?" --k 3\n'
        "  peft-rag index search kb/ --queries questions.txt --exclude a17",
        _search,
    )
    parser.add_argument("text", nargs="?", help="the text to search for")
    parser.add_argument("--queries", help="a file of texts, one a line; '-' for standard input")
    parser.add_argument("--k", type=int, default=5, help="documents for each text (5)")
    parser.add_argument("--exclude", action="append", default=[], help="an id that must not be found; may be repeated")
    parser.add_argument("--label", help="find only documents that carry this label")
    parser.add_argument("--group", help="find only documents of this group")
    _add_encoder(parser)


def _search(known: argparse.Namespace) -> None:
    from peft_rag.errors import ConfigError, RetrievalError

    texts = [text for text in (known.text or "", *(_lines(known.queries) if known.queries else ())) if text.strip()]
    if not texts:
        raise ConfigError("there is nothing to search for. Give a text, or a file of texts with --queries.")
    _check_unicode(known.text or "", *known.exclude)
    store = open_store(known)
    for name in known.exclude:
        if name not in store:
            raise RetrievalError(f"no document '{name}' in the index '{known.folder}' to exclude. Check the id.")

    def where(document: Document) -> bool:
        label, group = known.label, known.group
        return (label is None or label in document.labels) and (group is None or group == document.group)

    filtered = known.label is not None or known.group is not None
    found = store.search(texts, known.k, [known.exclude] * len(texts), where=where if filtered else None)
    for text, hits in zip(texts, found, strict=True):
        for rank, hit in enumerate(hits, start=1):
            print(json.dumps(_hit(text, rank, hit), ensure_ascii=False))


def _hit(text: str, rank: int, hit: Hit) -> dict[str, Any]:
    """Describe what was found; numbers that JSON does not have (NaN, infinity) become null."""
    document = hit.document
    return {
        "query": text,
        "rank": rank,
        "id": document.id,
        "score": round(hit.score, 4),
        "labels": list(document.labels),
        "group": document.group,
        "text": document.text,
        "metadata": json.loads(json.dumps(dict(document.metadata)), parse_constant=lambda number: None),
    }


def _add_info(commands: Any) -> None:
    subcommand(
        commands,
        "info",
        "show what an index holds",
        "Print as JSON what an index holds: documents, settings, encoder, size, versions.\n\n  peft-rag index info kb/",
        lambda known: print(json.dumps(open_store(known).info(), indent=2, ensure_ascii=False)),
    )


def _add_verify(commands: Any) -> None:
    parser = subcommand(
        commands,
        "verify",
        "check an index thoroughly",
        "Check every file's SHA-256, ids, vectors and known queries, and that the encoder still gives the stored\n"
        "vectors. Status 0 if all is well, 2 with one line that says what is not.\n\n"
        "  peft-rag index verify kb/",
        _verify,
    )
    _add_encoder(parser)


def _verify(known: argparse.Namespace) -> None:
    from peft_rag.cli.progress import say

    report = open_store(known).verify()
    say(
        f"sound: {report['files']:,} files, {report['documents']:,} documents, "
        f"{report['known_queries']} known queries; "
        f"vectors encoded again differ by at most {report['largest_difference']:.1e}; "
        f"the graph finds {100 * report['graph_recall']:.1f}% of their exact neighbours"
    )


def _add_compact(commands: Any) -> None:
    subcommand(
        commands,
        "compact",
        "free the room of deleted documents",
        "Write documents, vectors and graph anew without what was deleted or replaced. Nothing is encoded again. It\n"
        "needs as much free room as the index takes.\n\n"
        "  peft-rag index compact kb/",
        _compact,
    )


def _compact(known: argparse.Namespace) -> None:
    from peft_rag.cli.progress import say

    store = open_store(known)
    before = store.info()["bytes"]
    store.compact(progress="compact")
    say(f"compacted: {len(store):,} documents, {before:,} bytes before, {store.info()['bytes']:,} now")


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", help="where the encoder lies now, if not as it was named when building")


def _check_unicode(*words: str) -> None:
    """Refuse what was typed in another encoding, of which Python keeps bytes as halves of surrogate pairs."""
    from peft_rag.errors import ConfigError

    for word in words:
        if any("\ud800" <= sign <= "\udfff" for sign in word):
            raise ConfigError(f"{word!r} is not UTF-8. Check the terminal's encoding, or give it in a file.")


def _lines(name: str) -> list[str]:
    """Return the lines of a file, or of standard input, that are not blank."""
    from peft_rag.errors import DataError
    from peft_rag.text_files import decoded_lines, read_lines

    try:
        typed = name == "-"
        lines = list(decoded_lines(sys.stdin.buffer, Path("standard input")) if typed else read_lines(Path(name)))
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}). Give a text file, one entry a line.") from None
    return [line.strip() for line in lines if line.strip()]


SUBCOMMANDS: tuple[Add, ...] = (
    _add_build,
    _add_add,
    _add_delete,
    _add_search,
    _add_info,
    _add_verify,
    _add_compact,
    index_quality.add_to,
)
"""Each adds one subcommand; a module with another adds its function here."""

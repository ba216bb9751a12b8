"""The documents that ``peft-rag index build | add`` are given, whole or in chunks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_rag.corpus import Document


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a corpus, its fields, and how its documents are cut."""
    parser.add_argument(
        "--corpus", required=True, help="the documents: a file, folder, demo:NAME/SPLIT, hub id or another index"
    )
    parser.add_argument("--text-field", "--text_field", default="text", help="field that holds the text (text)")
    parser.add_argument("--label-field", "--label_field", default="label", help="field of labels, if any (label)")
    parser.add_argument("--id-field", "--id_field", default="id", help="field of the id (id); else its number is used")
    parser.add_argument("--group-field", "--group_field", default="", help="field that holds the group; none without")
    parser.add_argument("--chunk", help="cut documents into chunks: tokens (every so many) or sentences (between them)")
    parser.add_argument(
        "--chunk-size", "--chunk_size", type=int, help="tokens of a chunk at most (128, or what the encoder reads)"
    )
    parser.add_argument(
        "--chunk-overlap",
        "--chunk_overlap",
        type=int,
        help="tokens that two chunks share (a quarter of the size), or sentences (1)",
    )


def documents(known: argparse.Namespace, encoder: Any) -> Iterator[Document]:
    """Return the documents that the flags name, read and cut as they are asked for.

    Args:
        known: the flags.
        encoder: the sentence encoder that will read them; chunks are counted in its tokens.

    Raises:
        ConfigError: how they are to be cut makes no sense; raised at once, before anything is read.
    """
    from peft_rag.errors import ConfigError
    from peft_rag.retrieval.chunks import chunker
    from peft_rag.retrieval.streaming import stream_documents

    given = {name: value for name in ("chunk_size", "chunk_overlap") if (value := getattr(known, name)) is not None}
    if given and not known.chunk:
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} says how to cut, but not where. Add --chunk tokens."
        )
    stream = stream_documents(
        known.corpus,
        text_field=known.text_field,
        label_field=known.label_field,
        id_field=known.id_field,
        group_field=known.group_field,
        named=getattr(known, "replace", False),
    )
    if not known.chunk:
        return stream
    cut = chunker(known.chunk, encoder.model.tokenizer, encoder.model.max_seq_length, **given)
    return (piece for document in stream for piece in cut(document))

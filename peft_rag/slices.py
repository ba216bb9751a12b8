"""Some records of a source: ``FILE[first:last]``, as in Python and in `datasets`."""

from __future__ import annotations

import re

_SLICE = re.compile(r"(?P<source>.*[^\[\]])\[(?P<first>\d*):(?P<last>\d*)\]", re.DOTALL)


def split_slice(source: str) -> tuple[str, slice]:
    """Split a source into its name and the records that are wanted of it, numbered from 0; all where none are named.

    >>> split_slice("test.jsonl[100:200]"), split_slice("test.jsonl[:50]")
    (('test.jsonl', slice(100, 200, None)), ('test.jsonl', slice(None, 50, None)))
    >>> split_slice("test.jsonl")
    ('test.jsonl', slice(None, None, None))
    """
    found = _SLICE.fullmatch(source)
    if found is None:
        return source, slice(None)
    first, last = (int(found[name]) if found[name] else None for name in ("first", "last"))
    return found["source"], slice(first, last)

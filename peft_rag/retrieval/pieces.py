"""The rows in which a document is stored: one if it is whole, one for each chunk if it was cut."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from peft_rag.retrieval.chunks import CHUNK_NUMBER, cut_from

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.retrieval.shards import Shards


def stored_pieces(shards: Shards, deleted: NDArray[np.bool_], names: Collection[str]) -> dict[str, list[int]]:
    """Return, by name, the rows of the document of that id and of every chunk that was cut from it.

    Args:
        shards: the documents.
        deleted: rows that do not count, ``(N,)``.
        names: ids; those of which nothing is stored are left out.
    """
    import numpy as np
    import pyarrow
    import pyarrow.compute

    found = {name: [row] for name, row in shards.find(names, deleted).items()}
    wanted = pyarrow.array(sorted(set(names)), pyarrow.string())
    for shard in shards.shards:
        if shard.stems is None:
            continue
        likely = pyarrow.compute.is_in(shard.stems, value_set=wanted)
        rows = np.flatnonzero(np.array(likely.to_pylist(), dtype=bool) & ~deleted[shard.start : shard.stop])
        for row, document in zip(rows.tolist(), shard.documents(rows), strict=True):
            whole = cut_from(document)
            if whole != document.id:
                found.setdefault(whole, []).append(shard.start + row)
    return found


def chunk_of_another(shards: Shards, deleted: NDArray[np.bool_], name: str) -> str:
    """Return the document of which a stored chunk has the id ``name``; empty where that is no chunk's.

    A document may be called ``page#2``, and so is the second chunk of ``page``.
    """
    import numpy as np

    row = shards.find([name], deleted).get(name) if re.search(CHUNK_NUMBER, name) else None
    if row is None:
        return ""
    (stored,) = shards.documents(np.array([row], dtype=np.int64))
    whole = cut_from(stored)
    return "" if whole == name else whole

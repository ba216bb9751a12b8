"""Documents drawn at random in place of those that were found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from peft_rag.retrieval.base import NO_POSITION, Neighbours

if TYPE_CHECKING:
    import numpy as np


def random_neighbours(
    found: Neighbours, documents: int, forbidden: Sequence[Collection[int]], generator: np.random.Generator
) -> Neighbours:
    """Put documents drawn at random, each once a row and none forbidden, in place of those found; scores stay.

    Args:
        found: ``(N, K)``.
        documents: M.
        forbidden: for each example the positions it must not see; empty where there are none.
        generator: of the draws.
    """
    import numpy as np

    positions = np.full_like(np.asarray(found.positions), NO_POSITION)
    everything = np.arange(documents)
    for row in range(len(found)):
        banned = forbidden[row] if len(forbidden) else ()
        allowed = np.delete(everything, list(banned)) if len(banned) else everything
        places = np.flatnonzero(np.asarray(found.positions[row]) != NO_POSITION)[: len(allowed)]
        positions[row, places] = generator.choice(allowed, len(places), replace=False)
    return Neighbours(positions, np.where(positions == NO_POSITION, -np.inf, found.scores).astype(np.float32))

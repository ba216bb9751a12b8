"""Rankings of one corpus by several retrievers, made one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peft_rag.retrieval.base import NO_POSITION, Neighbours
from peft_rag.retrieval.vectors import empty_neighbours, fill_nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fuse_rankings(rankings: Sequence[Neighbours], k: int, rrf_k: int = 60) -> Neighbours:
    """Fuse rankings of one corpus by reciprocal ranks.

    score(d) = Σ_r 1 / (rrf_k + rank_r(d)), ranks counted from 1; documents of equal score are ordered by position.

    Dims: Q queries, K neighbours asked for.

    Args:
        rankings: what each retriever found for the Q queries, to any depth.
        k: how many to return; fewer come back, padded, where fewer were found.
        rrf_k: how little the very first ranks stand out.

    Returns:
        Positions and fused scores ``(Q, K)``.

    Source: Cormack, Clarke and Büttcher 2009, doi:10.1145/1571941.1572114.
    """
    import numpy as np

    return _fused(rankings, k, lambda number, scores: 1 / (rrf_k + np.arange(1.0, len(scores) + 1)))


def fuse_scores(rankings: Sequence[Neighbours], k: int, weights: Sequence[float]) -> Neighbours:
    """Fuse rankings of one corpus by their scores, those of each retriever and query stretched to [0, 1].

    score(d) = Σ_r w_r · (s_r(d) - min s_r) / (max s_r - min s_r), with the least and the largest score among what r
    found for the query. What r did not find counts as the least; where all that it found scores alike, as the largest.
    Documents of equal score are ordered by position.

    Dims: Q queries, K neighbours asked for, R retrievers.

    Args:
        rankings: what each retriever found for the Q queries, to any depth.
        k: how many to return; fewer come back, padded, where fewer were found.
        weights: how much each retriever counts, ``(R,)``.

    Returns:
        Positions and fused scores ``(Q, K)``.

    Source: Bruch, Gai and Ingber 2023, doi:10.1145/3596512.
    """
    import numpy as np

    def stretched(number: int, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        least, largest = float(scores.min()), float(scores.max())
        if least == largest:
            return np.full(len(scores), float(weights[number]))
        return weights[number] * (scores.astype(np.float64) - least) / (largest - least)

    return _fused(rankings, k, stretched)


def _fused(
    rankings: Sequence[Neighbours], k: int, share: Callable[[int, NDArray[np.float32]], NDArray[np.float64]]
) -> Neighbours:
    """Sum what each ranking, by its number, gives to the documents it holds, from their scores, best first."""
    import numpy as np

    found = empty_neighbours(len(rankings[0]), k)
    for row in range(len(found)):
        held = [one.positions[row] != NO_POSITION for one in rankings]
        positions = np.concatenate([one.positions[row][kept] for one, kept in zip(rankings, held, strict=True)])
        if not len(positions):
            continue
        given = [one.scores[row][kept] for one, kept in zip(rankings, held, strict=True)]
        shares = np.concatenate([share(number, scores) for number, scores in enumerate(given) if len(scores)])
        documents, place = np.unique(positions, return_inverse=True)
        scores = np.bincount(place, weights=shares, minlength=len(documents)).astype(np.float32)
        fill_nearest(found, row, np.zeros(len(documents), dtype=np.int64), documents, scores)
    return found

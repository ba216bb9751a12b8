"""The few directions in which vectors differ most, so that a graph can compare shorter ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE = 20_000


def principal_directions(vectors: NDArray[np.float32], count: int, metric: str) -> NDArray[np.float32]:
    """Find the directions that keep most of what vectors are compared by.

    The columns of P are the eigenvectors of largest eigenvalue of Σ v vᵀ / N, so that Pᵀq · Pᵀd is, among all
    projections to as many dimensions, nearest to q · d in the mean square; for ``l2`` of the covariance, because
    distances do not depend on the mean.

    Dims: N vectors, D dimensions, d directions.

    Args:
        vectors: ``(N, D)``; some thousands suffice.
        count: d.
        metric: ``cosine``, ``ip`` or ``l2``.

    Returns:
        P, float32 ``(D, d)``, orthonormal columns; the largest number of each is positive, so that equal vectors
        give equal directions.

    Source: Jegou et al. 2010, doi:10.1109/CVPR.2010.5540039 (dimension reduction before approximate search).
    """
    import numpy as np

    rows = vectors.astype(np.float64)
    if metric == "l2":
        rows -= rows.mean(axis=0)
    _, directions = np.linalg.eigh(rows.T @ rows / max(1, len(rows)))
    chosen = directions[:, ::-1][:, :count]
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None], axis=0)
    return np.ascontiguousarray(chosen * np.where(largest < 0, -1.0, 1.0), dtype=np.float32)

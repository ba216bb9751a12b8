"""One state of an index folder, opened and checked: what is searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Document
from peft_rag.errors import RetrievalError, ShapeError
from peft_rag.retrieval.base import Neighbours, check_exclude, check_k
from peft_rag.retrieval.graph import StoredGraph
from peft_rag.retrieval.manifest import Manifest, check_files, damaged, read_manifest, unreadable
from peft_rag.retrieval.pieces import stored_pieces
from peft_rag.retrieval.ranking import Candidates, Exclude, rank_exactly
from peft_rag.retrieval.shards import Shards
from peft_rag.retrieval.vectors import check_finite, empty_neighbours, normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KNOWN = 3
_KNOWN_K = 3
_ROUNDING = 1e-5
_ATTEMPTS = 20


class Snapshot:
    """The documents, vectors, deletions and graph that one manifest names. It never changes."""

    def __init__(
        self, manifest: Manifest, shards: Shards, deleted: NDArray[np.bool_], graph: StoredGraph | None
    ) -> None:
        """Hold opened parts; see `open`.

        Args:
            manifest: what they belong to.
            shards: the documents.
            deleted: which rows are deleted, ``(N,)``.
            graph: the graph, if there is one.
        """
        self.manifest = manifest
        self.shards = shards
        self.deleted = deleted
        self.graph = graph

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> Snapshot:
        """Open what a folder holds now, after every file has matched its SHA-256 and every known query its answer.

        A writer may replace the files meanwhile; then what it wrote is opened.

        Args:
            folder: the index.
            check: whether hashes and known queries are checked; only for whoever has just written them.

        Raises:
            RetrievalError: the folder holds no index, or a damaged one.
        """
        for _ in range(_ATTEMPTS):
            manifest = read_manifest(folder)
            try:
                if check:
                    check_files(folder, manifest.files)
                snapshot = cls._open(folder, manifest)
            except FileNotFoundError as error:
                missing = Path(error.filename or "a file").name
                if read_manifest(folder) == manifest:
                    raise damaged(folder, missing) from None
                continue
            except (OSError, ValueError) as error:
                raise unreadable(folder, error) from error
            if check:
                snapshot.check_known(folder)
            return snapshot
        raise RetrievalError(f"the index '{folder}' changes faster than it can be opened. Try again.")

    @classmethod
    def _open(cls, folder: Path, manifest: Manifest) -> Snapshot:
        import numpy as np

        shards = Shards.open(folder, manifest.shards, manifest.dimension)
        deleted = np.zeros(len(shards), dtype=bool)
        if manifest.deleted:
            deleted = np.load(folder / manifest.deleted, allow_pickle=False)
        if len(deleted) != len(shards) or len(deleted) - int(deleted.sum()) != manifest.count:
            raise damaged(folder, manifest.deleted or "manifest.json")
        graph = None
        if manifest.graph:
            graph = StoredGraph.open(folder, manifest.graph, manifest.dimension, manifest.settings)
        return cls(manifest, shards, deleted, graph)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows that are not deleted, in order."""
        import numpy as np

        return np.flatnonzero(~self.deleted)

    def documents(self) -> Iterator[Document]:
        """Yield the documents that are not deleted, in the order of rows, reading a few at a time."""
        rows = self.rows
        for start in range(0, len(rows), 1024):
            yield from self.shards.documents(rows[start : start + 1024])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclude = None,
        *,
        allowed: NDArray[np.bool_] | None = None,
        ties_by_id: bool = True,
        exact: bool = False,
    ) -> Neighbours:
        """Find the rows nearest to some vectors.

        Dims: Q queries, D dimensions, N rows.

        Args:
            queries: ``(Q, D)``.
            k: how many neighbours to return; fewer come back, padded, where fewer are allowed.
            exclude: for each query the rows it must not see.
            allowed: the rows that any query may see, ``(N,)``; all if None.
            ties_by_id: whether equal scores are ordered by id, or by row.
            exact: whether to pass over the graph.

        Returns:
            rows and scores ``(Q, k)``; scores are right to five digits, whichever way they were found.

        Raises:
            ConfigError: ``k`` is below 1.
            ShapeError: a dimension differs from the index's, or ``exclude`` is not as long as ``queries``.
            RetrievalError: a query holds NaN or infinity.
        """
        import numpy as np

        check_k(k)
        check_exclude(exclude, len(queries))
        queries = self._checked(queries)
        free = ~self.deleted if allowed is None else allowed & ~self.deleted
        answer = empty_neighbours(len(queries), k)
        left = np.arange(len(queries))
        if allowed is None and not exact and self.graph is not None and self.graph.entry.rows == len(self.deleted):
            # What a query must not see it likely has first, so the graph alone seldom answers one that excludes.
            asked = left if exclude is None else np.flatnonzero([len(rows) == 0 for rows in exclude])
            answered, plain = self.graph.settle(queries[asked], k, free)
            answer.positions[asked[answered]], answer.scores[asked[answered]] = plain.positions, plain.scores
            left = np.delete(left, asked[answered])
        if len(left):
            remaining = [exclude[query] for query in left.tolist()] if exclude is not None else None
            found = self._ranked(queries[left], k, remaining, free, exact)
            ranked = found.neighbours(len(left), k, self.shards.ids if ties_by_id else None)
            answer.positions[left], answer.scores[left] = ranked.positions, ranked.scores
        return answer

    def _ranked(
        self, queries: NDArray[np.float32], k: int, exclude: Exclude, free: NDArray[np.bool_], exact: bool
    ) -> Candidates:
        """Return each query's ``k`` best rows by the stored vectors, and all that tie with the last of them."""
        import numpy as np

        settings = self.manifest.settings
        found, pending, start = Candidates.none(), np.arange(len(queries)), 0
        if self.graph is not None and not exact:
            found, pending = self.graph.search(self.shards, queries, k, free, exclude)
            start = self.graph.entry.rows
            if start < len(self.deleted):
                found += rank_exactly(
                    self.shards, queries, k, settings.metric, allowed=free, exclude=exclude, start=start
                )
        if len(pending):
            remaining = [exclude[query] for query in pending.tolist()] if exclude is not None else None
            whole = free if not start else free & (np.arange(len(free)) < start)
            rest = rank_exactly(self.shards, queries[pending], k, settings.metric, allowed=whole, exclude=remaining)
            found += replace(rest, queries=pending[rest.queries])
        return found.best(k)

    def with_ef(self, ef: int) -> Snapshot:
        """Return the same documents and graph, searched by looking at ``ef`` candidates for each query."""
        settings, graph = replace(self.manifest.settings, ef=ef), self.graph
        if graph is not None:
            graph = StoredGraph(graph.graph, graph.entry, settings, graph.projection)
        return Snapshot(replace(self.manifest, settings=settings), self.shards, self.deleted, graph)

    def known_answers(self) -> list[dict[str, Any]]:
        """Return a few documents' rows, each with what searching for its own vector finds."""
        import numpy as np

        rows = self.rows
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _KNOWN).astype(np.int64))] if len(rows) else rows
        return [{"row": row, **self._answer(row)} for row in chosen.tolist()]

    def check_known(self, folder: Path) -> None:
        """Raise `RetrievalError` if a known query no longer finds its known neighbours."""
        import numpy as np

        for known in self.manifest.known:
            answer = self._answer(known["row"])
            scores = np.array(known["scores"], dtype=np.float64)
            margin = _ROUNDING * max(1.0, float(np.abs(scores).max()))
            same_scores = len(answer["scores"]) == len(scores) and np.allclose(answer["scores"], scores, atol=margin)
            distinct = bool((np.abs(np.diff(scores)) > margin).all())
            if not same_scores or (distinct and answer["ids"] != known["ids"]):
                raise RetrievalError(
                    f"the index '{folder}': the known query '{known['ids'][0]}' must find {known['ids']}, but finds "
                    f"{answer['ids']}. Its files are intact, so this machine's hnswlib or NumPy answers otherwise "
                    f"than those that built it ({self.manifest.versions}). Build it anew here."
                )

    def _answer(self, row: int) -> dict[str, Any]:
        import numpy as np

        found = self.search(self.shards.vectors(np.array([row])), _KNOWN_K)
        pairs = found.row(0)
        ids = self.shards.ids(np.array([place for place, _ in pairs], dtype=np.int64))
        return {"ids": ids, "scores": [score for _, score in pairs]}

    def _checked(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        dimension = self.manifest.dimension
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise ShapeError(
                f"the index holds vectors of dimension {dimension}, but the queries have shape {queries.shape}. "
                "Use the encoder that it was built with."
            )
        check_finite(queries, "query")
        return normalise(queries) if self.manifest.settings.metric == "cosine" else queries


def excluded_rows(snapshot: Snapshot, exclude: Sequence[Any] | None) -> list[frozenset[int]] | None:
    """Turn, for each query, ids that must not be found into rows; ids that are not stored exclude nothing.

    The id of a document that was cut into chunks stands for all of them.
    """
    if exclude is None:
        return None
    rows = stored_pieces(snapshot.shards, snapshot.deleted, {name for ids in exclude for name in ids})
    return [frozenset(row for name in ids for row in rows.get(name, ())) for ids in exclude]

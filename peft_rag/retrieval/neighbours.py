"""Neighbours of a whole split, found once, without leaks, and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus
from peft_rag.errors import RetrievalError
from peft_rag.files import sha256_of_json
from peft_rag.retrieval.base import Neighbours, Retriever
from peft_rag.retrieval.cache import cached_arrays
from peft_rag.retrieval.leaks import only_below, with_similar
from peft_rag.retrieval.standing import Texts, by_group, by_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 3


@dataclass(frozen=True)
class Query:
    """One text to find neighbours for.

    Attributes:
        id: its name; in its own corpus, the id of its document.
        text: what is searched for.
        group: if not empty, no document of the same group is ever its neighbour.
    """

    id: str
    text: str
    group: str = ""


def precompute_neighbours(
    retriever: Retriever,
    corpus: Corpus,
    queries: Sequence[Query],
    k: int,
    *,
    cache_folder: Path,
    name: str,
    same_data: bool = False,
    exclude_duplicates: bool | None = None,
    leak_threshold: float = 0.0,
) -> Neighbours:
    """Find the neighbours of every query, or read them if they were found before.

    They are kept under a hash of all that decides them (corpus, queries, retriever, encoder, ``k``,
    exclusions), so a change of any of these computes them anew. The corpus is indexed only if they must be
    computed and the retriever does not hold it yet. Of several processes one computes and the others wait.

    Args:
        retriever: what finds them.
        corpus: where it looks.
        queries: the Q queries.
        k: how many neighbours each may get; fewer come back, padded, where fewer are allowed.
        cache_folder: neighbours are kept in ``cache_folder/neighbours``.
        name: what the queries are called in progress bars, e.g. ``train``; no bar if empty.
        same_data: whether the queries are documents of the corpus, each then forbidden the document with its
            own id.
        exclude_duplicates: whether a query is forbidden every document of the same normalised text; None
            means ``same_data``.
        leak_threshold: if above 0, a query is forbidden every document of at least that score.

    Returns:
        Positions and scores ``(Q, k)``, memory-mapped and read-only.

    Raises:
        RetrievalError: ``same_data`` but a query's id is not in the corpus; or the cache cannot be written.
        ConfigError: ``k`` is below 1.
    """
    duplicates = same_data if exclude_duplicates is None else exclude_duplicates
    about = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "groups": sha256_of_json([document.group for document in corpus]),
        "queries": sha256_of_json([[query.id, query.text, query.group] for query in queries]),
        "retriever": retriever.fingerprint_for(corpus.fingerprint),
        "index": retriever.index_state(),
        "k": k,
        "same_data": same_data,
        "exclude_duplicates": duplicates,
        "leak_threshold": leak_threshold,
    }

    def compute() -> dict[str, NDArray[Any]]:
        exclude = forbidden_positions(corpus, queries, same_data=same_data, exclude_duplicates=duplicates)
        texts = [query.text for query in queries]
        if leak_threshold:
            exclude = with_similar(
                exclude, retriever, corpus, texts, leak_threshold, cache_folder=cache_folder, name=name
            )
        if retriever.corpus_fingerprint != corpus.fingerprint:
            retriever.index(corpus, progress="corpus")
        found = retriever.search(texts, k, exclude, progress=f"neighbours of {name}" if name else None)
        if leak_threshold:
            found = only_below(found, leak_threshold)
        return {"positions": found.positions, "scores": found.scores}

    folder = cache_folder / "neighbours" / sha256_of_json(about).removeprefix("sha256:")
    kept = cached_arrays(folder, {**about, "name": name}, compute)
    return Neighbours(kept["positions"], kept["scores"])


def forbidden_positions(
    corpus: Corpus, queries: Sequence[Query], *, same_data: bool, exclude_duplicates: bool
) -> list[frozenset[int]]:
    """Return for each query the positions it must not see: its own, its duplicates', its group's.

    A document that lies in the corpus in chunks is all of these; see `peft_rag.retrieval.standing`.

    Raises:
        RetrievalError: ``same_data`` but a query's id is not in the corpus.
    """
    own = by_id(corpus) if same_data else {}
    texts = Texts(corpus) if exclude_duplicates else None
    groups = by_group(corpus)
    nothing: frozenset[int] = frozenset()
    forbidden = []
    for query in queries:
        if same_data and query.id not in own:
            raise RetrievalError(
                f"query '{query.id}' has no document of that id in the corpus '{corpus.name}', though "
                "same_data says that its data is the corpus. Read both with the same id field."
            )
        mine = own.get(query.id, nothing)
        same_text = texts.places(query.text) if texts else nothing
        same_group = groups.get(query.group, nothing) if query.group else nothing
        forbidden.append(mine | same_text | same_group)
    return forbidden

"""How good retrieval is: against judgements of relevance, and of a graph against exact search."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from peft_rag.errors import ConfigError, DataError, RetrievalError, ShapeError
from peft_rag.records import Record
from peft_rag.retrieval.base import Encoder, Neighbours, check_k
from peft_rag.text_files import kind_of, read_lines

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Judgements: TypeAlias = Mapping[str, Mapping[str, float]]
    Rankings: TypeAlias = Mapping[str, Sequence[str]]

_ROUNDING = 1e-5
_MOST_EF = 1 << 16


@dataclass(frozen=True)
class Quality:
    """Scores of rankings against judgements, each a mean over the judged queries, in [0, 1].

    Attributes:
        k: how many places of each ranking count.
        recall: recall@k.
        mrr: MRR@k.
        ndcg: nDCG@k.
        queries: how many queries were judged, that is, have at least one relevant document.
        unjudged: how many were left out because they have none.
    """

    k: int
    recall: float
    mrr: float
    ndcg: float
    queries: int
    unjudged: int

    def to_dict(self) -> dict[str, float | int]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ChosenEf:
    """An ``ef`` for a recall wanted.

    Attributes:
        ef: candidates to look at for each query.
        recall: the recall@k it reaches on the queries it was chosen with.
    """

    ef: int
    recall: float


@runtime_checkable
class VectorSearch(Protocol):
    """A retriever that compares vectors: encoding and searching can be timed apart, and searching be done exactly."""

    encoder: Encoder

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search for vectors ``(Q, D)`` that the encoder gave."""
        ...

    def search_exactly(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Do the same, comparing every document."""
        ...


@runtime_checkable
class GraphSearch(VectorSearch, Protocol):
    """One whose graph can be searched with any ``ef``."""

    def with_ef(self, ef: int) -> GraphSearch:
        """Return the same index, searched by looking at ``ef`` candidates for each query."""
        ...


def score_rankings(rankings: Rankings, judgements: Judgements, k: int) -> Quality:
    """Score rankings of documents by all measures.

    Args:
        rankings: for each query's id the ids of the documents found, nearest first.
        judgements: for each query's id the grades of documents by id; grades above 0 are relevant.
        k: how many places count.

    Raises:
        ConfigError: ``k`` is below 1.
        DataError: no query has a relevant document.
    """
    judged = _judged(rankings, judgements, k)
    return Quality(
        k,
        recall_at_k(rankings, judgements, k),
        mrr_at_k(rankings, judgements, k),
        ndcg_at_k(rankings, judgements, k),
        len(judged),
        len(rankings) - len(judged),
    )


def recall_at_k(rankings: Rankings, judgements: Judgements, k: int) -> float:
    """Return the mean share of relevant documents that are among the first k.

    recall@k = 1/|Q| Σ_q |top_k(q) ∩ R(q)| / |R(q)|, over the queries Q that have a relevant document, R(q) being the
    documents of grade above 0. Arguments and errors are those of `score_rankings`.

    Source: Manning, Raghavan and Schütze 2008, Introduction to Information Retrieval, chapter 8.
    """
    shares = [
        len(set(rankings[query][:k]) & relevant.keys()) / len(relevant)
        for query, relevant in _judged(rankings, judgements, k).items()
    ]
    return math.fsum(shares) / len(shares)


def mrr_at_k(rankings: Rankings, judgements: Judgements, k: int) -> float:
    """Return the mean reciprocal rank of the first relevant document.

    MRR@k = 1/|Q| Σ_q 1 / rank(first relevant document of q), counted from 1, and 0 where none is among the first k;
    Q, arguments and errors as in `recall_at_k`.

    Source: Voorhees 1999, TREC-8 question answering track report.
    """
    reciprocals = []
    for query, relevant in _judged(rankings, judgements, k).items():
        ranks = (rank for rank, found in enumerate(rankings[query][:k], start=1) if found in relevant)
        first = next(ranks, None)
        reciprocals.append(1 / first if first else 0.0)
    return math.fsum(reciprocals) / len(reciprocals)


def ndcg_at_k(rankings: Rankings, judgements: Judgements, k: int) -> float:
    """Return the mean normalised discounted cumulative gain.

    nDCG@k = 1/|Q| Σ_q DCG@k(q) / IDCG@k(q), with DCG@k = Σ_{i=1..k} grade_i / log2(i + 1) and IDCG@k the DCG@k of the
    best ranking there could be. The gain is the grade itself, as in trec_eval, not 2^grade - 1. Q, arguments and errors
    as in `recall_at_k`.

    Source: Järvelin and Kekäläinen 2002, doi:10.1145/582415.582418.
    """
    shares = []
    for query, relevant in _judged(rankings, judgements, k).items():
        gains = [relevant.get(found, 0.0) for found in rankings[query][:k]]
        shares.append(_dcg(gains) / _dcg(sorted(relevant.values(), reverse=True)[:k]))
    return math.fsum(shares) / len(shares)


def graph_recall(found: Neighbours, exact: Neighbours) -> float:
    """Return the share of the exact neighbours that a graph found.

    recall@k = Σ_q |{i in found(q): score_i ≥ s(q)}| / Σ_q |exact(q)|, s(q) being the lowest score in exact(q), so that
    of documents which tie for the last place any is right. Scores count as equal within float32's rounding.

    Raises:
        ShapeError: they are not for the same number of queries and neighbours.
    """
    import numpy as np

    if found.positions.shape != exact.positions.shape:
        raise ShapeError(
            f"neighbours found {found.positions.shape} and exact ones {exact.positions.shape} must be as many."
        )
    held = exact.positions >= 0
    if not held.any():
        return 1.0
    lowest = np.where(held, exact.scores, np.inf).min(axis=1, keepdims=True)
    enough = lowest - _ROUNDING * np.maximum(1.0, np.abs(np.nan_to_num(lowest, posinf=0.0)))
    right = ((found.positions >= 0) & (found.scores >= enough)).sum(axis=1)
    return float(np.minimum(right, held.sum(axis=1)).sum() / held.sum())


def choose_ef(search: Callable[[int], Neighbours], exact: Neighbours, recall: float = 0.99) -> ChosenEf:
    """Find the smallest ``ef`` of a graph that reaches a recall@k against exact search on some queries.

    ``ef`` is doubled until the recall is reached, then the last interval is halved. A graph's recall grows with ``ef``
    but for chance, so the result is the smallest up to that chance. A search looks at no fewer candidates than it
    fetches, ``2 k + 8``, whatever ``ef`` says.

    Args:
        search: returns what the graph finds for the queries with an ``ef``.
        exact: what exact search finds for them; of some hundred, like those that will be asked.
        recall: the recall@k wanted, in (0, 1].

    Raises:
        ConfigError: ``recall`` is out of range, or there are no queries.
        RetrievalError: no ``ef`` reaches the recall.
    """
    if not 0 < recall <= 1 or not len(exact):
        raise ConfigError(f"choose_ef needs a recall in (0, 1] and queries, not {recall!r} and {len(exact)} queries.")
    reached: dict[int, float] = {}

    def enough(ef: int) -> bool:
        reached[ef] = graph_recall(search(ef), exact)
        return reached[ef] >= recall

    low, high = exact.k - 1, exact.k
    while not enough(high):
        if high >= _MOST_EF:
            raise RetrievalError(
                f"no ef gives this graph recall@{exact.k} {recall}: with ef {high} it reaches {reached[high]:.4f}. "
                "Build it with a larger M or ef_construction."
            )
        low, high = high, min(2 * high, _MOST_EF)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return ChosenEf(high, reached[high])


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read judgements of relevance from a TREC qrels file: lines of query id, iteration, document id, grade.

    Returns:
        For each query's id the grades of documents by id, those of grade 0 or less included.

    Raises:
        DataError: the file cannot be read, holds nothing, or a line of it is no judgement.
    """
    path = Path(path)
    judgements: dict[str, dict[str, float]] = {}
    try:
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                query, document, grade = _judgement(line, f"{path.name} line {number:,}")
                judgements.setdefault(query, {})[document] = grade
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Give a TREC qrels file.") from None
    if not judgements:
        raise DataError(f"{path.name}: holds no judgements. Each line is: query-id 0 document-id grade.")
    return judgements


def judgements_in(records: Sequence[Record], ids: Sequence[str], field: str) -> dict[str, dict[str, float]]:
    """Read judgements of relevance from a field of the queries: a document's id, a list of them, or id to grade.

    Args:
        records: the queries.
        ids: their ids.
        field: the field's name.

    Raises:
        DataError: a record has no such field, or it holds something else.
    """
    return {name: _relevant(record, field) for record, name in zip(records, ids, strict=True)}


def _relevant(record: Record, field: str) -> dict[str, float]:
    value = record.fields.get(field)
    if isinstance(value, Mapping) and all(_is_number(grade) for grade in value.values()):
        return {str(document): float(grade) for document, grade in value.items()}
    listed = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int)) for one in listed):
        found = "is missing" if field not in record.fields else f"holds {kind_of(value)}"
        raise DataError(
            f"{record.where}: field '{field}' {found}; it must hold the id of a relevant document, a list of ids, or "
            "an object of ids and grades. Name the field with --relevant-field."
        )
    return {str(one): 1.0 for one in listed}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _judgement(line: str, where: str) -> tuple[str, str, float]:
    words = line.split()
    try:
        query, _, document, grade = words
        value = float(grade)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: '{line.strip()[:60]}' is no judgement. Each line is: query-id 0 document-id grade.")
    return query, document, value


def _judged(rankings: Rankings, judgements: Judgements, k: int) -> dict[str, dict[str, float]]:
    """Return the relevant documents, with their grades, of each ranked query that has any."""
    check_k(k)
    judged = {}
    for query in rankings:
        relevant = {document: grade for document, grade in judgements.get(query, {}).items() if grade > 0}
        if relevant:
            judged[query] = relevant
    if not judged:
        raise DataError(
            f"none of the {len(rankings):,} queries has a relevant document in the judgements. "
            "Check that both call the queries by the same ids."
        )
    return judged


def _dcg(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))

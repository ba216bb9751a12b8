"""``peft-rag index evaluate | overlap``: how good retrieval is, and which queries stand in the corpus already."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.cli.flags import flags_of, read_flags, refuse
from peft_rag.config import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus, Document
    from peft_rag.records import Record
    from peft_rag.retrieval.base import Neighbours, Retriever
    from peft_rag.retrieval.neighbours import Query
    from peft_rag.retrieval.overlap import OverlapReport
    from peft_rag.retrieval.quality import VectorSearch

_EVALUATE = """\
Search an index, or a corpus indexed for the purpose, for every query and say how good what is found is: recall@k, MRR
and nDCG against judgements of relevance, the graph's recall against exact search, and queries a second. --recall finds
the smallest ef by which the graph reaches a recall, --save-ef makes it the index's own.

  peft-rag index evaluate kb/ --queries questions.jsonl --qrels judged.qrels
  peft-rag index evaluate kb/ --queries questions.jsonl --recall 0.99 --save-ef
  peft-rag index evaluate --corpus docs.jsonl --queries questions.jsonl --qrels judged.qrels
  peft-rag index evaluate --corpus docs.jsonl --queries questions.jsonl --query-field question \\
      --relevant-field doc_ids --retriever bm25
  peft-rag index evaluate --corpus docs.jsonl --queries questions.jsonl --retriever.exact_below 0 --recall 0.99

A qrels file holds lines of: query-id 0 document-id grade. Options of the retriever are given as --retriever.NAME.
"""

_OVERLAP = """\
List the queries that the corpus holds: word for word (but for case, white space and Unicode form), or nearly, by the
similarity of sentence vectors. Scores on such queries say little about others.

  peft-rag index overlap kb/ --queries test.jsonl
  peft-rag index overlap --corpus train.jsonl --queries test.jsonl
  peft-rag index overlap --corpus train.jsonl --queries test.jsonl --threshold 0.9 --output overlap.json
"""


def add_to(subcommands: Any) -> None:
    """Add both subcommands."""
    parser = _parser(subcommands, "evaluate", "measure how good retrieval is", _EVALUATE)
    parser.add_argument("--qrels", help="judgements of relevance in TREC's format")
    parser.add_argument(
        "--relevant-field",
        "--relevant_field",
        help="field of a query with the ids of its relevant documents; a chunk counts as its document",
    )
    parser.add_argument(
        "--retriever",
        default="",
        help="retriever by name (the corpus's own index or else hnsw); see peft-rag retrievers",
    )
    parser.add_argument("--k", type=int, default=10, help="documents for each query (10)")
    parser.add_argument("--recall", type=float, help="find also the smallest ef by which the graph reaches this recall")
    parser.add_argument("--save-ef", "--save_ef", action="store_true", help="write the ef found into the index")
    parser.set_defaults(run=_evaluate)
    parser = _parser(subcommands, "overlap", "list queries that the corpus holds", _OVERLAP)
    parser.add_argument("--threshold", type=float, default=0.95, help="least similarity of near duplicates (0.95)")
    parser.add_argument("--exact-only", "--exact_only", action="store_true", help="look for no near duplicates")
    parser.add_argument("--show", type=int, default=10, help="pairs to print (10); --output writes all")
    parser.set_defaults(run=_overlap)


def _parser(subcommands: Any, name: str, line: str, teach: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subcommands.add_parser(
        name,
        help=line,
        description=teach,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", help="an index of peft-rag index build")
    parser.add_argument("--corpus", help="documents instead: a file, folder, demo:NAME/SPLIT or hub id")
    parser.add_argument("--queries", required=True, help="the queries, in the same formats")
    parser.add_argument("--text-field", "--text_field", default="text", help="field that holds the text (text)")
    parser.add_argument("--query-field", "--query_field", help="field that holds a query's text (as --text-field)")
    parser.add_argument("--id-field", "--id_field", default="id", help="field of the id (id); else its number is used")
    parser.add_argument("--same-data", "--same_data", action="store_true", help="the queries are documents themselves")
    parser.add_argument(
        "--encoder", help=f"hub name, NAME@REVISION or folder (the one an index was built with; else {DEFAULT_MODEL})"
    )
    parser.add_argument("--output", help="write the result here as JSON too")
    parser.set_defaults(flags=flags_of(parser))
    return parser


def _evaluate(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.cli.progress import hold_back_chatter, say, write_result
    from peft_rag.knowledge import make_retriever, retriever_for
    from peft_rag.retrieval.base import check_k
    from peft_rag.retrieval.neighbours import forbidden_positions

    options = _retriever_options(known, rest)
    check_k(known.k)
    hold_back_chatter()
    _settle_source(known)
    known.retriever = known.retriever or retriever_for(known.corpus)
    corpus, records, queries = _read(known)
    judgements = _judgements(known, records, queries)
    retriever = make_retriever(known.retriever, known.encoder, options, known.corpus)
    _check_ef_options(known, retriever)
    retriever.index(corpus, progress="corpus")
    known.k = min(known.k, len(corpus))
    exclude = None
    if known.same_data:
        exclude = [set(row) for row in forbidden_positions(corpus, queries, same_data=True, exclude_duplicates=True)]
    result = _measure(known, retriever, corpus, queries, judgements, exclude)
    say(f"{known.retriever}, {len(queries):,} queries over {len(corpus):,} documents")
    for name, value in result.items():
        say(f"{name.ljust(26)}{_shown(value)}")
    if known.save_ef:
        _save_ef(options.get("folder", known.corpus), result[_ef_line(known)])
    if known.output:
        about = {"retriever": known.retriever, "settings": retriever.settings(), "queries": len(queries)}
        write_result(known.output, {**about, "documents": len(corpus), "k": known.k, "scores": result})


def _settle_source(known: argparse.Namespace) -> None:
    """Make the index folder the corpus if one is named, and settle the encoder."""
    from peft_rag.errors import ConfigError
    from peft_rag.retrieval.encoder import recorded_name
    from peft_rag.retrieval.manifest import read_manifest
    from peft_rag.retrieval.stored import is_index

    if bool(known.folder) == bool(known.corpus):
        given = f"both '{known.folder}' and '{known.corpus}' are" if known.folder else "neither is"
        raise ConfigError(f"the documents are those of an index folder or of --corpus, but {given} named. Name one.")
    known.corpus = known.corpus or known.folder
    if known.folder or is_index(known.corpus):
        recorded = read_manifest(Path(known.corpus)).encoder
        known.encoder = known.encoder or recorded_name(recorded["name"], recorded["revision"])
    known.encoder = known.encoder or DEFAULT_MODEL


def _check_ef_options(known: argparse.Namespace, retriever: Retriever) -> None:
    from peft_rag.errors import ConfigError
    from peft_rag.knowledge import STORE
    from peft_rag.retrieval.quality import GraphSearch

    if known.recall is not None and not 0 < known.recall <= 1:
        raise ConfigError(f"--recall is a share above 0 and at most 1, but is {known.recall:g}.")
    if known.recall is not None and not isinstance(retriever, GraphSearch):
        raise ConfigError(f"--recall chooses ef for a graph, but the retriever is '{known.retriever}'. Use hnsw.")
    if known.save_ef and (known.recall is None or known.retriever != STORE):
        raise ConfigError(
            "--save-ef writes the ef that --recall finds into an index folder. Name such a folder, and a recall with "
            "--recall 0.99."
        )


def _ef_line(known: argparse.Namespace) -> str:
    return f"ef for recall {known.recall:g}"


def _save_ef(folder: str, ef: int) -> None:
    from peft_rag.cli.progress import say
    from peft_rag.retrieval.store import IndexStore

    store = IndexStore.open(folder)
    before = store.snapshot.manifest.settings.ef
    store.set_ef(ef)
    say(f"saved: ef {ef} instead of {before} in {folder}")


def _measure(
    known: argparse.Namespace,
    retriever: Retriever,
    corpus: Corpus,
    queries: Sequence[Query],
    judgements: dict[str, dict[str, float]] | None,
    exclude: Any,
) -> dict[str, Any]:
    """Search once, timed, and score what was found."""
    from peft_rag.retrieval.quality import VectorSearch, score_rankings

    result: dict[str, Any] = {}
    texts = [query.text for query in queries]
    against_exact: dict[str, Any] = {}
    if isinstance(retriever, VectorSearch):
        vectors = retriever.encoder.encode(texts, "queries")
        started = time.perf_counter()
        found = retriever.search_vectors(vectors, known.k, exclude)
        seconds = time.perf_counter() - started
        against_exact = _against_exact(known, retriever, vectors, found, exclude)
    else:
        started = time.perf_counter()
        found = retriever.search(texts, known.k, exclude)
        seconds = time.perf_counter() - started
    if judgements is not None:
        rankings = {
            query.id: _ranking([corpus[place] for place, _ in found.row(row)], judgements.get(query.id, {}))
            for row, query in enumerate(queries)
        }
        scores = score_rankings(rankings, judgements, known.k)
        names = {f"recall@{known.k}": scores.recall, f"MRR@{known.k}": scores.mrr, f"nDCG@{known.k}": scores.ndcg}
        result |= {**names, "judged queries": scores.queries}
    encoded = " after encoding" if against_exact else ""
    return {**result, **against_exact, f"queries/s{encoded}": len(queries) / max(seconds, 1e-9)}


def _ranking(found: Sequence[Document], judged: Collection[str]) -> list[str]:
    """Return the ids of what was found, best first: a chunk counts as its document, unless it is judged itself."""
    from peft_rag.retrieval.chunks import cut_from

    return list(dict.fromkeys(one.id if one.id in judged else cut_from(one) for one in found))


def _against_exact(
    known: argparse.Namespace, retriever: VectorSearch, vectors: NDArray[np.float32], found: Neighbours, exclude: Any
) -> dict[str, Any]:
    from peft_rag.retrieval.quality import GraphSearch, choose_ef, graph_recall

    exact = retriever.search_exactly(vectors, known.k, exclude)
    result: dict[str, Any] = {"graph recall vs exact": graph_recall(found, exact)}
    if known.recall is not None and isinstance(retriever, GraphSearch):
        graph = retriever
        chosen = choose_ef(lambda ef: graph.with_ef(ef).search_vectors(vectors, known.k, exclude), exact, known.recall)
        result |= {_ef_line(known): chosen.ef, "recall with that ef": chosen.recall}
    return result


def _overlap(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.cli.progress import hold_back_chatter, say, write_result
    from peft_rag.knowledge import STORE, make_retriever
    from peft_rag.retrieval.overlap import EXACT, NEAR, find_overlap
    from peft_rag.retrieval.stored import is_index

    refuse(rest, [*known.flags, "--threshold", "--exact-only", "--show"])
    hold_back_chatter()
    _settle_source(known)
    corpus, _, queries = _read(known)
    retriever = None
    if not known.exact_only:
        retriever = make_retriever(STORE if is_index(known.corpus) else "exact", known.encoder, source=known.corpus)
        if not retriever.cosine:
            retriever = make_retriever("exact", known.encoder)
    report = find_overlap(queries, corpus, retriever, threshold=known.threshold, same_data=known.same_data)
    exact, near = report.mask(EXACT), report.mask(NEAR)
    counts = {"exact": int(exact.sum()), "near only": int((near & ~exact).sum()), "clean": int((~exact & ~near).sum())}
    say(f"{len(queries):,} queries against {len(corpus):,} documents")
    for name, count in counts.items():
        say(f"{name.ljust(12)}{count:>8,}  {100 * count / len(queries):5.1f}%")
    pairs = _pairs(report, corpus, queries)
    shown = max(0, known.show)
    for pair in pairs[:shown]:
        say(f"  {pair['kind']} {pair['similarity']:.3f}  {pair['query']} = {pair['document']}  {pair['text'][:70]}")
    if len(pairs) > shown:
        say(f"  and {len(pairs) - shown:,} more; --output FILE writes all")
    if known.output:
        write_result(known.output, {"counts": counts, "threshold": report.threshold, "pairs": pairs})


def _pairs(report: OverlapReport, corpus: Corpus, queries: Sequence[Query]) -> list[dict[str, Any]]:
    return [
        {
            **asdict(pair),
            "query": queries[pair.query].id,
            "document": corpus[pair.position].id,
            "text": " ".join(queries[pair.query].text.split()),
        }
        for pair in report.pairs
    ]


def _read(known: argparse.Namespace) -> tuple[Corpus, list[Record], list[Query]]:
    """Read corpus and queries; both call their ids alike."""
    from peft_rag.corpus import Corpus
    from peft_rag.records import read_records, text_field
    from peft_rag.retrieval.neighbours import Query

    corpus = Corpus.read(known.corpus, text_field=known.text_field, id_field=known.id_field)
    records, name = read_records(known.queries), known.query_field or known.text_field
    for record in records[:1]:
        text_field(record, name, "--query_field")  # where it has none, what is said names the flag that mends it
    asked = Corpus.read(known.queries, text_field=name, id_field=known.id_field)
    return corpus, records, [Query(document.id, document.text) for document in asked]


def _judgements(
    known: argparse.Namespace, records: Sequence[Record], queries: Sequence[Query]
) -> dict[str, dict[str, float]] | None:
    from peft_rag.errors import ConfigError
    from peft_rag.retrieval.quality import judgements_in, read_qrels

    if known.qrels and known.relevant_field:
        raise ConfigError("--qrels and --relevant-field both name judgements. Keep one.")
    if known.qrels:
        return read_qrels(known.qrels)
    if known.relevant_field:
        return judgements_in(records, [query.id for query in queries], known.relevant_field)
    return None


def _retriever_options(known: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """Read ``--retriever.NAME value`` from the words left over; values are read as YAML."""
    import yaml

    options = {}
    for name, value in read_flags(rest).items():
        part, dot, option = name.partition(".")
        if part != "retriever" or not dot:
            refuse(
                [f"--{name}"],
                [*known.flags, "--qrels", "--relevant-field", "--retriever", "--k", "--recall", "--save-ef"],
            )
        options[option] = yaml.safe_load(value)
    return options


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}"
    return f"{value:,.0f}" if value > 1 else f"{value:.4f}"

"""Vectors kept in Milvus: embedded in a folder, or in a server or cluster for corpora that outgrow one machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.files import new_folder, sha256_of_json
from peft_rag.places import cache_folder
from peft_rag.retrieval.base import Encoder, Neighbours, Retriever
from peft_rag.retrieval.recorded import about_index, check_encoder, manifest_of, recorded_encoder
from peft_rag.retrieval.storage import write_manifest
from peft_rag.retrieval.vectors import check_finite, empty_neighbours, fill_nearest, pair_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus

FORMAT = 1
POSITION, VECTOR = "position", "vector"

_MOST = 16_384  # Milvus returns no more for one query
_INSERT = 1_000
_SLACK = 8
_ROUNDING = 1e-5


class MilvusRetriever(Retriever):
    """Cosine similarity of sentence vectors kept in Milvus, embedded (milvus-lite) or a server.

    Milvus proposes; scores are recomputed in float64 from the vectors it returns, so they equal those of exact search.
    Excluded positions are masked after fetching more than asked for. The collection is named by a hash of corpus,
    encoder and index, and is used again where it is complete.

    Source: Wang et al. 2021, doi:10.1145/3448016.3457550.
    """

    name = "milvus"

    def __init__(self, encoder: Encoder, *, uri: str = "", index_type: str = "FLAT") -> None:
        """Take encoder and options; nothing is connected yet.

        Args:
            encoder: what turns texts into vectors.
            uri: a server, e.g. http://localhost:19530, with $MILVUS_TOKEN as its token if it asks for one; or a path
                ending in .db; empty for one in the cache folder.
            index_type: Milvus's index; FLAT is exact, AUTOINDEX leaves the choice to the server.
        """
        self.encoder = encoder
        self.uri, self.index_type = uri, index_type
        self._client: Any = None
        self._collection, self._documents = "", 0

    @property
    def cosine(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {"index_type": self.index_type}

    def encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        parts = [FORMAT, corpus.fingerprint, self.encoder.fingerprint, self.index_type]
        collection = "peft_rag_" + sha256_of_json(parts).removeprefix("sha256:")[:32]
        client = _connect(self.uri, collection)
        with _explained(self.uri):
            if _count(client, collection) != len(corpus):
                self._fill(client, collection, corpus, progress)
            client.load_collection(collection)
        self._client, self._collection, self._documents = client, collection, len(corpus)
        self.corpus_fingerprint = corpus.fingerprint

    def _fill(self, client: Any, collection: str, corpus: Corpus, progress: str | None) -> None:
        from pymilvus import DataType

        if client.has_collection(collection):
            client.drop_collection(collection)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(POSITION, DataType.INT64, is_primary=True)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=self.encoder.dimension)
        params = client.prepare_index_params()
        params.add_index(VECTOR, index_type=self.index_type, metric_type="IP")
        client.create_collection(collection, schema=schema, index_params=params, consistency_level="Strong")
        vectors = self.encoder.encode(corpus.texts, progress)
        check_finite(vectors, "indexed")
        for start in range(0, len(vectors), _INSERT):
            rows = enumerate(vectors[start : start + _INSERT], start=start)
            client.insert(collection, [{POSITION: position, VECTOR: vector} for position, vector in rows])
        client.flush(collection)

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        if k > _MOST:
            raise ConfigError(f"milvus returns at most {_MOST:,} documents for a query, but k is {k:,}.")
        found = empty_neighbours(len(texts), k)
        if len(texts):
            queries = self.encoder.encode(texts, progress)
            check_finite(queries, "query")
            with _explained(self.uri):
                for row in range(len(texts)):
                    self._search_one(queries[row : row + 1], row, set(exclude[row]) if exclude else set(), found)
        return found

    def _search_one(self, query: NDArray[np.float32], row: int, excluded: set[int], found: Neighbours) -> None:
        """Fetch until nothing left could tie with the last neighbour, and write the nearest."""
        import numpy as np

        wanted = min(self._documents, _MOST)
        masked = found.k + len(excluded) + _SLACK <= _MOST
        limit = min(found.k + (len(excluded) if masked else 0) + _SLACK, wanted)
        while True:
            positions, vectors = self._fetch(query, limit, () if masked else excluded)
            scores = pair_scores(query, vectors, np.zeros(len(positions), dtype=np.int64), np.arange(len(positions)))
            allowed = ~np.isin(positions, list(excluded))
            least = np.sort(scores[allowed])[::-1][: found.k]
            settled = len(least) == found.k and scores.min() < least[-1] - _ROUNDING
            if settled or limit >= wanted:
                break
            limit = min(4 * limit, wanted)
        rows = np.zeros(int(allowed.sum()), dtype=np.int64)
        fill_nearest(found, row, rows, positions[allowed], scores[allowed])

    def _fetch(
        self, query: NDArray[np.float32], limit: int, excluded: Collection[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return Milvus's candidates and their vectors."""
        import numpy as np

        hits = self._client.search(
            self._collection,
            data=[query[0].tolist()],
            anns_field=VECTOR,
            limit=limit,
            search_params={"metric_type": "IP"},
            output_fields=[VECTOR],
            filter=f"{POSITION} not in {sorted(excluded)}" if excluded else "",
        )[0]
        positions = np.array([hit[POSITION] for hit in hits], dtype=np.int64)
        vectors = np.array([hit["entity"][VECTOR] for hit in hits], dtype=np.float32)
        return positions, vectors.reshape(len(hits), query.shape[1])

    def save(self, folder: Path) -> None:
        """Write where the vectors are kept and what they belong to; the vectors stay in Milvus.

        Raises:
            RetrievalError: nothing has been indexed.
            ArtefactError: the folder already holds something.
        """
        self.require_index()
        about = {
            **about_index(self, FORMAT, self.encoder),
            "uri": self.uri,
            "collection": self._collection,
            "count": self._documents,
        }
        with new_folder(folder) as working:
            write_manifest(working, about)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> MilvusRetriever:
        """Connect to the vectors that a folder written by `save` names.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name if None.

        Raises:
            RetrievalError: the folder holds no index, a damaged one, or another retriever's; or Milvus cannot be
                reached or has lost the vectors.
            FingerprintError: the encoder is not the one it was built with.
        """
        manifest = manifest_of(cls, folder, FORMAT)
        retriever = cls(encoder or recorded_encoder(manifest), uri=manifest["uri"], **manifest["settings"])
        check_encoder(retriever, retriever.encoder, manifest, folder)
        collection, documents = manifest["collection"], manifest["count"]
        client = _connect(retriever.uri, collection)
        with _explained(retriever.uri):
            held = _count(client, collection)
            if held == documents:
                client.load_collection(collection)
        if held != documents:
            raise RetrievalError(
                f"the index '{folder}' has {documents:,} vectors in Milvus, but the collection '{collection}' holds "
                f"{held or 'none'}. Build it anew."
            )
        retriever._client, retriever._collection, retriever._documents = client, collection, documents
        retriever.corpus_fingerprint = manifest["corpus_fingerprint"]
        return retriever


def _connect(uri: str, collection: str) -> Any:
    """Open a client; an embedded database is a file of its own for each collection unless the user names one."""
    import os

    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise RetrievalError(
            f"the retriever 'milvus' needs pymilvus ({error}). Install it: pip install \"peft-rag[milvus]\"."
        ) from error
    if not uri:
        path = cache_folder() / "milvus" / f"{collection}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = str(path)
    with _explained(uri):
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))


def _count(client: Any, collection: str) -> int | None:
    """Return how many vectors a collection holds; None if there is none of that name."""
    if not client.has_collection(collection):
        return None
    return int(client.get_collection_stats(collection)["row_count"])


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn whatever Milvus raises into one error of one line."""
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200].rstrip(".")
        raise RetrievalError(
            f"milvus at '{uri or cache_folder() / 'milvus'}' failed ({reason}). "
            "Check that it can be reached and that no other process has it open."
        ) from error

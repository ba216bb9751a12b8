"""Search by the words that query and document share, without any encoder."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from peft_rag.errors import ConfigError
from peft_rag.files import new_folder, write_text
from peft_rag.retrieval.base import Encoder, Neighbours, Retriever
from peft_rag.retrieval.recorded import about_index, manifest_of
from peft_rag.retrieval.storage import load_array, save_array, write_manifest
from peft_rag.retrieval.vectors import empty_neighbours, fill_nearest

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus

FORMAT = 1
TERMS = "terms.json"
ARRAYS = ("data", "indices", "indptr")

# regex, unlike re, takes combining marks (Indic vowel signs, Thai tones, accents) for a part of their letter's word.
# Scripts that are written without spaces: each of their characters is a term, as in Lucene's StandardTokenizer.
_UNSPACED = r"\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TERM = regex.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class BM25Retriever(Retriever):
    """Okapi BM25 over words, through bm25s; no encoder is used.

    score(q, d) = Σ_{t in q} idf(t) · tf(t, d) / (tf(t, d) + k1 · (1 - b + b · |d| / avgdl)),
    idf(t) = ln(1 + (N - df(t) + ½) / (df(t) + ½)), which is positive, so that a document's score is 0 exactly when it
    shares no term with the query; such a document is no neighbour.

    Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; Lù 2024, arXiv:2407.03618.
    """

    name = "bm25"

    def __init__(self, encoder: Encoder | None = None, *, k1: float = 1.5, b: float = 0.75) -> None:
        """Take the options.

        Args:
            encoder: not used; every retriever is given one.
            k1: how slowly a term's repetitions stop counting; 0 counts each term once.
            b: how far long documents are held back, from 0 (not at all) to 1.

        Raises:
            ConfigError: an option is out of range.
        """
        if not 0 <= k1 < float("inf"):
            raise ConfigError(f"bm25 option k1 must be a number of at least 0, but is {k1!r}.")
        if not 0 <= b <= 1:
            raise ConfigError(f"bm25 option b must be from 0 to 1, but is {b!r}.")
        self.k1, self.b = float(k1), float(b)
        self._scorer: Any = None
        self._documents = 0

    def settings(self) -> dict[str, Any]:
        return {"k1": self.k1, "b": self.b}

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        from tqdm import tqdm

        texts = tqdm(corpus.texts, desc=progress, unit="text", disable=progress is None)
        documents = [terms(text) for text in texts]
        vocabulary = {term: number for number, term in enumerate(sorted({term for one in documents for term in one}))}
        scorer = _new_scorer(self.k1, self.b)
        if vocabulary:
            ids = [[vocabulary[term] for term in one] for one in documents]
            scorer.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        else:
            _restore(scorer, _no_scores(), {}, len(corpus))
        self._scorer, self._documents = scorer, len(corpus)
        self.corpus_fingerprint = corpus.fingerprint

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        import numpy as np
        from tqdm import tqdm

        found = empty_neighbours(len(texts), k)
        for row, text in enumerate(tqdm(texts, desc=progress, unit="query", disable=progress is None)):
            scores = self._scores(text)
            if exclude is not None and len(exclude[row]):
                scores[list(exclude[row])] = 0
            columns = _best(scores, k)
            fill_nearest(found, row, np.zeros(len(columns), dtype=np.int64), columns, scores[columns])
        return found

    def _scores(self, text: str) -> Any:
        """Return every document's score, float32 ``(N,)``; the order of a query's words makes no difference."""
        import numpy as np

        vocabulary = self._scorer.vocab_dict
        ids = sorted(vocabulary[term] for term in terms(text) if term in vocabulary)
        if not ids:
            return np.zeros(self._documents, dtype=np.float32)
        return self._scorer.get_scores_from_ids(ids)

    def save(self, folder: Path) -> None:
        self.require_index()
        about = {
            **about_index(self, FORMAT),
            "count": self._documents,
        }
        with new_folder(folder) as working:
            for name in ARRAYS:
                save_array(working / f"{name}.npy", self._scorer.scores[name])
            write_text(working / TERMS, json.dumps(list(self._scorer.vocab_dict), ensure_ascii=False) + "\n")
            write_manifest(working, about)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> BM25Retriever:
        """Read an index that `save` wrote; the encoder is not used.

        Raises:
            RetrievalError: the folder holds no index, a damaged one, or another retriever's.
        """
        manifest = manifest_of(cls, folder, FORMAT)
        retriever = cls(encoder, **manifest["settings"])
        names = json.loads((folder / TERMS).read_text(encoding="utf-8"))
        scores = {name: load_array(folder / f"{name}.npy") for name in ARRAYS}
        vocabulary = {term: number for number, term in enumerate(names)}
        retriever._documents = manifest["count"]
        retriever._scorer = _new_scorer(retriever.k1, retriever.b)
        _restore(retriever._scorer, scores, vocabulary, retriever._documents)
        retriever.corpus_fingerprint = manifest["corpus_fingerprint"]
        return retriever


def terms(text: str) -> list[str]:
    """Split a text into the terms that are compared: words without case, in NFKC form.

    Han characters and hiragana, which are written without spaces, are terms one by one.

    >>> terms("Don't re-index the ﬁle_name: 検索!")
    ['don', 't', 're', 'index', 'the', 'file', 'name', '検', '索']
    """
    found: list[str] = _TERM.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def _new_scorer(k1: float, b: float) -> Any:
    with nullcontext() if "bm25s" in sys.modules else _hidden("jax"):
        import bm25s

    return bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Inside the block, let an import find that a module is not installed.

    Where there is JAX, bm25s starts it on being imported, and JAX then takes three quarters of the accelerator's memory
    from the model. It would choose the best scores with it, which is done here.
    """
    loaded = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if loaded is not None:
            sys.modules[module] = loaded


def _restore(scorer: Any, scores: dict[str, Any], vocabulary: dict[str, int], documents: int) -> None:
    """Put into a scorer what indexing would."""
    scorer.scores = {**scores, "num_docs": documents}
    scorer.vocab_dict = vocabulary
    scorer.unique_token_ids_set = set(vocabulary.values())
    scorer.nonoccurrence_array = None


def _no_scores() -> dict[str, Any]:
    import numpy as np

    return {
        "data": np.zeros(0, dtype=np.float32),
        "indices": np.zeros(0, dtype=np.int32),
        "indptr": np.zeros(1, dtype=np.int64),
    }


def _best(scores: Any, k: int) -> Any:
    """Return the positions of all scores above 0 that could be among the best ``k``, ties of the last included."""
    import numpy as np

    bound = np.partition(scores, -k)[-k] if k < len(scores) else 0
    columns: Any = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores > 0)
    return columns

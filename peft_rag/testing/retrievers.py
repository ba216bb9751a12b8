"""The conformance kit of retrievers."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import (
    ArtefactError,
    ConfigError,
    ConformanceError,
    FingerprintError,
    PeftRagError,
    RetrievalError,
    ShapeError,
)
from peft_rag.registry import RETRIEVERS, load
from peft_rag.retrieval.base import NO_POSITION, Encoder, Neighbours, Retriever
from peft_rag.retrieval.vectors import normalise

COUNT = "k nearest, fewer only where fewer are eligible"
FORM = "positions and scores, padded with -1 and -inf"
ORDER = "higher scores first, equal ones by position"
OWN = "a document is found by its own text"
EXCLUDED = "excluded documents never come back and nothing is filled in"
REPEAT = "the same result each time"
BATCH = "a batch equals its queries one by one"
MISUSE = "misuse is an error"
REINDEX = "indexing again replaces the corpus"
SAVED = "save and load"
DAMAGE = "a damaged index is refused"
FINGERPRINT = "the fingerprint follows settings, encoder and corpus"

_COPIES = 5

MakeRetriever = Callable[..., Retriever]


class WordEncoder:
    """An encoder for tests: sums a fixed random vector for each word, so texts that share words are alike."""

    name = "words"

    def __init__(self, seed: int = 0, dimension: int = 64) -> None:
        """Choose the words' vectors by a seed."""
        self.seed = seed
        self.dimension = dimension

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the vectors."""
        return f"words-{self.seed}-{self.dimension}"

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return vectors of length 1, ``(N, D)``; the same for a text whatever stands beside it."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row] = np.sum([self._word(word) for word in sorted(text.lower().split())], axis=0)
        return normalise(vectors)

    def _word(self, word: str) -> NDArray[np.float64]:
        digest = hashlib.sha256(f"{self.seed} {word}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(size=self.dimension)


@dataclass(frozen=True)
class RetrieverCheck:
    """What `check_retriever` found to hold.

    Attributes:
        checked: the properties that hold.
        skipped: the properties not asked for, with the reason.
    """

    checked: tuple[str, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"holds: {name}" for name in self.checked]
        return "\n".join([*lines, *(f"not asked: {name} ({reason})" for name, reason in self.skipped.items())])


@dataclass
class _Case:
    """One way to make a retriever, and what has been found so far."""

    make: MakeRetriever
    options: Mapping[str, Any]
    corpus: Corpus
    checked: list[str] = field(default_factory=list)

    @contextmanager
    def property(self, name: str) -> Iterator[None]:
        """Note that a property holds, or say which does not."""
        try:
            yield
        except ConformanceError as error:
            raise ConformanceError(f"{name}: {error}") from error
        except Exception as error:
            raise ConformanceError(f"{name}: {type(error).__name__}: {error}") from error
        self.checked.append(name)

    def new(self, encoder: Encoder | None = None, **changed: Any) -> Retriever:
        """Make a retriever that holds nothing yet."""
        return self.make(encoder or WordEncoder(), **{**self.options, **changed})

    def built(self) -> Retriever:
        """Make a retriever over the corpus."""
        retriever = self.new()
        retriever.index(self.corpus)
        return retriever


def check_retriever(
    retriever: str | MakeRetriever, *, changed: Mapping[str, Any] | None = None, documents: int = 200, **options: Any
) -> RetrieverCheck:
    """Check that a retriever keeps its promises, over a small corpus of words that the kit brings.

    The properties are this module's constants. Every document of the corpus shares a word with every query, so all
    are eligible unless excluded. An empty corpus cannot be asked for: `Corpus` refuses to be one.

    Args:
        retriever: a name, or what makes a retriever of an encoder and options, as a retriever's class does.
        changed: options that must change the fingerprint; None for a retriever that has none.
        documents: how many documents the corpus holds, at least 40.
        options: the retriever's options.

    Returns:
        What was checked.

    Raises:
        ConformanceError: a property does not hold; the message begins with its name.
        UnknownRetrieverError: no retriever has that name.
    """
    make: MakeRetriever = load(RETRIEVERS, retriever) if isinstance(retriever, str) else retriever
    case = _Case(make, options, kit_corpus(documents))
    with case.property(MISUSE):
        _check_misuse(case)
    built = case.built()
    queries = [document.text for document in case.corpus[:8]]
    for name, check in (
        (FORM, _check_form),
        (ORDER, _check_order),
        (COUNT, _check_count),
        (OWN, _check_own),
        (EXCLUDED, _check_excluded),
        (BATCH, _check_batch),
    ):
        with case.property(name):
            check(built, case.corpus, queries)
    with case.property(REPEAT):
        for again in (built, case.built()):
            _same(built.search(queries, 7), again.search(queries, 7), "asked again")
    with case.property(REINDEX):
        _check_reindex(case)
    with tempfile.TemporaryDirectory() as folder:
        with case.property(SAVED):
            _check_saved(case, built, Path(folder) / "index", queries)
        with case.property(DAMAGE):
            _check_damage(built, Path(folder) / "index")
    with case.property(FINGERPRINT):
        _check_fingerprint(case, built, changed)
    skipped = {} if changed is not None else {"the fingerprint follows settings": "no changed option was given"}
    return RetrieverCheck(tuple(case.checked), skipped)


def kit_corpus(documents: int = 200, seed: int = 0) -> Corpus:
    """Make a corpus of eight-word texts; one word is in all of them, and one text is there `_COPIES` times."""
    if documents < 8 * _COPIES:
        raise ConfigError(f"the kit needs a corpus of at least {8 * _COPIES} documents, not {documents}.")
    draw = np.random.default_rng(seed)
    texts = [" ".join(["common", *(f"word{number}" for number in draw.integers(0, 60, 7))]) for _ in range(documents)]
    for copy in range(1, _COPIES):
        texts[-copy * (documents // _COPIES)] = texts[0]
    return Corpus([Document(f"d{number}", text) for number, text in enumerate(texts)], f"kit corpus {seed}")


def _check_misuse(case: _Case) -> None:
    retriever = case.new()
    with tempfile.TemporaryDirectory() as folder:
        _raises(RetrievalError, "search before index", lambda: retriever.search(["common"], 1))
        _raises(RetrievalError, "save before index", lambda: retriever.save(Path(folder) / "index"))
        _raises(RetrievalError, "load of a folder without an index", lambda: _load(retriever, Path(folder)))
    retriever.index(case.corpus)
    _raises(ConfigError, "k = 0", lambda: retriever.search(["common"], 0))
    _raises(ConfigError, "k = -1", lambda: retriever.search(["common"], -1))
    _raises(ShapeError, "two exclusions for one query", lambda: retriever.search(["common"], 1, [[], []]))


def _check_form(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    for texts, k in ((queries, 1), (queries, 7), (queries, len(corpus) + 3), ([], 2)):
        found = retriever.search(texts, k)
        kinds = [str(found.positions.dtype), str(found.scores.dtype)]
        _require(kinds == ["int64", "float32"], f"types are {' and '.join(kinds)}, not int64 and float32")
        _require(found.positions.shape == (len(texts), k), f"shape {found.positions.shape}, not {(len(texts), k)}")
        padded = found.positions == NO_POSITION
        _require(bool((np.diff(padded.astype(int), axis=1) >= 0).all()), "padding stands before a neighbour")
        _require(bool((np.isneginf(found.scores) == padded).all()), "-inf and -1 do not stand in the same places")
        _require(bool(np.isfinite(found.scores[~padded]).all()), "a neighbour's score is not finite")
        held = found.positions[~padded]
        _require(bool(((held >= 0) & (held < len(corpus))).all()), "a position is not in the corpus")
        for row in range(len(found)):
            positions = [position for position, _ in found.row(row)]
            _require(len(set(positions)) == len(positions), f"query {row} has a neighbour twice")


def _check_count(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    for k in (1, 3, len(corpus), len(corpus) + 3):
        found = retriever.search(queries, k)
        for row in range(len(queries)):
            wanted, got = min(k, len(corpus)), len(found.row(row))
            _require(got == wanted, f"k = {k} of {len(corpus)} documents gave {got} neighbours, not {wanted}")
    few, more = retriever.search(queries, 3), retriever.search(queries, 10)
    _same(few, more.head(3), "the first 3 of 10 and 3 alone")


def _check_order(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    found = retriever.search(queries, len(corpus))
    for row in range(len(queries)):
        pairs = found.row(row)
        keys = [(-score, position) for position, score in pairs]
        _require(keys == sorted(keys), f"query {row} is not in the order of scores and positions")
    copies = [position for position, text in enumerate(corpus.texts) if text == corpus[0].text]
    for k in range(1, len(copies) + 1):
        got = [position for position, _ in retriever.search([corpus[0].text], k).row(0)]
        _require(got == copies[: len(got)], f"of equal documents {copies}, k = {k} gave {got}, not {copies[:k]}")


def _check_own(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    found = retriever.search(queries, 5)
    for row, text in enumerate(queries):
        texts = [corpus[position].text for position, _ in found.row(row)]
        _require(text in texts, f"document {row} is not among the 5 nearest of its own text")


def _check_excluded(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    everything = range(len(corpus))
    best = [set(row) for row in retriever.search(queries, 10).positions.tolist()]
    for k in (1, 5, len(corpus)):
        for name, exclude in (
            ("the 10 nearest", best),
            ("all but 4", [set(everything) - {1, 5, 9, 13}] * len(queries)),
            ("all", [everything] * len(queries)),
        ):
            found = retriever.search(queries, k, exclude)
            for row, forbidden in enumerate(exclude):
                got = [position for position, _ in found.row(row)]
                _require(not set(got) & set(forbidden), f"with {name} excluded, k = {k}, an excluded one came back")
                wanted = min(k, len(corpus) - len(forbidden))
                _require(len(got) == wanted, f"with {name} excluded, k = {k} gave {len(got)}, not {wanted}")
    free = retriever.search(queries[:2], 5)
    mixed = retriever.search(queries[:2], 5, [(), best[1]])
    _require(mixed.row(0) == free.row(0), "what is excluded for one query changes another's neighbours")


def _check_batch(retriever: Retriever, corpus: Corpus, queries: Sequence[str]) -> None:
    together = retriever.search(queries, 7)
    for row, text in enumerate(queries):
        alone = retriever.search([text], 7)
        _require(alone.row(0) == together.row(row), f"query {row} has other neighbours alone than in a batch")


def _check_reindex(case: _Case) -> None:
    other = kit_corpus(len(case.corpus) // 2 + 4 * _COPIES, seed=1)
    again, fresh = case.built(), case.new()
    again.index(other)
    fresh.index(other)
    texts = other.texts[:4]
    _same(again.search(texts, len(other)), fresh.search(texts, len(other)), "indexed second and indexed first")
    _require(again.fingerprint == fresh.fingerprint, "the fingerprint remembers the corpus indexed before")


def _check_saved(case: _Case, built: Retriever, folder: Path, queries: Sequence[str]) -> None:
    built.save(folder)
    loaded = _load(built, folder)
    exclude = [{row, row + 1} for row in range(len(queries))]
    for excluding in (None, exclude):
        wanted = built.search(queries, 7, excluding)
        _same(wanted, loaded.search(queries, 7, excluding), "before saving and after loading")
    _require(loaded.fingerprint == built.fingerprint, "the fingerprint is another after loading")
    _require(loaded.corpus_fingerprint == case.corpus.fingerprint, "the corpus's fingerprint is lost in loading")
    _require(loaded.settings() == built.settings(), "the settings are others after loading")
    _raises(ArtefactError, "saving over what is there", lambda: built.save(folder))
    if built.encoder_fingerprint():
        _raises(FingerprintError, "loading with another encoder", lambda: _load(built, folder, WordEncoder(seed=1)))


def _check_damage(built: Retriever, folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        name = path.relative_to(folder)
        for what, spoilt in (
            ("a changed byte", content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :]),
            ("its end cut off", content[: len(content) // 2]),
        ):
            if spoilt != content:
                path.write_bytes(spoilt)
                _raises(PeftRagError, f"{name} with {what}", lambda: _load(built, folder))
        path.unlink()
        _raises(PeftRagError, f"{name} removed", lambda: _load(built, folder))
        path.write_bytes(content)
    _load(built, folder)


def _check_fingerprint(case: _Case, built: Retriever, changed: Mapping[str, Any] | None) -> None:
    settings = built.settings()
    _require(json.loads(json.dumps(settings)) == settings, f"settings {settings} do not survive JSON")
    base = case.new().fingerprint_for(case.corpus.fingerprint)
    _require(built.corpus_fingerprint == case.corpus.fingerprint, "corpus_fingerprint is not that of the corpus")
    _require(built.fingerprint == base, "two retrievers made alike have two fingerprints")
    _require(case.new().fingerprint_for("another corpus") != base, "another corpus has the same fingerprint")
    if changed is not None:
        other = case.new(**changed).fingerprint_for(case.corpus.fingerprint)
        _require(other != base, f"the option {dict(changed)} does not change the fingerprint")
    if built.encoder_fingerprint():
        other = case.new(WordEncoder(seed=1)).fingerprint_for(case.corpus.fingerprint)
        _require(other != base, "another encoder has the same fingerprint")


def _load(retriever: Retriever, folder: Path, encoder: Encoder | None = None) -> Retriever:
    """Load with the kit's encoder, which cannot be found by name, where the retriever takes one."""
    kind: Any = type(retriever)
    takes = "encoder" in inspect.signature(kind.load).parameters
    loaded: Retriever = kind.load(folder, encoder or WordEncoder()) if takes else kind.load(folder)
    return loaded


def _raises(kind: type[Exception], what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except kind:
        return
    except Exception as error:
        raise ConformanceError(f"{what} raised {type(error).__name__} ({error}), not {kind.__name__}") from error
    raise ConformanceError(f"{what} raised nothing, not {kind.__name__}")


def _same(wanted: Neighbours, found: Neighbours, what: str) -> None:
    same = np.array_equal(wanted.positions, found.positions) and np.array_equal(wanted.scores, found.scores)
    _require(same, f"results differ: {what}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConformanceError(message)

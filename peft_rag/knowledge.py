"""The corpus and how it is searched, handed to a model as one thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, DataError, RetrievalError
from peft_rag.fusion.base import Split
from peft_rag.parts import make_part
from peft_rag.places import cache_folder
from peft_rag.registry import RETRIEVERS, load
from peft_rag.retrieval.base import Retriever
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.leaks import with_similar
from peft_rag.retrieval.neighbours import Query, forbidden_positions, precompute_neighbours
from peft_rag.retrieval.overlap import OverlapReport, find_overlap
from peft_rag.retrieval.stored import is_index
from peft_rag.retrieval.tuned import QueryEncoder, as_vector_retriever, tuned_neighbours
from peft_rag.tasks.base import Example, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.config import RunConfig
    from peft_rag.data import Splits
    from peft_rag.model import RetrievalAugmentedModel


STORE = "store"


@dataclass(frozen=True)
class Knowledge:
    """What can be retrieved, and by what.

    Attributes:
        corpus: the documents.
        retriever: finds them by text.
        retriever_name: the name it was picked by.
        retriever_options: the options it was made with.
        encoder: name of its sentence encoder.
        fields: how the corpus is read from its source again (`peft_rag.data.CorpusFields`).
        cache: folder of precomputed neighbours.
        leak_threshold: documents of at least that cosine with an example count as its own text; 0 for none.
        min_score: documents less similar to an example than this are no neighbours of it, in the retriever's own
            units; None for no such limit.
    """

    corpus: Corpus
    retriever: Retriever
    retriever_name: str
    encoder: str
    retriever_options: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    cache: Path = field(default_factory=cache_folder)
    leak_threshold: float = 0.0
    min_score: float | None = None

    def __post_init__(self) -> None:
        """Check that the thresholds mean something.

        Raises:
            ConfigError: one is out of range, or ``leak_threshold`` is given where the scores are no cosines.
        """
        if not 0 <= self.leak_threshold <= 1:
            raise ConfigError(f"leak_threshold is {self.leak_threshold}; it is a cosine from 0 (off) to 1.")
        if self.leak_threshold and not self.retriever.cosine:
            raise ConfigError(
                f"leak_threshold is a cosine, but the scores of retriever '{self.retriever_name}' are none. Pick a "
                "retriever that compares sentence vectors (--retriever hnsw or exact), or leave the threshold at 0."
            )
        if self.min_score is None:
            return
        # Scores that are no cosines (bm25, hybrid, inner products) have no bounds that hold for every corpus.
        if not math.isfinite(self.min_score) or (self.retriever.cosine and abs(self.min_score) > 1):
            scale = "a cosine from -1 to 1" if self.retriever.cosine else "a number"
            raise ConfigError(
                f"min_score is {self.min_score}, but a score of retriever '{self.retriever_name}' is {scale}. "
                "Choose one that it can reach, or leave --min_score out."
            )

    def split(
        self,
        examples: Sequence[Example],
        k: int,
        *,
        name: str,
        same_data: bool = False,
        exclude_duplicates: bool,
        tower: QueryEncoder | None = None,
    ) -> Split:
        """Find k neighbours for each example, once and for all, and what each must never see.

        Args:
            examples: the queries.
            k: neighbours wanted; with 0 nothing is searched by text.
            name: of the split, for progress bars; none if empty.
            same_data: whether the examples are the corpus, so that each must not find itself.
            exclude_duplicates: whether documents with an example's own text, or one too much like it, are forbidden
                to it.
            tower: gives the query vectors in place of the retriever's encoder.
        """
        threshold = self.leak_threshold if exclude_duplicates else 0.0
        queries, k = _queries(examples), min(k, len(self.corpus))
        leaks = {"same_data": same_data, "exclude_duplicates": exclude_duplicates}
        forbidden = forbidden_positions(self.corpus, queries, **leaks)
        texts, found = [query.text for query in queries], None
        if threshold:
            forbidden = with_similar(
                forbidden, self.retriever, self.corpus, texts, threshold, cache_folder=self.cache, name=name
            )
        if k and tower is None:
            found = precompute_neighbours(
                self.retriever,
                self.corpus,
                queries,
                k,
                cache_folder=self.cache,
                name=name,
                leak_threshold=threshold,
                **leaks,
            )
        elif k and tower is not None:
            retriever = as_vector_retriever(self.retriever, self.retriever_name)
            found = tuned_neighbours(
                retriever, tower, self.corpus, texts, k, forbidden, leak_threshold=threshold, name=name
            )
        if found is not None and self.min_score is not None:
            found = found.at_least(self.min_score)
        return Split(examples, found, forbidden if any(forbidden) else ())

    @property
    def separate(self) -> bool:
        """Whether the documents are other data than what was learned from.

        Of a text whose answer is known they may then give it away: measuring must leave those out that are the text.
        """
        return bool(self.fields.get("exchanged")) or not self.fields.get("is_training_data", False)

    @property
    def vector_size(self) -> int:
        """The length of the vectors that `embed` gives; 0 where the retriever has no sentence encoder."""
        encoder = getattr(self.retriever, "encoder", None)
        return 0 if encoder is None else int(encoder.dimension)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Turn texts into vectors ``(N, V)`` by the retriever's sentence encoder; what was encoded once is kept.

        Raises:
            ConfigError: the retriever has none.
        """
        encoder = getattr(self.retriever, "encoder", None)
        if encoder is None:
            raise ConfigError(
                f"this fusion works on sentence vectors, but retriever '{self.retriever_name}' has none. Pick one that "
                "has (--retriever hnsw or exact)."
            )
        vectors: NDArray[np.float32] = encoder.encode(texts)
        return vectors

    def overlap(self, examples: Sequence[Example], *, near: bool = True) -> OverlapReport:
        """Find the examples that stand in the corpus, word for word or nearly.

        Args:
            examples: the queries.
            near: whether near ones are looked for too, by the retriever; one whose scores are no cosines cannot.
        """
        retriever = self.retriever if near and self.retriever.cosine else None
        return find_overlap(_queries(examples), self.corpus, retriever, cache_folder=self.cache)

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact must remember to know this knowledge again."""
        return {
            "corpus": {
                "source": self.corpus.name,
                **self.fields,
                "fingerprint": self.corpus.fingerprint,
                "documents": len(self.corpus),
            },
            "retriever": {
                "name": self.retriever_name,
                "options": self.retriever_options,
                "encoder": self.encoder,
                "fingerprint": self.retriever.fingerprint_for(self.corpus.fingerprint),
            },
            "min_score": self.min_score,
            "leak_threshold": self.leak_threshold,
        }


def _queries(examples: Sequence[Example]) -> list[Query]:
    return [Query(example.id, example.asked, example.group) for example in examples]


def labelled_examples(knowledge: Knowledge, task: Task) -> list[Example]:
    """Return the corpus as labelled examples of a task."""
    name = knowledge.corpus.name
    return [task.example_of(document, f"corpus '{name}' document '{document.id}'") for document in knowledge.corpus]


def find_for(
    task: Task, knowledge: Knowledge, examples: Sequence[Example], k: int, *, learn: bool = False, **options: Any
) -> Split:
    """Find k neighbours for each of a task's examples, and open them where the task takes its answers from these.

    Args:
        task: whose examples they are.
        knowledge: what is searched.
        examples: as they were read.
        k: neighbours wanted.
        learn: whether they are learned from.
        options: of `Knowledge.split`.
    """
    if not task.opens:
        return knowledge.split(examples, k, **options)
    split = knowledge.split([task.alone(example) for example in examples], k, **options)
    opened = []
    for number, example in enumerate(examples):
        found = split.neighbours.row(number) if split.neighbours is not None else []
        documents = [knowledge.corpus[position] for position, _ in found]
        opened.append(task.opened(example, documents, learn=learn))
    return replace(split, examples=opened)


def answers_alone(task: Task, corpus: Corpus) -> bool:
    """Say whether documents can answer by themselves: each bears labels, and none that the task does not know."""
    if not (task.one_decision and task.votes and all(document.labels for document in corpus)):
        return False
    try:
        task.targets([task.example_of(document, "") for document in corpus])
    except (DataError, RetrievalError):
        return False
    return True


def split_for(
    model: RetrievalAugmentedModel, examples: Sequence[Example], name: str, exclude_duplicates: bool
) -> Split:
    """Find for some examples what a model's answers to them need.

    Raises:
        RetrievalError: it retrieves, but has nothing to retrieve from.
    """
    fusion, knowledge = model.effective_fusion, model.knowledge
    if knowledge is None:
        if fusion.neighbours_wanted or fusion.needs_labels:
            raise RetrievalError(
                "this model retrieves, but was given no corpus. Pass the corpus it was trained with (--corpus)."
            )
        return Split(examples)
    title = name if model.progress_bars and len(examples) > 1 else ""
    find = partial(find_for, model.task, knowledge, examples, fusion.neighbours_wanted)
    return find(name=title, exclude_duplicates=exclude_duplicates, tower=model.tower)


def knowledge_for(config: RunConfig, splits: Splits) -> Knowledge:
    """Return what a run retrieves from, by the retriever that it names."""
    options = config.part_options("retriever")
    return Knowledge(
        splits.corpus,
        make_retriever(config.retriever, config.encoder, options, splits.fields.source),
        config.retriever or retriever_for(splits.fields.source),
        config.encoder,
        options,
        asdict(splits.fields),
        leak_threshold=config.leak_threshold,
        min_score=config.min_score,
    )


def make_retriever(name: str, encoder: str, options: dict[str, Any] | None = None, source: Any = "") -> Retriever:
    """Make a retriever over a sentence encoder.

    Args:
        name: a name that ``peft-rag retrievers`` lists; if empty, what `retriever_for` says.
        encoder: name of the sentence encoder.
        options: the retriever's own.
        source: where the corpus comes from; where that is an index, ``store`` searches it unless told otherwise.

    Raises:
        UnknownRetrieverError: no retriever has that name.
        ConfigError: an option is unknown, or its value is refused.
        RetrievalError: the index that is to be searched is damaged.
        FingerprintError: that index was built with another encoder.
    """
    name, options = name or retriever_for(source), dict(options or {})
    if name == STORE and is_index(source):
        options.setdefault("folder", str(source))
    retriever: Retriever = make_part(load(RETRIEVERS, name), "retriever", options, make_encoder(encoder))
    return retriever


def make_encoder(name: str) -> SentenceEncoder:
    """Make a sentence encoder that keeps what it has encoded on disk; nothing is loaded yet."""
    return SentenceEncoder(name, cache=cache_folder())


def retriever_for(source: Any) -> str:
    """Return the name of the retriever for a corpus where none is named: its own index if it is one, else hnsw."""
    return STORE if is_index(source) else "hnsw"

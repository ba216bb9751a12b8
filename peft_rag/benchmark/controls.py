"""What retrieval is worth: the trained model's answers with other neighbours in place of those that were retrieved.

Nothing is trained or fitted here: the model, its fusion and how far that counts stay as they were chosen on validation.
The arms are

- ``random``: as many documents drawn at random, under the similarities of those that were retrieved;
- ``shuffled``: the retrieved documents, their labels permuted over the corpus;
- ``oracle``: the nearest documents that carry a label of the example's own;
- ``filler``: for a fusion whose inputs hold neighbours, words without content, token for token as long.

Dims: N examples, K neighbours, D dimensions, M documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_rag.corpus import Corpus
from peft_rag.fusion.base import PASSAGES, READ, Fusion, Memory, Outputs, Reader, Split
from peft_rag.fusion.knn import unit
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.none import NoFusion
from peft_rag.retrieval.base import NO_POSITION, Neighbours
from peft_rag.retrieval.drawn import random_neighbours
from peft_rag.retrieval.vectors import exact_search

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.model import RetrievalAugmentedModel

_FILLER = "and so on, "

Search = Callable[[list[int], list[int], int], Neighbours]


def control_arms(
    model: RetrievalAugmentedModel, split: Split, outputs: Outputs, wanted: Collection[str], seed: int
) -> dict[str, Tensor]:
    """Answer a split once for each control that the model's fusion has.

    Args:
        model: trained, its fusion fitted.
        split: labelled examples with the neighbours that were retrieved.
        outputs: what the model gave for it with these, before fusion.
        wanted: of the arms above.
        seed: of what is drawn.

    Returns:
        log-probabilities in nats by arm, ``(N, …)``; no arm for a model without retrieval, and neither ``shuffled``
        nor ``oracle`` where no document has a label.
    """
    fusion, knowledge = model.fusion, model.knowledge
    if isinstance(fusion, NoFusion) or knowledge is None:
        return {}
    labelled = any(document.labels for document in knowledge.corpus)
    possible = {
        "random",
        *(("shuffled", "oracle") if labelled else ()),
        *(("filler",) if fusion.reads_neighbours else ()),
    }
    answer = _read_again if fusion.reads_neighbours else _voted_again
    alone = None if model.gate == 1 else model.outputs(split, fusion=NoFusion(), progress="test without retrieval")
    arms = {}
    for arm in wanted:
        if arm in possible:
            given = answer(model, split, outputs, arm, np.random.default_rng(seed))
            arms[arm] = given if alone is None else mix(alone.log_probs, given, model.gate)
    return arms


def shuffled_corpus(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    """Return the documents with their labels permuted over all of them."""
    order = generator.permutation(len(corpus))
    documents = [replace(document, labels=corpus[int(order[place])].labels) for place, document in enumerate(corpus)]
    return Corpus.from_documents(documents, corpus.name)


def oracle_neighbours(split: Split, corpus: Corpus, k: int, search: Search) -> Neighbours:
    """Find for each labelled example the nearest documents that carry one of its labels.

    Args:
        split: labelled examples.
        corpus: the documents.
        k: K.
        search: given numbers of examples, numbers of documents and K, finds the nearest of these documents for each
            of these examples, as positions in the list of documents.
    """
    positions = np.full((len(split), k), NO_POSITION, dtype=np.int64)
    scores = np.full((len(split), k), -np.inf, dtype=np.float32)
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, example in enumerate(split.examples):
        alike[example.labels or ()].append(row)
    for labels, rows in alike.items():
        bearers = [place for place, document in enumerate(corpus) if set(labels) & set(document.labels)]
        if not bearers:
            continue
        found = search(rows, bearers, k)
        missing = np.asarray(found.positions) == NO_POSITION
        positions[rows] = np.where(missing, NO_POSITION, np.asarray(bearers)[np.where(missing, 0, found.positions)])
        scores[rows] = found.scores
    return Neighbours(positions, scores)


@dataclass(frozen=True)
class OtherCorpus(Fusion):
    """A fusion that reads the same positions in another corpus."""

    inner: Fusion
    corpus: Corpus

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        return self.inner.encode(split, self.corpus, reader)


@dataclass(frozen=True)
class Filler(Fusion):
    """A fusion whose neighbours are overwritten, token for token, with words that say nothing.

    The tokens overwritten are those that the task does not pool over, special tokens left alone.
    """

    inner: Fusion

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        words = reader.tokenizer(_FILLER, add_special_tokens=False)["input_ids"]
        special = set(reader.tokenizer.all_special_ids)

        def overwritten(row: dict[str, Any]) -> dict[str, Any]:
            if PASSAGES in row:
                return row | {PASSAGES: [_overwritten(one, words, special) for one in row[PASSAGES]]}
            return _overwritten(row, words, special)

        rows = self.inner.encode(split, corpus, reader)
        return [overwritten(row) if row.get(READ) else row for row in rows]


def _overwritten(row: dict[str, Any], words: Sequence[int], special: Collection[int]) -> dict[str, Any]:
    ids, place = [], 0
    for token, pooled in zip(row["input_ids"], row["pooled_mask"], strict=True):
        if not pooled and token not in special:
            token, place = words[place % len(words)], place + 1
        ids.append(token)
    return row | {"input_ids": ids}


def _read_again(
    model: RetrievalAugmentedModel, split: Split, outputs: Outputs, arm: str, generator: np.random.Generator
) -> Tensor:
    """Answer with other neighbours in the inputs."""
    fusion, knowledge = model.fusion, model.knowledge
    assert knowledge is not None
    assert split.neighbours is not None
    reading: Fusion = fusion
    if arm == "filler":
        reading = Filler(fusion)
    elif arm == "shuffled":
        reading = OtherCorpus(fusion, shuffled_corpus(knowledge.corpus, generator))
    else:
        found = split.neighbours.head(fusion.neighbours_wanted)
        split = replace(split, neighbours=_others(model, split, found, outputs, arm, generator))
    given = model.outputs(split, fusion=reading, progress=f"test, {arm} neighbours")
    return fusion.combine(given, split, model.memory(), model.task)


def _voted_again(
    model: RetrievalAugmentedModel, split: Split, outputs: Outputs, arm: str, generator: np.random.Generator
) -> Tensor:
    """Let other neighbours vote on what the model gave."""
    fusion, memory = model.fusion, model.memory()
    shown = fusion.shown(outputs, split, memory)
    found = Neighbours.of_rows([[(one.position, one.score) for one in row] for row in shown])
    if arm == "shuffled":
        assert memory is not None
        order = generator.permutation(len(memory.targets))
        memory = Memory(memory.targets[order], memory.features)
    else:
        found = _others(model, split, found, outputs, arm, generator)
    return fusion.with_given_neighbours().combine(outputs, replace(split, neighbours=found), memory, model.task)


def _others(
    model: RetrievalAugmentedModel,
    split: Split,
    found: Neighbours,
    outputs: Outputs,
    arm: str,
    generator: np.random.Generator,
) -> Neighbours:
    assert model.knowledge is not None
    corpus = model.knowledge.corpus
    if arm == "random":
        return random_neighbours(found, len(corpus), split.forbidden, generator)
    memory = model.memory()
    if memory is not None and memory.features is not None:
        search = _search_among(unit(outputs.features), unit(memory.features), split)
    else:
        search = _search_by_text(model, split)
    return oracle_neighbours(split, corpus, found.k, search)


def _search_among(queries: Any, vectors: Any, split: Split) -> Search:
    """Search within some rows of vectors ``(M, D)`` for some rows of queries ``(N, D)``."""

    def search(rows: list[int], documents: list[int], k: int) -> Neighbours:
        return exact_search(queries[rows], vectors[documents], k, _forbidden(split, rows, documents))

    return search


def _search_by_text(model: RetrievalAugmentedModel, split: Split) -> Search:
    """Search by the model's own retriever within some documents only; vectors are made once where it has an encoder."""
    knowledge = model.knowledge
    assert knowledge is not None
    encoder = getattr(knowledge.retriever, "encoder", None)
    if encoder is not None:
        texts = [example.text for example in split.examples]
        return _search_among(encoder.encode(texts), encoder.encode(knowledge.corpus.texts), split)

    def search(rows: list[int], documents: list[int], k: int) -> Neighbours:
        others = frozenset(range(len(knowledge.corpus))) - frozenset(documents)
        texts = [split.examples[row].text for row in rows]
        banned = [others | frozenset(split.forbidden[row] if len(split.forbidden) else ()) for row in rows]
        if knowledge.retriever.corpus_fingerprint != knowledge.corpus.fingerprint:
            knowledge.retriever.index(knowledge.corpus)
        found = knowledge.retriever.search(texts, k, banned)
        place = {document: number for number, document in enumerate(documents)} | {NO_POSITION: NO_POSITION}
        return Neighbours(np.vectorize(place.__getitem__)(found.positions), found.scores)

    return search


def _forbidden(split: Split, rows: list[int], documents: list[int]) -> list[list[int]] | None:
    """Translate what some examples must not see into places in a list of documents."""
    if not len(split.forbidden):
        return None
    place = {document: number for number, document in enumerate(documents)}
    return [[place[one] for one in split.forbidden[row] if one in place] for row in rows]

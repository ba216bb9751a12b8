"""What retrieval is worth: the trained model's answers with other neighbours in place of those that were retrieved.

Nothing is trained or fitted here: the model, its fusion and how far that counts stay as they were chosen on validation.
The arms are

- ``random``: as many documents drawn at random, under the similarities of those that were retrieved;
- ``shuffled``: the retrieved documents, their labels permuted over the corpus, tags of words over all its words;
- ``oracle``: the nearest documents of a kind that the example is of: with one of its labels, or one of its entities;
- ``filler``: for a fusion whose inputs hold neighbours, words without content, token for token as long.

Where an example takes several decisions and documents vote on them (the tags of words, the tokens of a text), each
decision has neighbours of its own, and so do the arms: decisions on documents drawn at random, with their targets
permuted, and the nearest with the same target. Where answers are texts and neighbours are read, ``oracle`` gives
the documents that the records name as answering (``document_field``); there is none where they name none, because no
two examples have the same answer. Such texts are also written once more, for every arm (`control_texts`).

Dims: N examples, R decisions on them, K neighbours, D dimensions, M documents or decisions on them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_rag.corpus import Corpus
from peft_rag.fusion.base import PASSAGES, READ, Fusion, Memory, Outputs, Reader, Split
from peft_rag.fusion.datastore import unit
from peft_rag.fusion.knn import forbidden_rows
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.none import NoFusion
from peft_rag.retrieval.base import NO_POSITION, Neighbours
from peft_rag.retrieval.drawn import random_neighbours
from peft_rag.retrieval.vectors import exact_search
from peft_rag.tasks.base import GOLD, Example

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.fusion.prompts import Prompt
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Task

_FILLER = "and so on, "

Search = Callable[[list[int], list[int], int], Neighbours]
Kinds = tuple[Hashable, ...]


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
        log-probabilities in nats by arm, ``(R, …)``; no arm for a model without retrieval, and neither ``shuffled``
        nor ``oracle`` where no document has a label, or none is named.
    """
    possible = possible_arms(model, split)
    if not possible.intersection(wanted):
        return {}
    arms = [arm for arm in wanted if arm in possible]
    alone = None if model.gate == 1 else model.outputs(split, fusion=NoFusion(), progress="test without retrieval")
    if alone is not None and not model.gate:  # none of them counts, whichever they are
        return dict.fromkeys(arms, alone.log_probs)
    answer = partial(_read_again, model, split) if model.fusion.reads_neighbours else _votes(model, split, outputs)
    given = {arm: answer(arm, np.random.default_rng(seed)) for arm in arms}
    if alone is None:
        return given
    return {arm: mix(alone.log_probs, log_probs, model.gate) for arm, log_probs in given.items()}


def possible_arms(model: RetrievalAugmentedModel, split: Split) -> set[str]:
    """Return the arms that a fusion has on a split; none without retrieval.

    Nor are there any where answers are words of the documents found: other documents hold other answers.
    """
    fusion, knowledge = model.fusion, model.knowledge
    if isinstance(fusion, NoFusion) or fusion.opens or knowledge is None:
        return set()
    labelled = any(document.labels for document in knowledge.corpus)
    alike = labelled and not (fusion.reads_neighbours and (model.task.generates or not model.task.votes))
    named = fusion.reads_neighbours and any(example.documents for example in split.examples)
    return {
        "random",
        *(("shuffled",) if labelled else ()),
        *(("oracle",) if alike or named else ()),
        *(("filler",) if fusion.reads_neighbours else ()),
    }


def control_texts(
    model: RetrievalAugmentedModel, split: Split, wanted: Collection[str], seed: int
) -> dict[str, list[str]]:
    """Let a model whose task writes do so once for each control of a fusion that reads neighbours: texts by arm.

    Args:
        model: trained, its fusion fitted.
        split: the examples that are written to, with the neighbours that were retrieved.
        wanted: of the arms.
        seed: of what is drawn.
    """
    from peft_rag.generation import write

    possible = possible_arms(model, split) if model.fusion.reads_neighbours else set()
    arms = [arm for arm in wanted if arm in possible]

    def texts(reading: Fusion, others: Split, name: str) -> list[str]:
        written = write(model, others.examples, split=others, fusion=reading, progress=f"{name} neighbours")
        return [text for text, _ in written]

    if arms and not model.gate:  # none of them counts, whichever they are
        return dict.fromkeys(arms, texts(NoFusion(), split, "no"))
    return {arm: texts(*_other_neighbours(model, split, arm, np.random.default_rng(seed)), arm) for arm in arms}


def shuffled_corpus(corpus: Corpus, generator: np.random.Generator, *, by_word: bool = False) -> Corpus:
    """Return the documents with their labels permuted over all of them.

    Args:
        corpus: the documents.
        generator: of the permutation.
        by_word: permute single labels, each document keeping as many as it has: they are those of its words.
    """
    if by_word:
        every = [label for document in corpus for label in document.labels]
        moved = iter([every[place] for place in generator.permutation(len(every))])
        labels = [tuple(next(moved) for _ in document.labels) for document in corpus]
    else:
        labels = [corpus[int(place)].labels for place in generator.permutation(len(corpus))]
    documents = [replace(document, labels=own) for document, own in zip(corpus, labels, strict=True)]
    return Corpus.from_documents(documents, corpus.name)


def oracle_neighbours(split: Split, corpus: Corpus, k: int, search: Search, task: Task | None = None) -> Neighbours:
    """Find for each labelled example the nearest documents of a kind that it is of.

    Args:
        split: labelled examples.
        corpus: the documents.
        k: K.
        search: given numbers of examples, numbers of documents and K, finds the nearest of these documents for each
            of these examples, as positions in the list of documents.
        task: says of what kinds an example is (`Task.stratum`); by default those are its labels.
    """

    def kinds(example: Example) -> tuple[str, ...]:
        own = task.stratum(example) if task else example.labels or ()
        return own or (("",) if example.labels else ())  # words that are all outside of entities are a kind too

    documents = [kinds(Example(one.id, one.text, one.labels)) for one in corpus]
    return _nearest_alike([kinds(example) for example in split.examples], documents, k, search)


def _nearest_alike(asked: Sequence[Kinds], known: Sequence[Kinds], k: int, search: Search) -> Neighbours:
    """Find the nearest among those that share a kind with what is asked."""
    positions = np.full((len(asked), k), NO_POSITION, dtype=np.int64)
    scores = np.full((len(asked), k), -np.inf, dtype=np.float32)
    bearers: dict[Hashable, list[int]] = defaultdict(list)
    for place, kinds in enumerate(known):
        for kind in kinds:
            bearers[kind].append(place)
    alike: dict[Kinds, list[int]] = defaultdict(list)
    for row, kinds in enumerate(asked):
        alike[kinds].append(row)
    for kinds, rows in alike.items():
        among = sorted({place for kind in kinds for place in bearers.get(kind, ())})
        if not among:
            continue
        found = search(rows, among, k)
        missing = np.asarray(found.positions) == NO_POSITION
        positions[rows] = np.where(missing, NO_POSITION, np.asarray(among)[np.where(missing, 0, found.positions)])
        scores[rows] = found.scores
    return Neighbours(positions, scores)


@dataclass(frozen=True)
class _Inside(Fusion):
    """A fusion that encodes otherwise than another, and is read as that is."""

    inner: Fusion

    def prompt(self, batch: dict[str, Tensor], module: Any, *, goes_on: bool) -> AbstractContextManager[Prompt]:
        return self.inner.prompt(batch, module, goes_on=goes_on)


@dataclass(frozen=True)
class OtherCorpus(_Inside):
    """A fusion that reads the same positions in another corpus."""

    corpus: Corpus

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        return self.inner.encode(split, self.corpus, reader)


@dataclass(frozen=True)
class Filler(_Inside):
    """A fusion whose neighbours are overwritten, token for token, with words that say nothing.

    The tokens overwritten are those that the task does not pool over, special tokens left alone.
    """

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
    # A decoder's answer stands at the end of its input, its last token left away.
    answer = len(row[GOLD]) - 1 if GOLD in row and "decoder_input_ids" not in row else 0
    end = len(row["input_ids"]) - answer
    for number, (token, pooled) in enumerate(zip(row["input_ids"], row["pooled_mask"], strict=True)):
        if not pooled and token not in special and number < end:
            token, place = words[place % len(words)], place + 1
        ids.append(token)
    return row | {"input_ids": ids}


def _read_again(model: RetrievalAugmentedModel, split: Split, arm: str, generator: np.random.Generator) -> Tensor:
    """Answer with other neighbours in the inputs."""
    reading, split = _other_neighbours(model, split, arm, generator)
    given = model.outputs(split, fusion=reading, progress=f"test, {arm} neighbours")
    return model.fusion.combine(given, split, model.memory(), model.task)


def _other_neighbours(
    model: RetrievalAugmentedModel, split: Split, arm: str, generator: np.random.Generator
) -> tuple[Fusion, Split]:
    """Return how inputs are read for an arm, and the neighbours that they are read with."""
    fusion, knowledge, task = model.fusion, model.knowledge, model.task
    assert knowledge is not None
    assert split.neighbours is not None
    reading: Fusion = fusion
    found = split.neighbours.head(fusion.neighbours_wanted)
    if arm == "filler":
        reading = Filler(fusion)
    elif arm == "shuffled":
        by_word = not task.one_decision and not task.generates
        reading = OtherCorpus(fusion, shuffled_corpus(knowledge.corpus, generator, by_word=by_word))
    elif arm == "random":
        others = random_neighbours(found, len(knowledge.corpus), split.forbidden, generator)
        split = replace(split, neighbours=others)
    else:
        search = _search_by_text(model, split)
        if any(example.documents for example in split.examples):
            known = [(document.id,) for document in knowledge.corpus]
            oracle = _nearest_alike([example.documents for example in split.examples], known, found.k, search)
        else:
            oracle = oracle_neighbours(split, knowledge.corpus, found.k, search, task)
        split = replace(split, neighbours=oracle)
    return reading, split


def _votes(
    model: RetrievalAugmentedModel, split: Split, outputs: Outputs
) -> Callable[[str, np.random.Generator], Tensor]:
    """Return what lets other neighbours vote on what the model gave; the nearest are found once for all arms."""
    fusion, task, known = model.fusion, model.task, model.memory()
    assert known is not None
    nearest = fusion.voters(outputs, split, known)

    def voted(arm: str, generator: np.random.Generator) -> Tensor:
        memory, found = known, nearest
        if arm == "shuffled":
            memory = replace(known, targets=known.targets[generator.permutation(len(known.targets))])
        elif arm == "random":
            banned = forbidden_rows(outputs, split, known)
            found = random_neighbours(nearest, len(known.targets), banned, generator)
        else:
            found = _voters_alike(model, split, outputs, known, nearest.k)
        return fusion.with_given_neighbours().combine(outputs, replace(split, neighbours=found), memory, task)

    return voted


def _voters_alike(model: RetrievalAugmentedModel, split: Split, outputs: Outputs, memory: Memory, k: int) -> Neighbours:
    """Find for each decision the nearest decisions on documents that it should be like."""
    if memory.features is None:
        search = _search_by_text(model, split)
    else:
        banned = forbidden_rows(outputs, split, memory)
        search = _search_among(unit(outputs.features), unit(memory.features), banned)
    if model.task.one_decision:
        assert model.knowledge is not None
        return oracle_neighbours(split, model.knowledge.corpus, k, search, model.task)
    asked, known = (
        [(one,) for one in targets.reshape(len(targets), -1)[:, 0].tolist()]
        for targets in (model.task.targets(split.examples), memory.targets)
    )
    return _nearest_alike(asked, known, k, search)


def _search_among(queries: Any, vectors: Any, forbidden: Sequence[Collection[int]]) -> Search:
    """Search within some rows of vectors ``(M, D)`` for some rows of queries ``(N, D)``."""

    def search(rows: list[int], documents: list[int], k: int) -> Neighbours:
        return exact_search(queries[rows], vectors[documents], k, _among(forbidden, rows, documents))

    return search


def _search_by_text(model: RetrievalAugmentedModel, split: Split) -> Search:
    """Search by the model's own retriever within some documents only; vectors are made once where it has an encoder."""
    knowledge = model.knowledge
    assert knowledge is not None
    encoder = getattr(knowledge.retriever, "encoder", None)
    if encoder is not None:
        texts = [example.asked for example in split.examples]
        return _search_among(encoder.encode(texts), encoder.encode(knowledge.corpus.texts), split.forbidden)

    def search(rows: list[int], documents: list[int], k: int) -> Neighbours:
        others = frozenset(range(len(knowledge.corpus))) - frozenset(documents)
        texts = [split.examples[row].asked for row in rows]
        banned = [others | frozenset(split.forbidden[row] if len(split.forbidden) else ()) for row in rows]
        if knowledge.retriever.corpus_fingerprint != knowledge.corpus.fingerprint:
            knowledge.retriever.index(knowledge.corpus)
        found = knowledge.retriever.search(texts, k, banned)
        place = {document: number for number, document in enumerate(documents)} | {NO_POSITION: NO_POSITION}
        return Neighbours(np.vectorize(place.__getitem__)(found.positions), found.scores)

    return search


def _among(
    forbidden: Sequence[Collection[int]], rows: Sequence[int], documents: Sequence[int]
) -> list[list[int]] | None:
    """Translate what some rows must not see into places in a list of documents."""
    if not len(forbidden):
        return None
    place = {document: number for number, document in enumerate(documents)}
    return [[place[one] for one in forbidden[row] if one in place] for row in rows]

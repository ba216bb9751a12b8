"""A problem on which the frozen encoder is wrong: queries that sound like the documents of the other label."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from peft_rag.backbone import as_backbone
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.base import Split
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.query_tower.options import RetrieverTraining
from peft_rag.query_tower.tower import QueryTower
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import headless, word_tokenizer

LABELS = ("w30", "w31")
TEMPLATE = "{labels} {labels} {labels} {text}"
ASKS = ("w0", "w1")
"""The word that says what a query asks for, by label."""
SOUNDS = ("w2", "w4")
"""The word that all documents of a label have in common: queries of the other label have it too."""


def corpus() -> Corpus:
    """Four documents of each label."""
    texts = [(f"{SOUNDS[kind]} w{10 + 4 * kind + number}", LABELS[kind]) for number in range(4) for kind in (0, 1)]
    return Corpus([Document(f"d{place}", text, (label,)) for place, (text, label) in enumerate(texts)])


def examples(count: int, seed: int) -> list[Example]:
    """Queries of both labels in turn, each in the words of documents of the other."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        kind = number % 2
        words = [ASKS[kind], SOUNDS[1 - kind], f"w{draw.randrange(20, 28)}"]
        draw.shuffle(words)
        made.append(Example(f"{seed}-{number}", " ".join(words), (LABELS[kind],)))
    return made


def helpful(split: Split) -> float:
    """Return the share of examples whose nearest document bears their label."""
    labels = [document.labels for document in corpus()]
    right = [labels[split.neighbours.row(n)[0][0]] == one.labels for n, one in enumerate(split.examples)]
    return sum(right) / len(right)


def knowledge_of(encoder: str) -> Knowledge:
    return Knowledge(corpus(), ExactRetriever(SentenceEncoder(encoder, device="cpu")), "exact", encoder)


def make_model(
    encoder: str,
    training: RetrieverTraining | None = None,
    *,
    method: str = "lora",
    query_method: str = "lora",
    family: str = "bert",
    k: int = 4,
    temperature: float = 0.1,
) -> RetrievalAugmentedModel:
    """Return a model with a fresh tower, its weights the same at each call."""
    backbone = as_backbone(headless(TINY_BACKBONES[family]()), word_tokenizer(), "tiny")
    torch.manual_seed(0)
    knowledge = knowledge_of(encoder)
    fusion = MarginalFusion(k=k, temperature=temperature, template=TEMPLATE)
    model = RetrievalAugmentedModel(backbone, TextClassification(labels=LABELS), fusion, knowledge, max_length=32)
    model.progress_bars = False
    model.attach(method)
    model.search_with(QueryTower.attached(knowledge, query_method, training))
    return model.eval()


def teach_to_read(model: RetrievalAugmentedModel, asked: Sequence[Example]) -> None:
    """Fit the head to the label that the only document beside a query bears, whatever the query asks for."""
    documents = range(len(corpus()))
    split = Split(
        [replace(one, labels=corpus()[place].labels) for one in asked for place in documents],
        Neighbours.of_rows([[(place, 1.0)] for _ in asked for place in documents]),
    )
    model.task.fit_head(model.head, model.outputs(split).features, model.task.targets(split.examples), 100.0)

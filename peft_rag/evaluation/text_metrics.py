"""`evaluate.Metric` modules of taggers, answers and generated texts, shipped with the package.

Those that compare with a reference have the configurations ``default`` for one reference an example, and
``multireference`` for a list of them.
"""

from __future__ import annotations

from typing import Any

import datasets

from peft_rag.evaluation.answers import answer_scores
from peft_rag.evaluation.bootstrap import Score
from peft_rag.evaluation.entities import entity_scores
from peft_rag.evaluation.metrics import PackagedMetric
from peft_rag.evaluation.texts import ROUGE, text_scores


class EntityF1(PackagedMetric):
    """Precision, recall and F1 of entities; type and both ends must be right."""

    key = "entity_f1"
    meaning = "Precision, recall and F1 of the entities of BIO tags, strict, over all sentences together, in [0, 1]."
    inputs = "for each sentence its tags, each O, B-TYPE or I-TYPE"
    source = "Tjong Kim Sang & De Meulder 2003, arXiv:cs/0306050"

    def _features(self) -> tuple[Any, Any]:
        tags = datasets.Sequence(datasets.Value("string"))
        return tags, tags

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return _values(entity_scores(predictions, references, resamples=0))


class ReferenceMetric(PackagedMetric):
    """A score of texts beside their references."""

    inputs = "a text an example, and its reference, or a list of them (multireference)"
    configurations = ("default", "multireference")

    def _features(self) -> tuple[Any, Any]:
        text = datasets.Value("string")
        return text, datasets.Sequence(text) if self.config_name == "multireference" else text


class AnswerMatch(ReferenceMetric):
    """Exact match and token F1 of answers."""

    key = "answer_match"
    meaning = "SQuAD's exact match and token F1, in [0, 1]; an empty answer says that there is none."
    source = "Rajpurkar et al. 2016, arXiv:1606.05250"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return _values(answer_scores(predictions, references, resamples=0))


class Bleu(ReferenceMetric):
    """BLEU of a corpus; ``compute`` takes ``tokenize``."""

    key = "bleu"
    meaning = "sacrebleu's BLEU of the whole corpus, in [0, 1]."
    source = "Post 2018, arXiv:1804.08771"

    def _compute(self, predictions: Any, references: Any, tokenize: str = "13a") -> dict[str, float]:
        return _values(text_scores(predictions, references, metrics=("bleu",), tokenize=tokenize, resamples=0))


class Chrf(ReferenceMetric):
    """chrF of a corpus."""

    key = "chrf"
    meaning = "sacrebleu's chrF2 of the whole corpus, in [0, 1]."
    source = "Popović 2015, doi:10.18653/v1/W15-3049"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return _values(text_scores(predictions, references, metrics=("chrf",), resamples=0))


class Rouge(ReferenceMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L; ``compute`` takes ``stem``."""

    key = "rouge"
    meaning = "Mean F1 of words, pairs of words and longest common subsequences, in [0, 1]; for English."
    source = "Lin 2004, https://aclanthology.org/W04-1013"

    def _compute(self, predictions: Any, references: Any, stem: bool = False) -> dict[str, float]:
        return _values(text_scores(predictions, references, metrics=ROUGE, stem=stem, resamples=0))


def _values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}

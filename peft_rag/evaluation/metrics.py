"""`evaluate.Metric` modules of classifiers, shipped with the package, so that measuring never asks a hub.

Their configurations are ``default`` for class indices and, where the score knows it, ``multilabel`` for rows of 0/1 per
label. Those of taggers and of texts are in `peft_rag.evaluation.text_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np

from peft_rag.errors import ConfigError
from peft_rag.evaluation import scores


class PackagedMetric(evaluate.Metric):
    """A score that needs no hub; it keeps what it is given in memory and writes no cache file."""

    key: str
    meaning: str
    inputs: str
    source: str = ""
    configurations: tuple[str, ...] = ("default",)

    def __init__(self, config_name: str = "default", **options: Any) -> None:
        if config_name not in self.configurations:
            raise ConfigError(
                f"metric '{self.key}' has no configuration '{config_name}'. Choose {' or '.join(self.configurations)}."
            )
        super().__init__(config_name=config_name, keep_in_memory=True, **options)

    def _features(self) -> tuple[Any, Any]:
        """Return what one prediction is, and what its reference is."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        prediction, reference = self._features()
        return evaluate.MetricInfo(
            description=self.meaning,
            citation=self.source,
            inputs_description=f"predictions and references: {self.inputs}.",
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )


class ClassificationMetric(PackagedMetric):
    """A score of predicted against actual classes; subclasses name the score."""

    score: Callable[..., float]
    inputs = "class indices, or rows of 0/1 per label (multilabel)"
    dtype: str = "int64"
    configurations: tuple[str, ...] = ("default", "multilabel")

    def _features(self) -> tuple[Any, Any]:
        value = datasets.Value(self.dtype)
        feature = datasets.Sequence(value) if self.config_name == "multilabel" else value
        return feature, feature

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.key: type(self).score(np.asarray(predictions), np.asarray(references))}


class Accuracy(ClassificationMetric):
    """Share of examples predicted exactly right."""

    score = staticmethod(scores.accuracy)
    key = "accuracy"
    meaning = "Share of examples predicted exactly right, in [0, 1]."


class MacroF1(ClassificationMetric):
    """Mean F1 over the classes that occur."""

    score = staticmethod(scores.macro_f1)
    key = "macro_f1"
    meaning = "Mean over the occurring classes of F1, in [0, 1]."


class MicroF1(ClassificationMetric):
    """F1 over all label decisions together."""

    score = staticmethod(scores.micro_f1)
    key = "micro_f1"
    meaning = "F1 over all label decisions together, in [0, 1]."


class MatthewsCorrelation(ClassificationMetric):
    """Correlation between predicted and actual classes."""

    score = staticmethod(scores.matthews_correlation)
    key = "mcc"
    meaning = "Matthews' correlation for several classes, in [-1, 1]."
    configurations = ("default",)
    source = "Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006"


class CalibrationError(ClassificationMetric):
    """Expected calibration error: how far confidence lies from accuracy."""

    score = staticmethod(scores.calibration_error)
    key = "ece"
    meaning = "Expected calibration error over 15 equal-width bins, in [0, 1]; lower is better."
    inputs = "the probability of each decision, and 1 where it is right, else 0"
    dtype = "float64"
    source = "Guo et al. 2017, arXiv:1706.04599"

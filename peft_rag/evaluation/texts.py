"""BLEU, chrF and ROUGE of generated texts, as sacrebleu and rouge-score count them.

Dims: N texts. BLEU and chrF are scores of a whole corpus: what they need is counted once per text, ``(N, F)`` with F
counts, and summed, so that drawing texts again for an interval tokenises nothing again. ROUGE is a mean over texts,
``(N,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peft_rag.errors import ConfigError, DataError
from peft_rag.evaluation.bootstrap import Score, bootstrap
from peft_rag.evaluation.references import References, reference_lists
from peft_rag.evaluation.scores import FloatArray, IntArray
from peft_rag.registry import suggest

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = ("bleu", "chrf", *ROUGE)
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Those of sacrebleu's that need neither a download nor another package."""


def bleu_counts(predictions: Sequence[str], references: References, tokenize: str = "13a") -> IntArray:
    """Count what BLEU needs of each text: its length, its reference's, right n-grams and all n-grams for n = 1…4.

    Args:
        predictions: a text an example.
        references: the right text of each example, or a list of them.
        tokenize: how words are told apart: ``13a`` (languages that write spaces), ``intl`` (the same by Unicode's
            classes), ``zh`` (Chinese), ``char`` (any other language without spaces) or ``none`` (at white space).

    Returns:
        ``(N, 10)``.

    Raises:
        ConfigError: the tokenizer is unknown.
        DataError: an example has no reference.
        ShapeError: there are more or fewer references than predictions, or no predictions.
    """
    from sacrebleu import BLEU

    if tokenize not in TOKENIZERS:
        raise ConfigError(f"BLEU has no tokenizer '{tokenize}' here. Choose {', '.join(TOKENIZERS)}.")
    # Without force, sacrebleu writes to the terminal about texts that end in " .", and scores them all the same.
    return _counts(BLEU(tokenize=tokenize, force=True), predictions, references)


def bleu(counts: IntArray) -> float:
    """Return BLEU of a corpus from the counts of its texts ``(N, 10)``, in [0, 1]; sacrebleu's exponential smoothing.

    Source: Papineni et al. 2002, doi:10.3115/1073083.1073135; Post 2018, arXiv:1804.08771.
    """
    from sacrebleu import BLEU

    length, reference_length, *ngrams = counts.sum(axis=0).tolist()
    right, total = ngrams[: len(ngrams) // 2], ngrams[len(ngrams) // 2 :]
    return float(BLEU.compute_bleu(right, total, length, reference_length, smooth_method="exp").score) / 100.0


def chrf_counts(predictions: Sequence[str], references: References) -> IntArray:
    """Count what chrF needs of each text: for n = 1…6 its character n-grams, its best reference's and the common ones.

    Arguments and errors are those of `bleu_counts`, less the tokenizer: ``(N, 18)``.
    """
    from sacrebleu import CHRF

    return _counts(CHRF(), predictions, references)


def chrf(counts: IntArray) -> float:
    """Return chrF2 of a corpus from the counts of its texts ``(N, 18)``, in [0, 1].

    Source: Popović 2015, doi:10.18653/v1/W15-3049.
    """
    from sacrebleu import CHRF

    return float(CHRF()._compute_score_from_stats(counts.sum(axis=0).tolist()).score) / 100.0


def rouge(
    predictions: Sequence[str], references: References, names: Sequence[str] = ROUGE, stem: bool = False
) -> dict[str, FloatArray]:
    """Return ROUGE's F1 of each text against its best reference, in [0, 1]: ``(N,)`` by name.

    It is a score for English: words are what stands between anything but the letters a to z and digits.

    Args:
        predictions: a text an example.
        references: the right text of each example, or a list of them.
        names: of ``rouge1`` (words), ``rouge2`` (pairs of words) and ``rougeL`` (longest common subsequence).
        stem: take Porter's stems of the words.

    Raises:
        DataError: an example has no reference.
        ShapeError: there are more or fewer references than predictions, or no predictions.

    Source: Lin 2004, https://aclanthology.org/W04-1013.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(list(names), tokenizer=DefaultTokenizer(use_stemmer=stem))
    single = [
        scorer.score_multi(given, text)
        for text, given in zip(predictions, _required(predictions, references), strict=True)
    ]
    return {name: np.array([scores[name].fmeasure for scores in single], dtype=float) for name in names}


def text_scores(
    predictions: Sequence[str],
    references: References,
    *,
    metrics: Sequence[str] = TEXT_METRICS,
    tokenize: str = "13a",
    stem: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Score generated texts against their references, with intervals over texts.

    Args:
        predictions: a text an example.
        references: the right text of each example, or a list of them.
        metrics: of `TEXT_METRICS`.
        tokenize: BLEU's tokenizer; see `bleu_counts`.
        stem: whether ROUGE compares Porter's stems.
        resamples: number of draws of texts; with 0 an interval is the score itself.
        seed: of the draws.

    Returns:
        A score in [0, 1] for each of ``metrics``, in their order.

    Raises:
        ConfigError: a metric or the tokenizer is unknown.
        DataError: an example has no reference.
        ShapeError: there are more or fewer references than predictions, or no predictions.
    """
    for name in metrics:
        if name not in TEXT_METRICS:
            raise ConfigError(
                f"no score of texts '{name}'.{suggest(name, list(TEXT_METRICS))} Choose {', '.join(TEXT_METRICS)}."
            )
    overlaps = [name for name in metrics if name in ROUGE]
    scored: dict[str, tuple[Callable[..., Any], NDArray[Any]]] = {}
    if overlaps:
        scored |= {name: (np.mean, values) for name, values in rouge(predictions, references, overlaps, stem).items()}
    if "bleu" in metrics:
        scored["bleu"] = bleu, bleu_counts(predictions, references, tokenize)
    if "chrf" in metrics:
        scored["chrf"] = chrf, chrf_counts(predictions, references)
    return {name: bootstrap(*scored[name], resamples=resamples, seed=seed) for name in metrics}


def _required(predictions: Sequence[str], references: References) -> list[tuple[str, ...]]:
    """Return all references of each prediction, and see that none lacks them."""
    lists = reference_lists(predictions, references)
    for number, given in enumerate(lists, start=1):
        if not given:
            raise DataError(f"example {number} has no reference to score its text against. Add one, or leave it out.")
    return lists


def _counts(metric: Metric, predictions: Sequence[str], references: References) -> IntArray:
    """Return a metric's counts of each text ``(N, F)``, by the protocol that sacrebleu's own resampling uses."""
    # One stream for each example's first reference, one for the second, …; None where an example has fewer.
    streams = list(zip_longest(*_required(predictions, references)))
    return np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.int64)

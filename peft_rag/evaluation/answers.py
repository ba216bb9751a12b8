"""Exact match and token F1 of answers, as SQuAD counts them.

Dims: N questions. Scores of single answers are ``(N,)``, so that drawing questions again for an interval compares no
text again. The rules are those of English: other languages keep their articles, and words without spaces between them
count as one.

Source: Rajpurkar et al. 2016, arXiv:1606.05250; questions without an answer: Rajpurkar et al. 2018, arXiv:1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from peft_rag.evaluation.bootstrap import Score, bootstrap
from peft_rag.evaluation.references import References, reference_lists
from peft_rag.evaluation.scores import FloatArray

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalised(answer: str) -> str:
    """Return an answer in lower case, without ASCII punctuation, English articles and surplus white space.

    >>> normalised("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLE.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_matches(predictions: Sequence[str], references: References) -> FloatArray:
    """Return 1.0 where an answer equals one of its references after normalisation, else 0.0: ``(N,)``.

    Args:
        predictions: an answer a question; an empty one says that there is no answer.
        references: the right answer of each question, or a list of them; an empty one, or an empty list, says that
            there is none. References that normalise to nothing beside others that do not are left out.

    Raises:
        ShapeError: there are more or fewer references than predictions, or no predictions.
    """
    return _best(predictions, references, lambda answer, reference: float(answer == reference))


def token_f1s(predictions: Sequence[str], references: References) -> FloatArray:
    """Return F1 of each answer's tokens against those of its best reference, in [0, 1]: ``(N,)``.

    A token counts as often as it stands on both sides. Where either side says that there is no answer, F1 is 1 if both
    do, else 0. Arguments and errors are those of `exact_matches`.
    """
    return _best(predictions, references, _token_f1)


def answer_scores(
    predictions: Sequence[str], references: References, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Score answers against their references, with intervals over questions.

    Args:
        predictions: an answer a question; an empty one says that there is no answer.
        references: the right answer of each question, or a list of them; see `exact_matches`.
        resamples: number of draws of questions; with 0 an interval is the score itself.
        seed: of the draws.

    Returns:
        ``exact_match`` and ``f1``.

    Raises:
        ShapeError: there are more or fewer references than predictions, or no predictions.
    """
    single = {"exact_match": exact_matches(predictions, references), "f1": token_f1s(predictions, references)}
    return {name: bootstrap(np.mean, values, resamples=resamples, seed=seed) for name, values in single.items()}


def _best(predictions: Sequence[str], references: References, judge: Callable[[str, str], float]) -> FloatArray:
    """Return what a judge of normalised texts says of each prediction beside its best reference, ``(N,)``."""
    result = np.empty(len(predictions))
    for number, (answer, given) in enumerate(zip(predictions, reference_lists(predictions, references), strict=True)):
        accepted = [text for text in map(normalised, given) if text] or [""]
        result[number] = max(judge(normalised(answer), text) for text in accepted)
    return result


def _token_f1(answer: str, reference: str) -> float:
    """Return F1 = 2·|common| / (|answer| + |reference|) over the tokens of normalised texts."""
    left, right = answer.split(), reference.split()
    if not left or not right:
        return float(left == right)
    return 2.0 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))

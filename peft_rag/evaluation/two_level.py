"""Bootstrap of metrics over two levels at once: examples of a test split, and seeds that a model was trained with.

Dims: S seeds, N examples, R resamples, M metrics that are drawn jointly.

A model trained with seed s scores x_si on example i, and x_si = mean + seed_s + example_i + rest_si: all seeds answer
the same examples, so the S·N scores are anything but independent. Examples are many and are resampled as they are, the
same ones for every seed. Seeds are few: three of them have only ten samples, whose spread is too narrow by (S - 1)/S
and has no tails; and what differs between seeds holds the noise of the examples once more. So the part of the seeds is
drawn from a distribution with their estimated variance and with Student's tails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peft_rag.evaluation.bootstrap import Score, unseen
from peft_rag.evaluation.statistics import FloatArray
from peft_rag.evaluation.tallies import Drawn

RESAMPLES = 5000
_CHUNK = 250
_ROUNDING = 1e-12


def seed_variance(scores: FloatArray) -> float:
    """Return the variance between seeds that the noise of the examples does not explain.

    σ² = max(0, MS_seeds - MS_rest) / N, of the two-way layout of seeds and examples without repetition:
    MS_seeds = N·Σ_s (x_s. - x..)² / (S - 1) and MS_rest = Σ_si (x_si - x_s. - x_.i + x..)² / ((S - 1)(N - 1)).

    Args:
        scores: one for each seed and example, ``(S, N)``.

    Returns:
        The variance in squared units of the scores; 0 for a single seed or example, which say nothing of it.

    Source: Searle, Casella & McCulloch 1992, Variance Components, section 4.4 (estimates from mean squares).
    """
    seeds, examples = scores.shape
    if seeds < 2 or examples < 2:
        return 0.0
    by_seed, by_example, whole = scores.mean(axis=1), scores.mean(axis=0), float(scores.mean())
    rest = scores - by_seed[:, None] - by_example + whole
    mean_square_rest = float((rest**2).sum()) / ((seeds - 1) * (examples - 1))
    mean_square_seeds = examples * float(((by_seed - whole) ** 2).sum()) / (seeds - 1)
    return float(max(0.0, mean_square_seeds - mean_square_rest) / examples)


def bootstrap_rows(rows: Sequence[Drawn], *, resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """Draw several quantities of the same examples, the same examples for all of them.

    draw_r = Σ_s θ_s(w_r) / S + sqrt(σ²/S)·t_r, with θ_s(w_r) the metric of seed s where example i counts w_ri, how
    often resample r holds it over N; σ² `seed_variance` of the row's scores; and t_r of Student's distribution with
    S - 1 degrees of freedom. For one seed the second part is left out, and the draws speak of that one trained model.

    Args:
        rows: M tallies, or differences of them, each with an S of its own.
        resamples: R.
        seed: of the draws.

    Returns:
        The draws, ``(M, R)``.

    Raises:
        ValueError: there is no row, or they differ in N.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (two levels of variation).
    """
    lengths = {row.scores.shape[1] for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"bootstrap needs rows over the same examples, at least one, got {sorted(lengths)} examples")
    examples = lengths.pop()
    generator = np.random.default_rng(seed)
    parts = []
    for size in _sizes(resamples):
        weights = _weights(examples, size, generator)
        parts.append(np.stack([row.draws(weights) for row in rows]))
    draws = np.concatenate(parts, axis=1, dtype=np.float64)
    for place, row in enumerate(rows):
        seeds = len(row.scores)
        variance = seed_variance(row.scores)
        if variance > 0:
            draws[place] += np.sqrt(variance / seeds) * generator.standard_t(seeds - 1, resamples)
    return draws


def interval(value: float, draws: FloatArray, examples: int, *, least: float = 0.0, level: float = 0.95) -> Score:
    """Return a value with the middle ``level`` of its draws ``(R,)``, as far as it lies within what the value can be.

    Where none of them varies, because all examples are alike, there is room for what they did not show
    (`peft_rag.evaluation.bootstrap.unseen`).

    Args:
        value: a share, or the difference of two.
        draws: of `bootstrap_rows`.
        examples: N.
        least: that the value can be: 0, or -1 of a difference.
        level: share of the draws inside the interval.
    """
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    if high - low <= _ROUNDING and value in (least, 0.0, 1.0):
        low, high = max(least, value - unseen(examples, level)), min(1.0, value + unseen(examples, level))
    return Score(value, max(least, float(low)), min(1.0, float(high)))


def p_value(draws: FloatArray) -> float:
    """Return the two-sided p of "it is 0" from its bootstrap draws ``(R,)``.

    p = min(1, 2·(1 + min(#draws ≤ 0, #draws ≥ 0)) / (R + 1)): twice the share of draws on the far side of 0, the value
    itself counted as one more draw, so that p is never 0.

    Source: Davison & Hinkley 1997, section 4.4.
    """
    far = min(int((draws <= _ROUNDING).sum()), int((draws >= -_ROUNDING).sum()))
    return min(1.0, 2.0 * (1 + far) / (len(draws) + 1))


def _weights(examples: int, resamples: int, generator: np.random.Generator) -> FloatArray:
    """Return how often each resample holds each example, over N, ``(R, N)``."""
    chosen = generator.integers(0, examples, (resamples, examples))
    chosen += examples * np.arange(resamples)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=resamples * examples)
    return counts.reshape(resamples, examples) / examples


def _sizes(resamples: int) -> list[int]:
    """Cut the resamples into parts that need little memory."""
    whole, rest = divmod(resamples, _CHUNK)
    return [_CHUNK] * whole + [rest] * (rest > 0)

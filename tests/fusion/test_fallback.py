from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Shown
from peft_rag.fusion.fallback import GATES, Fallback, check_gate, choose_gate, scaled
from peft_rag.fusion.mixing import mix
from peft_rag.tasks.text_classification import TextClassification

SINGLE = TextClassification(labels=("a", "b", "c"))
SEVERAL = replace(SINGLE, multi_label=True)


def looped_mixture(alone: list[Any], fused: list[Any], gate: float) -> list[Any]:
    """Mix nested lists of log-probabilities as probabilities, number by number."""
    if isinstance(alone, list):
        return [looped_mixture(left, right, gate) for left, right in zip(alone, fused, strict=True)]
    return math.log(gate * math.exp(fused) + (1 - gate) * math.exp(alone))


def looped_merit(log_probs: list[list[float]], targets: list[int]) -> tuple[float, float]:
    """Accuracy, then mean log-likelihood, example by example."""
    right, likelihood = 0, 0.0
    for row, target in zip(log_probs, targets, strict=True):
        right += max(range(len(row)), key=lambda place: row[place]) == target
        likelihood += row[target]
    return right / len(targets), likelihood / len(targets)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 2)])
def test_mixture_equals_plain_loops_and_sums_to_one(gate: float, shape: tuple[int, ...]) -> None:
    alone, fused = drawn(1, *shape), drawn(2, *shape)
    mixed = mix(alone, fused, gate)
    expected = torch.tensor(looped_mixture(alone.tolist(), fused.tolist(), gate), dtype=torch.float64)
    torch.testing.assert_close(mixed, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed.logsumexp(-1), torch.zeros(shape[:-1], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_chosen_gate_is_the_best_of_all_in_plain_loops(seed: int) -> None:
    alone, fused = drawn(seed, 30, 3), drawn(seed + 100, 30, 3)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (30,), generator=generator)
    right = torch.rand(30, generator=generator) < seed / 12  # neighbours help more and more
    fused[right] = drawn(seed + 200, 30, 3)[right] + 0.0
    fused[right, targets[right]] += 4.0
    fused = fused.log_softmax(-1)
    choice = choose_gate(alone, fused, SINGLE, targets)

    wanted = targets.tolist()
    merits = {g: looped_merit(looped_mixture(alone.tolist(), fused.tolist(), g), wanted) for g in GATES}
    best = merits[choice.gate]
    assert all(best[0] > one[0] or (best[0] == one[0] and best[1] >= one[1] - 1e-6) for one in merits.values())
    assert (choice.without, choice.with_neighbours, choice.chosen) == pytest.approx(
        (merits[0.0][0], merits[1.0][0], best[0]), abs=1e-9
    )


def test_every_gate_can_be_the_best() -> None:
    """Right always; neighbours make a share h of n examples surer, from 0.6 to 0.9, and the others less so.

    h·log(0.6 + 0.3g) + (n - h)·log(0.9 - 0.3g) is greatest at g = 0 for h = 0.4n, and at g = 1 for h = 0.6n.
    """
    targets, found = torch.zeros(40, dtype=torch.long), set()
    less, more = [0.6, 0.2, 0.2], [0.9, 0.05, 0.05]
    for helped in range(15, 26):
        alone = torch.tensor([less] * helped + [more] * (40 - helped), dtype=torch.float64)
        fused = torch.tensor([more] * helped + [less] * (40 - helped), dtype=torch.float64)
        found.add(choose_gate(alone.log(), fused.log(), SINGLE, targets).gate)
    assert found == set(GATES)


def test_of_equals_the_cheapest_is_chosen() -> None:
    alone, targets = drawn(1, 20, 3), torch.zeros(20, dtype=torch.long)
    assert choose_gate(alone, alone.clone(), SINGLE, targets).gate == 0.0
    # Right without doubt from g = 1/4 on: with neighbours alone an input is read once, with any mixture twice.
    sure = torch.tensor([[0.0, -math.inf, -math.inf]] * 20, dtype=torch.float64)
    assert choose_gate(sure, sure.clone(), SINGLE, targets).gate == 0.0
    assert choose_gate(alone, sure, SINGLE, targets).gate == 1.0
    assert (GATES[:2], list(GATES[2:])) == ((0.0, 1.0), sorted(GATES[2:]))


def test_labels_of_several_are_weighed_by_their_own_metric() -> None:
    alone, fused = drawn(3, 25, 3, 2), drawn(4, 25, 3, 2)
    targets = fused.argmax(-1)
    choice = choose_gate(alone, fused, SEVERAL, targets)
    assert (choice.metric, choice.with_neighbours, choice.chosen) == ("micro_f1", 1.0, 1.0)
    assert choice.without < 1.0
    assert choice.gate > 0


def test_line_says_what_was_chosen_and_why() -> None:
    mixed = Fallback(0.5, "accuracy", 0.87, 0.883, 0.889)
    assert str(mixed) == "retrieval counts 50% (validation accuracy 87.0 without, 88.3 with, 88.9 mixed)"
    none = Fallback(0.0, "accuracy", 0.87, 0.861, 0.87)
    assert str(none) == "retrieval counts 0% (validation accuracy 87.0 without, 86.1 with)"


def test_weights_shown_are_scaled() -> None:
    rows = [[Shown(3, 0.9, 0.75), Shown(1, 0.5, 0.25)], []]
    assert scaled(rows, 0.5) == [[Shown(3, 0.9, 0.375), Shown(1, 0.5, 0.125)], []]
    assert scaled(rows, 1.0) == rows


@pytest.mark.parametrize("gate", [-0.1, 1.01, math.nan, "half", None])
def test_gate_that_is_no_share_is_refused(gate: Any) -> None:
    with pytest.raises(ConfigError, match=r"the gate of a fusion is .*; it is a share from 0 \(no retrieval\) to 1\."):
        check_gate(gate)

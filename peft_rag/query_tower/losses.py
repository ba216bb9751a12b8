"""What a retriever learns from a reader that has read each neighbour by itself.

Dims: B examples, K neighbours at most, R decisions (R = B where each example takes one).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from peft_rag.tasks.base import Task


def pdist(logits: Tensor, log_likelihood: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw the retriever's distribution over neighbours towards the reader's.

    L = 1/B · Σ_b KL(sg Q_b ‖ π_b) = 1/B · Σ_b Σ_z Q_bz·(log Q_bz - log π_bz)

    with Q_b = softmax_z(log p(y|x,z)/τ_g) and π_b = softmax_z(s_z/τ). Missing neighbours are in neither; a single
    neighbour gives no gradient, and none gives 0.

    Args:
        logits: s/τ, ``(B, K)``; -inf where a neighbour is missing.
        log_likelihood: log p(y|x,z) in nats, ``(B, K)``; nothing is learned through it.
        temperature: τ_g; the larger, the flatter Q.

    Returns:
        L in nats, a scalar.

    Source: Izacard et al. 2022, arXiv:2208.03299 (perplexity distillation); the mean over the batch as of torch's
    ``kl_div`` with ``batchmean``.
    """
    missing = logits == -math.inf
    wanted = _log_softmax(log_likelihood.detach() / temperature, missing)
    given = _log_softmax(logits, missing)
    terms = wanted.exp() * (wanted - given)
    return terms.masked_fill(missing, 0.0).sum() / len(logits)


def emdr2(logits: Tensor, log_likelihood: Tensor) -> Tensor:
    """Raise the likelihood of the answer under the mixture over neighbours, by its weights alone.

    L = -1/B · Σ_b log Σ_z π_bz·sg p(y|x,z)      with π_b = softmax_z(s_z/τ)

    Its gradient with respect to s_z/τ is π_z - p(z|x,y), the prior less the posterior. Missing neighbours are left out;
    a single neighbour gives no gradient, and an example without any adds 0.

    Args:
        logits: s/τ, ``(B, K)``; -inf where a neighbour is missing.
        log_likelihood: log p(y|x,z) in nats, ``(B, K)``; nothing is learned through it.

    Returns:
        L in nats, a scalar.

    Source: Singh et al. 2021, arXiv:2106.05346 (EMDR²), the retriever's term.
    """
    missing = logits == -math.inf
    joint = _log_softmax(logits, missing) + log_likelihood.detach()
    nothing = missing.all(-1)
    joint = joint.masked_fill(missing & ~nothing.unsqueeze(-1), -math.inf)
    return -joint.logsumexp(-1).masked_fill(nothing, 0.0).sum() / len(logits)


def answer_log_likelihood(each: Tensor, labels: Tensor, owners: Tensor, examples: int, task: Task) -> Tensor:
    """Return log p(y|x,z) of whole answers in nats, ``(B, K)``: summed over the decisions on an example.

    Args:
        each: log-probabilities of the decisions under each neighbour, ``(R, K, …)``.
        labels: the task's targets, ``(R, …)``.
        owners: the example of each decision, ``(R,)``.
        examples: B.
        task: which knows what of its log-probabilities belongs to a target.
    """
    neighbours = each.shape[1]
    log_likelihood = task.log_likelihood(each.flatten(0, 1), labels.repeat_interleave(neighbours, 0))
    by_decision = log_likelihood.reshape(-1, neighbours)
    return by_decision.new_zeros(examples, neighbours).index_add(0, owners, by_decision)


def _log_softmax(values: Tensor, missing: Tensor) -> Tensor:
    """Return the log-softmax over what is not missing; the places of the missing hold 0, so that no gradient is NaN."""
    some = ~missing.all(-1, keepdim=True)
    kept = values.masked_fill(missing & some, -math.inf).masked_fill(~some, 0.0)
    return kept.log_softmax(-1).masked_fill(missing, 0.0)

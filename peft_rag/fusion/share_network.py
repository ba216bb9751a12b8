"""How much a vote counts, decided by a small network, and how that is learned from few decisions.

    λ(x) = σ(w₂·tanh(W₁·(x - μ)/s + b₁) + b₂)

x is the evidence on a decision (`peft_rag.fusion.evidence`), μ and s its mean and spread where it was learned. At the
start w₂ = 0 and b₂ = log(λ/(1-λ)): λ is one for all.

Dims: R decisions, E numbers of evidence, H hidden units, S moments of training that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOKS = tuple(range(0, 201, 10))
"""After how many steps training is looked at; one of these numbers is how long it lasts, 0 among them."""

_LEARNING_RATE, _DECAY = 0.01, 0.01
_ROWS_AT_ONCE = 4096
_LEAST_SHARE = 0.02

Loss = Callable[[Tensor, Tensor], Tensor]
"""Returns what λ costs in nats, given decisions ``(B,)`` and their λ ``(B,)``; it is differentiated."""


@dataclass(frozen=True, eq=False)
class ShareNetwork:
    """A network from evidence to λ; see the module. All tensors are float64.

    Attributes:
        mean: μ, ``(E,)``.
        spread: s, ``(E,)``, above 0.
        inner: W₁, ``(H, E)``.
        inner_bias: b₁, ``(H,)``.
        outer: w₂, ``(H,)``.
        outer_bias: b₂, ``()``.
    """

    mean: Tensor
    spread: Tensor
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    @classmethod
    def fresh(cls, evidence: Tensor, share: float, hidden: int, generator: torch.Generator) -> ShareNetwork:
        """Return an untrained network, whose λ is one for all.

        Args:
            evidence: what it will learn from, ``(R, E)``.
            share: that λ; 0 and 1 are kept a little away from, where nothing could be learned.
            hidden: H.
            generator: draws W₁.
        """
        spread = evidence.std(0, correction=0)
        odds = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
        size = evidence.shape[1]
        return cls(
            mean=evidence.mean(0),
            spread=torch.where(spread > 0, spread, 1.0),
            inner=torch.randn(hidden, size, generator=generator, dtype=torch.float64) / math.sqrt(size),
            inner_bias=torch.zeros(hidden, dtype=torch.float64),
            outer=torch.zeros(hidden, dtype=torch.float64),
            outer_bias=torch.tensor(math.log(odds / (1 - odds)), dtype=torch.float64),
        )

    def share(self, evidence: Tensor) -> Tensor:
        """Return λ of each decision, ``(R,)``, from evidence ``(R, E)``."""
        hidden = torch.tanh((evidence - self.mean) / self.spread @ self.inner.T + self.inner_bias)
        return torch.sigmoid(hidden @ self.outer + self.outer_bias)

    def tensors(self) -> dict[str, Tensor]:
        """Return the network as it is saved."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ShareNetwork:
        """Return the network that was saved."""
        return cls(**{one.name: tensors[one.name] for one in fields(cls)})

    def trained(self, evidence: Tensor, loss: Loss, generator: torch.Generator) -> Iterator[ShareNetwork]:
        """Yield the network as it is at each of `LOOKS` while it learns.

        Args:
            evidence: of the decisions learned from, ``(R, E)``.
            loss: what λ costs on these.
            generator: draws the decisions of each step where there are many.
        """
        learned: dict[str, Any] = {
            name: getattr(self, name).clone().requires_grad_()
            for name in ("inner", "inner_bias", "outer", "outer_bias")
        }
        groups = [
            {"params": [learned["inner"], learned["outer"]], "weight_decay": _DECAY},
            {"params": [learned["inner_bias"], learned["outer_bias"]], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=_LEARNING_RATE)
        network, everything = replace(self, **learned), torch.arange(len(evidence))
        for step in range(LOOKS[-1] + 1):
            if step in LOOKS:
                yield replace(self, **{name: tensor.detach().clone() for name, tensor in learned.items()})
            rows = everything
            if len(rows) > _ROWS_AT_ONCE:
                rows = torch.randint(len(rows), (_ROWS_AT_ONCE,), generator=generator)
            optimiser.zero_grad()
            with torch.enable_grad():
                loss(rows, network.share(evidence[rows])).backward()
            optimiser.step()


def cross_fitted_shares(
    evidence: Tensor, loss: Loss, folds: Sequence[int], make: Callable[[Tensor], ShareNetwork], seed: int
) -> Tensor:
    """Return λ of each decision at each of `LOOKS`, by networks that did not learn from its fold: ``(S, R)``.

    Args:
        evidence: of R decisions.
        loss: what λ costs on these.
        folds: the part that each decision belongs to; two at least.
        make: returns an untrained network for some evidence.
        seed: of what is drawn.
    """
    parts = torch.tensor(folds)
    shares = torch.zeros(len(LOOKS), len(evidence), dtype=torch.float64)
    for fold in sorted(set(folds)):
        held, rest = (parts == fold).nonzero().flatten(), (parts != fold).nonzero().flatten()

        def of_the_rest(rows: Tensor, share: Tensor, rest: Tensor = rest) -> Tensor:
            return loss(rest[rows], share)

        known = evidence[rest]
        generator = torch.Generator().manual_seed(seed)
        for look, network in enumerate(make(known).trained(known, of_the_rest, generator)):
            shares[look, held] = network.share(evidence[held])
    return shares

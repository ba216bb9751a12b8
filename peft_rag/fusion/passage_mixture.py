"""One text written from several inputs at once, each with a neighbour of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class PassageMixture(LogitsProcessor):  # type: ignore[misc]
    """p(v|x, y_<t) = Σ_z w_z·p(v|x, z, y_<t), given to every input of an example, so that all of them write one text.

    w is π for the form ``token``, and p(z|x, y_<t) ∝ π_z·Π_s<t p(y_s|x, z, y_<s) for ``sequence``.

    Dims: B examples, I inputs, K of them an example at most, V tokens of the vocabulary.
    """

    def __init__(self, rows: Tensor, log_weights: Tensor, form: str) -> None:
        """Remember whose inputs are whose.

        Args:
            rows: the inputs of each example, ``(B, K)``; -1 where it has fewer.
            log_weights: log π, ``(B, K)``; -inf where it has fewer.
            form: ``token`` or ``sequence``.
        """
        self.rows, self.log_weights, self.form = rows, log_weights.log_softmax(-1), form
        self.owners = torch.cat([torch.full((int((row >= 0).sum()),), place) for place, row in enumerate(rows)])
        self.before: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turn the inputs' logits ``(I, V)`` into the mixture's log-probabilities, the same for all of an example."""
        own = scores.float().log_softmax(-1)[self.rows.clamp(min=0)]
        if self.form == "sequence" and self.before is not None:
            written = input_ids[self.rows[:, 0], -1]
            said = self.before.gather(-1, written.reshape(-1, 1, 1).expand(-1, self.rows.shape[1], 1)).squeeze(-1)
            self.log_weights = (self.log_weights + said).log_softmax(-1)
        self.before = own
        mixed = (self.log_weights.unsqueeze(-1) + own).logsumexp(1)
        return mixed[self.owners]

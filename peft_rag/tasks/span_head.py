"""Where an answer begins and ends among the words of a context, or that it has none.

Dims: R questions, W words of a context at most, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOWHERE = 0
"""The position that says that there is no answer; word w stands at position 1 + w."""

_ROWS_AT_ONCE = 64
"""Questions whose spans are scored together: of 384 words and 30 in a span that takes 3 MB."""


class SpanHead(nn.Module):
    """Judges each word as the first and the last of an answer, and the context as one without any.

    ℓ_w = A·h_w + a for the words that there are, -∞ for those that there are not, and ℓ_nowhere = B·h̄ + b with h̄ the
    mean state of the words: ``(R, W, D)`` to ``(R, 2, 1 + W)``.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.word = nn.Linear(hidden_size, 2)
        self.nowhere = nn.Linear(hidden_size, 2)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits; a word whose state is 0 in every entry is none."""
        words = self.word(states).masked_fill(~present(states).unsqueeze(-1), -torch.inf)
        nowhere = self.nowhere(mean_words(states)).unsqueeze(1)
        return torch.cat([nowhere, words], dim=1).transpose(1, 2)


def present(states: Tensor) -> Tensor:
    """Return which words there are, ``(R, W)``: those whose state is not 0 in every entry."""
    return states.ne(0).any(-1)


def mean_words(states: Tensor) -> Tensor:
    """Return the mean state of the words that there are, ``(R, D)``."""
    count = present(states).sum(1, keepdim=True).clamp(min=1)
    return states.sum(1) / count.to(states.dtype)


def best_spans(log_probs: Tensor, words: Tensor, longest: int) -> Tensor:
    """Return the positions of the best first and last word, or `NOWHERE` for both, ``(R, 2)``.

    argmax over s ≤ e < s + longest of log p(s) + log p(e), unless log p(s = ∅) + log p(e = ∅) is no less, with ∅ for
    `NOWHERE`.

    Args:
        log_probs: of the first and the last word, in nats, ``(R, 2, 1 + W)``.
        words: how many there are in each context, ``(R,)``.
        longest: words of an answer at most.
    """
    found = [
        _best_spans(part, count, longest)
        for part, count in zip(log_probs.split(_ROWS_AT_ONCE), words.split(_ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(found)


def _best_spans(log_probs: Tensor, words: Tensor, longest: int) -> Tensor:
    missing = torch.arange(log_probs.shape[-1] - 1) >= words.unsqueeze(-1)
    begins, ends = (log_probs[:, side, 1:].masked_fill(missing, -torch.inf) for side in (0, 1))
    ends = nn.functional.pad(ends, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    best, place = (begins.unsqueeze(-1) + ends).flatten(1).max(1)
    first = place // longest
    spans = 1 + torch.stack([first, first + place % longest], dim=1)
    return spans.masked_fill((log_probs[:, :, NOWHERE].sum(1) >= best).unsqueeze(-1), NOWHERE)

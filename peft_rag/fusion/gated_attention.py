"""Cross-attention from tokens to neighbours' vectors behind a gate, put on a backbone's layers by hooks.

Dims: B examples, T tokens, K neighbours, V of a neighbour's vector, D hidden size, H heads.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_rag.errors import BackboneError


class GatedCrossAttention(nn.Module):
    """Lets every token look at the neighbours: h ← h + tanh(α)·W_o·Attn(LN(h), E).

    Attn has H heads over keys W_k·E and values W_v·E, where E = √V·d are the neighbours' vectors (of length 1, so that
    entries are of size one) and a learned null neighbour, which has a key and a value of its own: attending to it is
    looking at nothing. α is 0 at the start, so that h comes out as it went in. An example without any neighbour is
    left as it is.

    Source: Alayrac et al. 2022, arXiv:2204.14198 (Flamingo's gated cross-attention, without its feed-forward part).
    """

    def __init__(self, hidden_size: int, vector_size: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, width, bias=False)
        self.key = nn.Linear(vector_size, width, bias=False)
        self.value = nn.Linear(vector_size, width, bias=False)
        self.output = nn.Linear(width, hidden_size, bias=False)
        self.null_key = nn.Parameter(torch.zeros(width))
        self.null_value = nn.Parameter(torch.zeros(width))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Add what the tokens see in the neighbours.

        Args:
            hidden: of the tokens, ``(B, T, D)``.
            vectors: of the neighbours, ``(B, K, V)``.
            mask: 1 for a neighbour, 0 where an example has fewer, ``(B, K)``.

        Returns:
            hidden states ``(B, T, D)``, and how much each head of each token looks at each neighbour,
            ``(B, H, T, K)``; what is missing to 1 goes to the null neighbour.
        """
        inside = self.query.weight.dtype
        neighbours = vectors.to(inside) * math.sqrt(vectors.shape[-1])
        query = self._by_head(self.query(self.norm(hidden.to(inside))))
        key = self._by_head(self._with_null(self.key(neighbours), self.null_key))
        value = self._by_head(self._with_null(self.value(neighbours), self.null_value))
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        missing = torch.cat([mask == 0, mask.new_zeros(len(mask), 1, dtype=torch.bool)], 1)
        shares = logits.masked_fill(missing[:, None, None], -math.inf).softmax(-1)
        seen = (shares @ value).transpose(1, 2).flatten(2)
        added = hidden + (self.gate.tanh() * self.output(seen)).to(hidden.dtype)
        return torch.where(mask.any(1)[:, None, None], added, hidden), shares[..., :-1]

    def _by_head(self, given: Tensor) -> Tensor:
        """Turn ``(B, N, width)`` into ``(B, H, N, width / H)``."""
        return given.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _with_null(self, given: Tensor, null: Tensor) -> Tensor:
        """Put the null neighbour behind the others: ``(B, K, width)`` to ``(B, K + 1, width)``."""
        return torch.cat([given, null.to(given.dtype).expand(len(given), 1, -1)], 1)


@dataclass
class Reading:
    """One pass through the backbone beside neighbours, and how much they were looked at in each layer so far.

    Attributes:
        vectors: of the neighbours, ``(B, K, V)``.
        mask: 1 for a neighbour, ``(B, K)``.
        tokens: 1 for a token whose looks are noted, ``(B, T)``; None while texts are written, when nothing is noted
            and an example may have several rows after each other, such as beams.
        shares: by layer, one ``(B, K)`` each time it ran: the mean over heads and tokens.
    """

    vectors: Tensor
    mask: Tensor
    tokens: Tensor | None = None
    shares: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, layer: str, shares: Tensor) -> None:
        """Keep the mean over heads and the input's own tokens, which are the last T of those that a method reads."""
        kept = self.shares.setdefault(layer, [])
        if self.tokens is None:
            return
        tokens = self.tokens.to(shares.dtype)
        own = shares.detach().mean(1)[:, -tokens.shape[1] :]
        mean = (own * tokens.unsqueeze(-1)).sum(1) / tokens.sum(1, keepdim=True)
        kept.append(mean * self.mask.to(mean.dtype))

    def of_rows(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Return vectors and mask for so many rows; None where these are no rows of the examples."""
        each, over = divmod(count, len(self.vectors))
        if over or each < 1 or (each > 1 and self.tokens is not None):
            return None
        return self.vectors.repeat_interleave(each, 0), self.mask.repeat_interleave(each, 0)

    @property
    def weights(self) -> Tensor:
        """How much each neighbour was looked at, the mean over heads, tokens and layers, ``(B, K)``."""
        return torch.stack([share for shares in self.shares.values() for share in shares]).mean(0)


class CrossAttentionLayers(nn.Module):
    """Gated cross-attention after some layers of a backbone, idle but within `reading`.

    The layers carry a hook each, which holds on to this module weakly and goes when it does. Hooks stay on the layers
    whatever a method does to what is inside them, and several of these can share a backbone.
    """

    def __init__(self, layers: Mapping[int, nn.Module], make: Callable[[], GatedCrossAttention]) -> None:
        """Put a hook on each layer.

        Args:
            layers: of the backbone, by index.
            make: makes the cross-attention after one of them.
        """
        super().__init__()
        self.layers = nn.ModuleDict({str(index): make() for index in layers})
        self._now: Reading | None = None
        hooks = [layer.register_forward_hook(_hook(weakref.ref(self), str(index))) for index, layer in layers.items()]
        weakref.finalize(self, _remove, hooks)

    @contextmanager
    def reading(self, vectors: Tensor, mask: Tensor, tokens: Tensor | None = None) -> Iterator[Reading]:
        """Within the block, let the backbone's tokens look at neighbours; nothing is kept afterwards.

        Raises:
            BackboneError: a layer did not run in the block, so that it cannot have looked.
        """
        now = self._now = Reading(vectors, mask, tokens)
        try:
            yield now
        finally:
            self._now = None
        idle = [name for name in self.layers if name not in now.shares]
        if idle:
            raise BackboneError(
                f"layer {idle[0]}, after which fusion 'cross-attention' works, did not run. The backbone was copied, "
                "or its layers were replaced, after the fusion was made: make the model anew from the backbone."
            )

    def look(self, name: str, output: Any) -> Any:
        """Return a layer's output with what its tokens see; None, for no change, outside of a reading."""
        now = self._now
        if now is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        looked_at = now.of_rows(len(hidden)) if isinstance(hidden, Tensor) and hidden.dim() == 3 else None
        if looked_at is None:
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise BackboneError(
                f"fusion 'cross-attention' expects layers that give hidden states of shape ({len(now.vectors)}, "
                f"tokens, hidden size), but layer {name} gives {shape}. Choose another fusion for this architecture."
            )
        seen, shares = self.layers[name](hidden, *looked_at)
        now.note(name, shares)
        return (seen, *output[1:]) if isinstance(output, tuple) else seen


def _hook(reader: weakref.ref[CrossAttentionLayers], name: str) -> Callable[..., Any]:
    def hook(layer: nn.Module, args: Any, output: Any) -> Any:
        alive = reader()
        return None if alive is None else alive.look(name, output)

    return hook


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()

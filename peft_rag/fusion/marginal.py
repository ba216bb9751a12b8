"""Each neighbour read beside the input by itself, and the answers averaged by how well it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Fused, Read
from peft_rag.fusion.prompts import Prompt
from peft_rag.fusion.single_passages import SinglePassages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone


@dataclass(frozen=True)
class MarginalFusion(SinglePassages):
    """Neighbours as a latent variable: p(y|x) = Σ_z π_z·p(y|x,z), with π = softmax(s/τ).

    The model reads the input k times, each time with one neighbour z, and
    log p(y|x) = logsumexp_z(log π_z + log p(y|x,z)). s_z is the similarity that retrieval found; log τ is trained, so
    that the mixture learns how far to trust the closest. An input without neighbours is read once, alone.

    A written text y_1 … y_R is mixed token by token, Σ_t logsumexp_z(log π_z + log p(y_t|x,z,y_<t)), or as a whole,
    logsumexp_z(log π_z + Σ_t log p(y_t|x,z,y_<t)). The latter is told token by token too, by the chain rule:
    log p(y_t|x,y_<t) = logsumexp_z(log π_z + S_t,z) - logsumexp_z(log π_z + S_t-1,z), with the sums
    S_t,z = Σ_s≤t log p(y_s|x,z,y_<s).

    Source: Lewis et al. 2020, arXiv:2005.11401 (RAG-token and RAG-sequence; for classes they are one).

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are shown with its text.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        passage_tokens: tokens of one neighbour at most.
        temperature: τ at the start, in units of similarity.
        form: whether a written text is mixed by ``token`` or as a ``sequence``.
    """

    name: ClassVar[str] = "marginal"

    temperature: float = 0.1
    form: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"fusion.temperature is {self.temperature}; it must be above 0, for example 0.1.")
        if self.form not in ("token", "sequence"):
            raise ConfigError(f"fusion.form is '{self.form}'. Choose token or sequence.")

    def make_module(self, backbone: Backbone, vector_size: int) -> nn.Module:
        return _temperature(self.temperature)

    @property
    def writes_at_once(self) -> bool:
        return True

    def run(self, read: Read, batch: dict[str, Tensor], module: Any) -> Fused:
        from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_ROWS, PASSAGE_SCORES

        if PASSAGE_ROWS not in batch:
            return Fused(*read(**batch))
        inputs = dict(batch)
        rows, scores, owners = (inputs.pop(name) for name in (PASSAGE_ROWS, PASSAGE_SCORES, PASSAGE_EXAMPLES))
        log_probs, features = read(**inputs)
        logits = self.passage_logits(scores, module)
        by_text = self.form == "sequence" and log_probs.dim() == 1
        return marginalised(log_probs, features, rows, logits, owners if by_text else None)

    @contextmanager
    def prompt(self, batch: dict[str, Tensor], module: Any, *, goes_on: bool) -> Iterator[Prompt]:
        from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_ROWS, PASSAGE_SCORES
        from peft_rag.fusion.passage_mixture import PassageMixture

        if PASSAGE_ROWS not in batch:
            yield Prompt(batch)
            return
        inputs = dict(batch)
        rows, scores, _ = (inputs.pop(name) for name in (PASSAGE_ROWS, PASSAGE_SCORES, PASSAGE_EXAMPLES))
        logits = self.passage_logits(scores, module).detach()
        yield Prompt(inputs, mixture=PassageMixture(rows, logits, self.form))

    def passage_logits(self, scores: Tensor, module: Any) -> Tensor:
        """Turn similarities ``(R, K)`` into log π up to a constant; -inf is kept."""
        # Missing neighbours stay out of the division: the gradient of -inf/τ is no number.
        missing = scores == -math.inf
        return (scores.masked_fill(missing, 0.0) / module.log_temperature.exp()).masked_fill(missing, -math.inf)


def marginalised(
    log_probs: Tensor, features: Tensor, rows: Tensor, logits: Tensor, owners: Tensor | None = None
) -> Fused:
    """Sum out the neighbours: log p(y|x) = logsumexp_z(log π_z + log p(y|x,z)), features likewise averaged by π.

    Args:
        log_probs: log p(y|x,z) of the decisions on all inputs, ``(M, …)``.
        features: ``(M, F)``.
        rows: those of each decision, ``(R, K)``; -1 where it has fewer.
        logits: log π up to a constant of the decision, ``(R, K)``; -inf where it has fewer.
        owners: the text that each decision is a token of, where whole texts are mixed, ``(R,)``; log_probs ``(M,)``.
    """
    log_weights = logits.log_softmax(-1)
    weights = log_weights.exp()
    each = log_probs[rows.clamp(min=0)]
    shape = (*rows.shape, *[1] * (log_probs.dim() - 1))
    prior = log_weights.to(each.dtype).reshape(shape)
    if owners is not None:
        prior = _posterior(prior, each, owners)
    return Fused(
        (prior + each).logsumexp(1),
        (weights.to(features.dtype).unsqueeze(-1) * features[rows.clamp(min=0)]).sum(1),
        weights,
        each=each,
    )


def _posterior(prior: Tensor, each: Tensor, owners: Tensor) -> Tensor:
    """Return log p(z|x, y_<t) for each token: log π_z + S_t-1,z, normalised; all are ``(R, K)``."""
    import torch

    so_far = each.cumsum(0) - each
    first = torch.cat([owners.new_ones(1, dtype=torch.bool), owners[1:] != owners[:-1]])
    begin = so_far[first][first.long().cumsum(0) - 1]
    return (prior + so_far - begin).log_softmax(-1)


def _temperature(start: float) -> nn.Module:
    import torch
    from torch import nn

    module = nn.Module()
    module.log_temperature = nn.Parameter(torch.tensor(math.log(start)))
    return module

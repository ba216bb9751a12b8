"""Each neighbour read beside the input by itself, and the answers averaged by how well it fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import (
    PASSAGES,
    READ,
    SCORES,
    Fused,
    Read,
    Reader,
    Split,
    encode_inputs,
    neighbours_of,
)
from peft_rag.fusion.passages import Passages
from peft_rag.fusion.reading import ReadingFusion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class MarginalFusion(ReadingFusion):
    """Neighbours as a latent variable: p(y|x) = Σ_z π_z·p(y|x,z), with π = softmax(s/τ).

    The model reads the input k times, each time with one neighbour z as second segment, and
    log p(y|x) = logsumexp_z(log π_z + log p(y|x,z)). s_z is the similarity that retrieval found; log τ is trained, so
    that the mixture learns how far to trust the closest. An input without neighbours is read once, alone.

    Source: Lewis et al. 2020, arXiv:2005.11401 (RAG-sequence; for classes both of its forms are this one).

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are shown with its text.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        passage_tokens: tokens of one neighbour at most.
        temperature: τ at the start, in units of similarity.
    """

    name: ClassVar[str] = "marginal"
    sizes: ClassVar[tuple[str, ...]] = ("k", "passage_tokens")

    passage_tokens: int = 64
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"fusion.temperature is {self.temperature}; it must be above 0, for example 0.1.")

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        found, documents = neighbours_of(self.name, split, corpus)
        passages = Passages(reader, documents, self.passage_tokens, self.template, self.show_labels)
        rows = encode_inputs(split, reader)
        for number, alone in enumerate(rows):
            room = reader.max_length - sum(alone["pooled_mask"]) - passages.joining
            pairs = [pair for pair in found.row(number)[: self.k] if passages.that_fit([pair[0]], room)]
            if pairs:
                example = split.examples[number]
                inputs = [passages.beside(example, [position]) for position, _ in pairs]
                rows[number] = {PASSAGES: inputs, SCORES: [score for _, score in pairs]}
            rows[number][READ] = [position for position, _ in pairs]
        return rows

    def make_module(self, backbone: Backbone, vector_size: int) -> nn.Module:
        return _temperature(self.temperature)

    def run(self, read: Read, batch: dict[str, Tensor], module: Any) -> Fused:
        from peft_rag.fusion.batching import PASSAGE_ROWS, PASSAGE_SCORES

        if PASSAGE_ROWS not in batch:
            return Fused(*read(**batch))
        inputs = dict(batch)
        rows, scores = inputs.pop(PASSAGE_ROWS), inputs.pop(PASSAGE_SCORES)
        log_probs, features = read(**inputs)
        # Missing neighbours stay out of the division: the gradient of -inf/τ is no number.
        missing = rows < 0
        logits = scores.masked_fill(missing, 0.0) / module.log_temperature.exp()
        return marginalised(log_probs, features, rows, logits.masked_fill(missing, -math.inf))


def marginalised(log_probs: Tensor, features: Tensor, rows: Tensor, logits: Tensor) -> Fused:
    """Sum out the neighbours: log p(y|x) = logsumexp_z(log π_z + log p(y|x,z)), features likewise averaged by π.

    Args:
        log_probs: log p(y|x,z) of R inputs, ``(R, …)``.
        features: ``(R, D)``.
        rows: the inputs of each example, ``(B, K)``; -1 where it has fewer.
        logits: log π up to a constant of the example, ``(B, K)``; -inf where it has fewer.
    """
    log_weights = logits.log_softmax(-1)
    weights = log_weights.exp()
    each = log_probs[rows.clamp(min=0)]
    shape = (*rows.shape, *[1] * (log_probs.dim() - 1))
    return Fused(
        (log_weights.to(each.dtype).reshape(shape) + each).logsumexp(1),
        (weights.to(features.dtype).unsqueeze(-1) * features[rows.clamp(min=0)]).sum(1),
        weights,
    )


def _temperature(start: float) -> nn.Module:
    import torch
    from torch import nn

    module = nn.Module()
    module.log_temperature = nn.Parameter(torch.tensor(math.log(start)))
    return module

"""Each neighbour as a few soft tokens before the input, made of its vector."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fusion.base import READ, Fused, Read, Reader, Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.prompts import Prompt
from peft_rag.fusion.vectors import VectorFusion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class ProjectorFusion(VectorFusion):
    """Neighbours' vectors as soft tokens before the input: e = W₂·GELU(W₁·√V·d + b₁) + b₂.

    Each neighbour becomes ``tokens`` embeddings, closest first, which count towards ``max_length``: an input is cut to
    what they leave; a prompt that a decoder goes on from is not, and has the closest that fit. An encoder-decoder reads
    them before its encoder's input. The projector is trained, the vectors are not. The task pools over the input's own
    tokens, which have attended to the soft ones.

    With ``distill`` w above 0 the soft tokens learn from the text that they stand for: the loss is
    NLL + w·KL(p(y | x, z_1 … z_k) ‖ p(y | x, e_1 … e_k)), where the first is what the same reader, as it is at that
    step and without a gradient, answers when it reads the passages as text (`peft_rag.fusion.concat`). Of a written
    text it is the divergence over the right token and all others (`peft_rag.fusion.teaching`). Training costs that
    reading more, prediction nothing.

    Source: Cheng et al. 2024, arXiv:2405.13792 (xRAG, which has w = 2); here with several neighbours, and under any
    method.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are part of what is turned into its vector; without them it is the
            vector it was found by.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        tokens: soft tokens of one neighbour.
        width: of the projector's hidden layer.
        distill: w; 0 learns from answers alone.
    """

    name: ClassVar[str] = "projector"
    sizes: ClassVar[tuple[str, ...]] = ("k", "tokens", "width")

    tokens: int = 1
    width: int = 128
    distill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distill < math.inf:
            raise ConfigError(f"fusion.distill is {self.distill}; it is a weight, 0 for none or for example 2.")

    @property
    def tokens_each(self) -> int:
        return self.tokens

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        from peft_rag.fusion.batching import TEACHER

        rows = super().encode(split, corpus, reader)
        if not self.distill or any(example.labels is None for example in split.examples):
            return rows
        texts = ConcatFusion(k=self.k, show_labels=self.show_labels, template=self.template)
        readings = texts.encode(split, corpus, reader)
        return [
            row | {TEACHER: reading} if row[READ] and reading[READ] else row
            for row, reading in zip(rows, readings, strict=True)
        ]

    def make_module(self, backbone: Backbone, vector_size: int) -> nn.Module:
        from peft_rag.fusion.soft_tokens import Projector

        self.check_vector_size(vector_size)
        if "inputs_embeds" not in inspect.signature(backbone.model.forward).parameters:
            raise BackboneError(
                f"fusion 'projector' gives the backbone embeddings, but {type(backbone.model).__name__} reads token "
                "ids alone (its forward takes no inputs_embeds). Choose another fusion."
            )
        return Projector(backbone.model, vector_size, self.width, self.tokens)

    def run_with(self, read: Read, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any) -> Fused:
        from peft_rag.fusion.soft_tokens import put_before

        taught, reading = _taken_out(inputs)
        words = module.embed(inputs.pop("input_ids"))
        soft_mask = mask.repeat_interleave(self.tokens, dim=1)
        fused = Fused(*read(**put_before(module(vectors), soft_mask, words, inputs)))
        if taught is None or not module.training:
            return fused
        import torch

        from peft_rag.fusion.teaching import divergence

        with torch.no_grad(), module.undisturbed():
            teacher, _ = read(**reading)
        return replace(fused, penalty=self.distill * divergence(teacher, fused.log_probs[taught]))

    @contextmanager
    def prompt_with(
        self, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any, *, goes_on: bool
    ) -> Iterator[Prompt]:
        from peft_rag.fusion.soft_tokens import put_before

        ids = inputs.pop("input_ids")
        soft_mask = mask.repeat_interleave(self.tokens, dim=1)
        placed = put_before(module(vectors), soft_mask, module.embed(ids), inputs, left=goes_on)
        yield Prompt(placed | {"input_ids": ids})


def _taken_out(inputs: dict[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Take the decisions that are taught, and what the teacher reads, out of a batch; None where none are."""
    from peft_rag.fusion.batching import TAUGHT, TEACHER

    names = [name for name in inputs if name.startswith(TEACHER)]
    return inputs.pop(TAUGHT, None), {name.removeprefix(TEACHER): inputs.pop(name) for name in names}

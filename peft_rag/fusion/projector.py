"""Each neighbour as a few soft tokens before the input, made of its vector."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import BackboneError
from peft_rag.fusion.base import Fused, Read
from peft_rag.fusion.prompts import Prompt
from peft_rag.fusion.vectors import VectorFusion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone


@dataclass(frozen=True)
class ProjectorFusion(VectorFusion):
    """Neighbours' vectors as soft tokens before the input: e = W₂·GELU(W₁·√V·d + b₁) + b₂.

    Each neighbour becomes ``tokens`` embeddings, closest first, which count towards ``max_length``: an input is cut to
    what they leave; a prompt that a decoder goes on from is not, and has the closest that fit. An encoder-decoder reads
    them before its encoder's input. The projector is trained, the vectors are not. The task pools over the input's own tokens, which
    have attended to the soft ones.

    Source: Cheng et al. 2024, arXiv:2405.13792 (xRAG); here with several neighbours, and under any method.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are part of what is turned into its vector; without them it is the
            vector it was found by.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        tokens: soft tokens of one neighbour.
        width: of the projector's hidden layer.
    """

    name: ClassVar[str] = "projector"
    sizes: ClassVar[tuple[str, ...]] = ("k", "tokens", "width")

    tokens: int = 1
    width: int = 128

    @property
    def tokens_each(self) -> int:
        return self.tokens

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

        words = module.embed(inputs.pop("input_ids"))
        soft_mask = mask.repeat_interleave(self.tokens, dim=1)
        return Fused(*read(**put_before(module(vectors), soft_mask, words, inputs)))

    @contextmanager
    def prompt_with(
        self, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any, *, goes_on: bool
    ) -> Iterator[Prompt]:
        from peft_rag.fusion.soft_tokens import put_before

        ids = inputs.pop("input_ids")
        soft_mask = mask.repeat_interleave(self.tokens, dim=1)
        placed = put_before(module(vectors), soft_mask, module.embed(ids), inputs, left=goes_on)
        yield Prompt(placed | {"input_ids": ids})

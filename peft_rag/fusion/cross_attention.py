"""Tokens that look at the neighbours' vectors between the backbone's layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fusion.base import Fused, Read
from peft_rag.fusion.prompts import Prompt
from peft_rag.fusion.vectors import VectorFusion
from peft_rag.tasks.base import GOLD

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.backbone import Backbone


@dataclass(frozen=True)
class CrossAttentionFusion(VectorFusion):
    """Gated cross-attention to the neighbours after chosen layers: h ← h + tanh(α)·W_o·Attn(LN(h), E).

    E holds the K neighbours' vectors and a learned null neighbour, so that a token can look at nothing. α is 0 at the
    start: a fresh module gives the backbone's output bit for bit. Every token sees every neighbour, in decoders too:
    they were found by the whole input, which is answered as a whole, or by the prompt before all that is written. Of an
    encoder-decoder that writes it is the decoder whose tokens look. A neighbour's weight is the attention that it got,
    the mean over heads, layers and tokens (of a written text those by which its tokens are predicted); what is missing
    to 1 went to the null neighbour.

    Source: Alayrac et al. 2022, arXiv:2204.14198 (Flamingo).

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are part of what is turned into its vector; without them it is the
            vector it was found by.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        layers: after which it looks, counted from 0, or from the end by negative numbers: ``[-2, -1]``, as a flag
            ``--fusion.layers=-2,-1``.
        width: of queries, keys and values, all heads together.
        heads: among which the width is divided.
    """

    name: ClassVar[str] = "cross-attention"

    layers: tuple[int, ...] = (-2, -1)
    width: int = 64
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", _indices(self.layers))
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(
                f"fusion 'cross-attention' divides width among heads, but got width={self.width} and "
                f"heads={self.heads}. Choose a width that is a multiple of heads, for example 64 and 4."
            )

    def make_module(self, backbone: Backbone, vector_size: int) -> nn.Module:
        from peft_rag.fusion.gated_attention import CrossAttentionLayers, GatedCrossAttention

        self.check_vector_size(vector_size)
        stack = _stack(backbone)
        wrong = [index for index in self.layers if not -len(stack) <= index < len(stack)]
        if wrong:
            raise ConfigError(
                f"fusion.layers names {wrong[0]}, but '{backbone.name}' has {len(stack)} layers. Choose 0 to "
                f"{len(stack) - 1}, or -1 to {-len(stack)} from the end."
            )
        chosen = sorted(index % len(stack) for index in self.layers)
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"fusion.layers names {chosen} of {len(stack)} layers. Name each once.")
        return CrossAttentionLayers(
            {index: stack[index] for index in chosen},
            lambda: GatedCrossAttention(_width(backbone), vector_size, self.width, self.heads),
        )

    def run_with(self, read: Read, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any) -> Fused:
        with module.reading(vectors, mask, _asking(inputs)) as now:
            answer = read(**inputs)
        return Fused(*answer, now.weights)

    @contextmanager
    def prompt_with(
        self, inputs: dict[str, Tensor], vectors: Tensor, mask: Tensor, module: Any, *, goes_on: bool
    ) -> Iterator[Prompt]:
        with module.reading(vectors, mask):
            yield Prompt(inputs)


def _asking(inputs: dict[str, Tensor]) -> Tensor:
    """Return 1 for the tokens that an answer rests on: those of the input, or those that predict a written text's."""
    from peft_rag.fusion.batching import POOL_INPUTS, POOL_TOKENS

    tokens = inputs["attention_mask"]
    if GOLD not in inputs:
        return tokens
    written = inputs.get("decoder_input_ids", tokens)
    asking = written.new_zeros(written.shape)
    asking[inputs[POOL_INPUTS], inputs[POOL_TOKENS][:, 0]] = 1
    return asking


def _indices(given: Any) -> tuple[int, ...]:
    """Read layer indices as a file, a flag or Python gives them."""
    named = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        chosen = tuple(int(index) for index in named)
    except (TypeError, ValueError):
        chosen = ()
    if not chosen or any(isinstance(index, bool | float) for index in named):
        raise ConfigError(f"fusion.layers is {given!r}; it must be layer indices, for example [-2, -1].")
    return chosen


def _looking(backbone: Backbone) -> Any:
    """Return the part of a backbone whose tokens look: of an encoder-decoder its decoder, which writes."""
    return backbone.model.get_decoder() if backbone.is_encoder_decoder else backbone.model


def _width(backbone: Backbone) -> int:
    return int(_looking(backbone).config.hidden_size) if backbone.is_encoder_decoder else backbone.hidden_size


def _stack(backbone: Backbone) -> nn.ModuleList:
    """Return the layers of what looks.

    Raises:
        BackboneError: there is no one list of them.
    """
    from torch import nn

    from peft_rag.stacks import layer_stacks

    looking = _looking(backbone)
    stacks = layer_stacks(looking)
    depth = getattr(looking.config, "num_hidden_layers", 0)
    names = [name for name, length in stacks.items() if len(stacks) == 1 or length == depth]
    if len(names) != 1:
        shown = ", ".join(stacks) or "none"
        raise BackboneError(
            f"fusion 'cross-attention' works after the layers of one list, but {type(looking).__name__} has "
            f"{shown}. Choose another fusion for this architecture."
        )
    stack = looking.get_submodule(names[0])
    assert isinstance(stack, nn.ModuleList)
    return stack

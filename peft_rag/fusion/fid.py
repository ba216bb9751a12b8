"""Each neighbour encoded beside the input by itself, and all of them read together by the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peft_rag.errors import BackboneError
from peft_rag.fusion.base import Fused, Read
from peft_rag.fusion.prompts import Prompt
from peft_rag.fusion.single_passages import SinglePassages

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.backbone import Backbone


@dataclass(frozen=True)
class FidFusion(SinglePassages):
    """Fusion in the decoder: p(y|x, z_1 … z_k) = Π_t p(y_t | y_<t, [Enc(x, z_1); … ; Enc(x, z_k)]).

    The encoder reads the input k times, each time with one neighbour, so that reading costs k times one passage and
    not the square of all; the decoder attends to the states of all of them, one after the other. An input without
    neighbours is encoded once, alone. What a method trains in the encoder, virtual tokens too, is there beside every
    passage. An encoder-decoder and a task that writes (``text2text``) are needed.

    Source: Izacard & Grave 2021, arXiv:2007.01282.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are shown with its text.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
        passage_tokens: tokens of one neighbour at most.
    """

    name: ClassVar[str] = "fid"

    @property
    def needs_encoder_decoder(self) -> bool:
        return True

    def make_module(self, backbone: Backbone, vector_size: int) -> None:
        """Train nothing.

        Raises:
            BackboneError: there is no decoder that could read what an encoder has read.
        """
        if not backbone.is_encoder_decoder:
            raise BackboneError(
                f"fusion 'fid' lets a decoder read what an encoder has read of each passage, but backbone "
                f"'{backbone.name}' is not loaded as an encoder-decoder that writes. Take the task text2text with an "
                "encoder-decoder (t5, bart, warm:NAME), or another fusion."
            )

    def run(self, read: Read, batch: dict[str, Tensor], module: Any) -> Fused:
        from peft_rag.fusion.batching import (
            ENCODER_ROWS,
            PASSAGE_EXAMPLES,
            PASSAGE_ROWS,
            PASSAGE_SCORES,
            POOL_INPUTS,
            POOL_TOKENS,
        )
        from peft_rag.tasks.base import GOLD

        if PASSAGE_ROWS not in batch:
            return Fused(*read(**batch))
        inputs = dict(batch)
        rows, owners, _ = (inputs.pop(name) for name in (PASSAGE_ROWS, PASSAGE_EXAMPLES, PASSAGE_SCORES))
        # Each input came with the answer; the decoder is given that of each example's first, once.
        first, encoder_rows = rows[:, 0], _rows_of_examples(rows, owners, inputs[POOL_INPUTS])
        inputs |= {POOL_INPUTS: owners, POOL_TOKENS: inputs[POOL_TOKENS][first], GOLD: inputs[GOLD][first]}
        inputs["decoder_input_ids"] = inputs["decoder_input_ids"][encoder_rows[:, 0]]
        return Fused(*read(**inputs, **{ENCODER_ROWS: encoder_rows}))

    @contextmanager
    def prompt(self, batch: dict[str, Tensor], module: Any, *, goes_on: bool) -> Iterator[Prompt]:
        from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_ROWS, PASSAGE_SCORES

        inputs = dict(batch)
        rows, _, _ = (inputs.pop(name, None) for name in (PASSAGE_ROWS, PASSAGE_EXAMPLES, PASSAGE_SCORES))
        yield Prompt(inputs, rows)


def _rows_of_examples(rows: Tensor, owners: Tensor, pool_inputs: Tensor) -> Tensor:
    """Return the inputs of each example ``(B, K)``, -1 where it has fewer, from those of its first decision.

    Args:
        rows: answers to each decision, ``(R, K)``.
        owners: the example of each decision, ``(R,)``, in order.
        pool_inputs: the input that each answer is of.
    """
    begins = owners.diff(prepend=owners.new_full((1,), -1)) != 0
    of_decisions = rows[begins]
    return pool_inputs[of_decisions.clamp(min=0)].where(of_decisions >= 0, of_decisions)

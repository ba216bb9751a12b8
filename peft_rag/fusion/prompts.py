"""What texts are written from: one input each, several that are mixed, or several that are read together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_rag.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.fusion.base import Fusion
    from peft_rag.fusion.passage_mixture import PassageMixture

_PLAIN = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True)
class Prompt:
    """What a batch of B texts is written from.

    Attributes:
        inputs: what the backbone reads, I inputs: ``input_ids``, ``attention_mask`` and what else, ``(I, T)``; or
            ``inputs_embeds`` ``(I, N, D)`` with an ``attention_mask`` of its own length, in place of the ids, which
            stay for what looks at them while a text is written (penalties of repetition).
        encoder_rows: the inputs that the decoder reads together for each text, ``(B, K)``, -1 where it has fewer; None
            where each input is read by itself.
        mixture: what lets several inputs of a text write it together; None where each text has one input.
    """

    inputs: dict[str, Tensor]
    encoder_rows: Tensor | None = None
    mixture: PassageMixture | None = None


@contextmanager
def plain_prompt(fusion: Fusion, batch: dict[str, Tensor]) -> Iterator[Prompt]:
    """Write from inputs as they are.

    Raises:
        ConfigError: there is more in the batch than a backbone reads.
    """
    more = sorted(batch.keys() - _PLAIN)
    if more:
        raise ConfigError(
            f"fusion '{type(fusion).__name__}' cannot be read while a text is written: it says nothing of what becomes "
            f"of {', '.join(more)} then. Use concat, marginal, knn or none, or give it a `prompt`."
        )
    yield Prompt(batch)

"""No retrieval at all: the baseline every fusion is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.fusion.base import Embed, Fusion, Split, encode_inputs

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class NoFusion(Fusion):
    """No retrieval: p(y|x) is the tuned model's own."""

    def encode(
        self, tokenizer: Any, split: Split, corpus: Corpus | None, max_length: int, embed: Embed | None = None
    ) -> list[dict[str, Any]]:
        return encode_inputs(tokenizer, split, max_length)

"""No retrieval at all: the baseline every fusion is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peft_rag.fusion.base import Fusion, Reader, Split, encode_inputs

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus


@dataclass(frozen=True)
class NoFusion(Fusion):
    """No retrieval: p(y|x) is the tuned model's own."""

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        if reader.task is not None and reader.task.opens:
            split = replace(split, examples=[reader.task.alone(example) for example in split.examples])
        return encode_inputs(split, reader)

"""Conformance kits: what a plugin of each kind must keep to, as functions that any test runner can call."""

from __future__ import annotations

from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.fusions import FusionCheck, check_fusion
from peft_rag.testing.methods import MethodCheck, check_method
from peft_rag.testing.retrievers import RetrieverCheck, WordEncoder, check_retriever

__all__ = [
    "TINY_BACKBONES",
    "FusionCheck",
    "MethodCheck",
    "RetrieverCheck",
    "WordEncoder",
    "check_fusion",
    "check_method",
    "check_retriever",
]

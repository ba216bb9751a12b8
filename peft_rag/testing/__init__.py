"""Conformance kits: what a plugin of each kind must keep to, as functions that any test runner can call."""

from __future__ import annotations

from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.fusions import FusionCheck, check_fusion
from peft_rag.testing.methods import MethodCheck, check_method
from peft_rag.testing.retrievers import RetrieverCheck, WordEncoder, check_retriever
from peft_rag.testing.tasks import TaskCheck, check_task

__all__ = [
    "TINY_BACKBONES",
    "FusionCheck",
    "MethodCheck",
    "RetrieverCheck",
    "TaskCheck",
    "WordEncoder",
    "check_fusion",
    "check_method",
    "check_retriever",
    "check_task",
]

"""Conformance kits: what a plugin of each kind must keep to, as functions that any test runner can call."""

from __future__ import annotations

from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.methods import MethodCheck, check_method

__all__ = ["TINY_BACKBONES", "MethodCheck", "check_method"]

"""PEFT methods: what one is, how it is found by name, attached to a frozen backbone, and audited."""

from __future__ import annotations

from peft_rag.methods.attachment import AttachReport, attach
from peft_rag.methods.audit import FreezeAudit, audit_frozen, backbone_tensors, trainable_names
from peft_rag.methods.method import Method, register, resolve
from peft_rag.methods.noise import quiet_peft
from peft_rag.methods.options import Option, method_options
from peft_rag.methods.saving import save_adapter
from peft_rag.methods.switching import disabled

__all__ = [
    "AttachReport",
    "FreezeAudit",
    "Method",
    "Option",
    "attach",
    "audit_frozen",
    "backbone_tensors",
    "disabled",
    "method_options",
    "quiet_peft",
    "register",
    "resolve",
    "save_adapter",
    "trainable_names",
]

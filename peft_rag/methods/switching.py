"""Run the bare backbone under an adapter, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer


@contextmanager
def disabled(model: PeftModel) -> Iterator[None]:
    """Within the block, a model computes what its backbone alone does.

    The same as ``model.disable_adapter()``, which in peft 0.21 fails for prompts on an encoder and for models in which
    no module is wrapped.
    """
    if model.active_peft_config.is_prompt_learning:
        own = model.__dict__.get("forward")
        model.forward = model.base_model.forward
        try:
            yield
        finally:
            del model.forward
            if own is not None:
                model.forward = own
    elif model.active_peft_config.is_adaption_prompt or any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        with model.disable_adapter():
            yield
    else:
        yield

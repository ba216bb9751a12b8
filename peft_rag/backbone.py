"""The frozen transformer: found by name, loaded without a head, and known by its fingerprint."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.hub import hub_forbidden, hub_reachable
from peft_rag.packaged import model_location
from peft_rag.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Backbone:
    """A pretrained transformer without a head, and its tokenizer.

    Attributes:
        name: as the user gave it: a hub name or a folder.
        model: frozen and in evaluation mode.
        tokenizer: its fast tokenizer.
        fingerprint: of the weights, taken before any method was attached.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    fingerprint: str

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @cached_property
    def is_causal(self) -> bool:
        """Whether a token sees only what stands before it, as in a decoder."""
        return any(getattr(module, "is_causal", False) is True for module in self.model.modules())

    @property
    def longest_input(self) -> int:
        """Tokens the backbone can read, or a million where it sets no bound."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 1_000_000
        padding = getattr(self.model.config, "pad_token_id", None) or 0
        offset = padding + 1 if "roberta" in self.model.config.model_type else 0
        return min(int(positions) - offset, int(self.tokenizer.model_max_length), 1_000_000)


def load_backbone(name: str, *, revision: str | None = None, dtype: str = "float32") -> Backbone:
    """Load a backbone by hub name or folder, frozen, without pooler or head; of an encoder-decoder its encoder.

    Only safetensors are read, and no code that comes with a model is run. A model that an installed package ships is
    taken from there.

    Args:
        name: hub name or folder.
        revision: branch, tag or commit of a hub model.
        dtype: torch dtype of the weights.

    Raises:
        BackboneError: the model cannot be found, or has no safetensors weights.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

    location = model_location(name)
    local = hub_forbidden() or not hub_reachable()
    where = {"revision": revision, "trust_remote_code": False, "local_files_only": local}
    with _one_line_errors(name), quiet_transformers():
        config = AutoConfig.from_pretrained(location, **where)
        # A pair of any encoder and any decoder is known with its head alone.
        pairs = AutoModelForSeq2SeqLM._model_mapping
        model_class = (pairs if config.model_type == "encoder-decoder" else AutoModel._model_mapping)[type(config)]
        pooler = {"add_pooling_layer": False} if "add_pooling_layer" in _parameters(model_class) else {}
        model = model_class.from_pretrained(
            location, revision=revision, local_files_only=local, dtype=dtype, use_safetensors=True, **pooler
        )
        tokenizer = AutoTokenizer.from_pretrained(location, use_fast=True, **where)
    return as_backbone(encoder_of(model), tokenizer, name)


def load_tokenizer(name: str) -> Any:
    """Load a backbone's tokenizer alone, as `load_backbone` does."""
    from transformers import AutoTokenizer

    local = hub_forbidden() or not hub_reachable()
    with _one_line_errors(name), quiet_transformers():
        return AutoTokenizer.from_pretrained(
            model_location(name), use_fast=True, trust_remote_code=False, local_files_only=local
        )


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder of an encoder-decoder, whose states are what a text is judged by; others as they are."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return model
    encoder: PreTrainedModel = model.get_encoder()
    return encoder


def as_backbone(model: PreTrainedModel, tokenizer: Any, name: str) -> Backbone:
    """Freeze a model that is already in memory and take its fingerprint."""
    model.requires_grad_(False)
    model.eval()
    model.name_or_path = name
    model.config._name_or_path = name
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(name, model, tokenizer, weights_fingerprint(model.state_dict().items()))


def check_length(backbone: Backbone, max_length: int) -> None:
    """Raise when inputs of ``max_length`` tokens are more than the backbone can read."""
    if not 8 <= max_length <= backbone.longest_input:
        raise ConfigError(
            f"max_length is {max_length}, but '{backbone.name}' reads 8 to {backbone.longest_input} tokens. "
            "Choose within that."
        )


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"backbone '{name}' cannot be loaded: {reason[:300]} "
            "Give a folder that holds config.json, model.safetensors and tokenizer.json, a hub name while the hub can "
            "be reached, or sentence-transformers/all-MiniLM-L6-v2 from the demo extra."
        ) from error


def _parameters(model_class: type) -> Any:
    return inspect.signature(model_class).parameters

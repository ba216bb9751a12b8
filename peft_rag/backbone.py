"""The frozen transformer: found by name, loaded without or with a language-model head, known by its fingerprint."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peft_rag.backbone_name import BackboneName
from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fingerprint import tokenizer_fingerprint, weights_fingerprint
from peft_rag.hub import hub_forbidden, hub_reachable
from peft_rag.packaged import model_location
from peft_rag.quantised import quantisation
from peft_rag.quiet import quiet_transformers
from peft_rag.warm_start import warm_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADS = NO_HEAD, CAUSAL, SEQ2SEQ, ANY_HEAD = ("none", "causal", "seq2seq", "any")


@dataclass(frozen=True)
class Backbone:
    """A pretrained transformer, without a head or with the language-model head it generates by, and its tokenizer.

    Attributes:
        name: as the user gave it: hub name or folder, after ``warm:``, ``4bit:`` or ``8bit:`` where it is so loaded.
        model: frozen and in evaluation mode.
        tokenizer: its fast tokenizer.
        fingerprint: of the weights, taken before any method was attached; see `fingerprint_of`.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    fingerprint: str

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """A hash of how it cuts texts into tokens; see `peft_rag.fingerprint.tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def generates(self) -> bool:
        """Whether it was loaded with the head by which it writes text."""
        return bool(self.model.can_generate())

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads with one half and writes with another; an encoder loaded by itself does not."""
        return self.generates and bool(getattr(self.model.config, "is_encoder_decoder", False))

    @property
    def hidden_size(self) -> int:
        return int(self._reader.hidden_size)

    @cached_property
    def is_causal(self) -> bool:
        """Whether a token sees only what stands before it, as in a decoder."""
        return any(getattr(module, "is_causal", False) is True for module in self.model.modules())

    @property
    def longest_input(self) -> int:
        """Tokens the backbone can read, or a million where it sets no bound."""
        return min(self.positions, int(self.tokenizer.model_max_length))

    @property
    def positions(self) -> int:
        """Tokens that have a place, virtual ones too, or a million where it sets no bound."""
        positions = getattr(self._reader, "max_position_embeddings", None) or 1_000_000
        padding = getattr(self._reader, "pad_token_id", None) or 0
        offset = padding + 1 if "roberta" in self._reader.model_type else 0
        return min(int(positions) - offset, 1_000_000)

    @property
    def _reader(self) -> Any:
        """The configuration of the part that reads: of a pair of two models its encoder's."""
        config = self.model.config
        return config.encoder if config.model_type == "encoder-decoder" else config


def load_backbone(
    name: str, *, head: str = NO_HEAD, revision: str | None = None, dtype: str = "float32", load_in: str = ""
) -> Backbone:
    """Load a backbone by hub name or folder, frozen.

    Only safetensors are read, and no code that comes with a model is run. A model that an installed package ships, or
    that was prepared, is taken from there.

    Args:
        name: hub name or folder; ``warm:NAME`` makes an encoder-decoder of an encoder (see `warm_start`), ``4bit:NAME``
            and ``8bit:NAME`` quantise.
        head: ``none`` leaves away pooler and head, and of an encoder-decoder all but its encoder; ``causal`` loads a
            decoder and ``seq2seq`` an encoder-decoder with the head by which it generates, ``any`` whichever it is.
        revision: branch, tag or commit of a hub model.
        dtype: torch dtype of the weights.
        load_in: ``4bit`` or ``8bit``, as the prefix of the name.

    Raises:
        BackboneError: the model cannot be found, has no safetensors weights, or cannot have that head.
        ConfigError: no such head or number of bits.
    """
    from transformers import AutoTokenizer

    wanted = BackboneName.parse(name, load_in=load_in)
    if head not in HEADS:
        raise ConfigError(f"head is '{head}'. Choose {', '.join(HEADS)}.")
    location = model_location(wanted.place)
    local = hub_forbidden() or not hub_reachable()
    where = {"revision": revision, "local_files_only": local}
    loading = {**where, "dtype": dtype, "use_safetensors": True, **quantisation(str(wanted), wanted.load_in, dtype)}
    with _one_line_errors(wanted), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(location, use_fast=True, trust_remote_code=False, **where)
        if wanted.warm and head != NO_HEAD:
            _check_head(str(wanted), "encoder-decoder", head, {SEQ2SEQ})
            model = warm_start(str(wanted), location, tokenizer, **loading)
        else:
            model_class = _class_for(str(wanted), location, head, where)
            pooler = {"add_pooling_layer": False} if "add_pooling_layer" in _parameters(model_class) else {}
            model = model_class.from_pretrained(location, **loading, **pooler)
    backbone = as_backbone(model if head != NO_HEAD else encoder_of(model), tokenizer, str(wanted))
    if head == NO_HEAD or not wanted.warm:
        # What is saved on top of it names the model that plain peft can load.
        backbone.model.name_or_path = backbone.model.config._name_or_path = wanted.place
    return backbone


def _class_for(name: str, location: str, head: str, where: dict[str, Any]) -> Any:
    """Return the transformers class that loads a model with a head, or say which it can have."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(location, trust_remote_code=False, **where)
    kind, pairs, decoders = type(config), AutoModelForSeq2SeqLM._model_mapping, AutoModelForCausalLM._model_mapping
    if head == NO_HEAD:
        # A pair of any encoder and any decoder is known with its head alone.
        return (pairs if config.model_type == "encoder-decoder" else AutoModel._model_mapping)[kind]
    # Encoders such as BERT have a class that generates too, which means nothing unless they were trained as decoders.
    encoder = kind in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    can: set[str] = set()
    if kind in pairs and getattr(config, "is_encoder_decoder", False):
        can = {SEQ2SEQ}
    elif kind in decoders and not encoder:
        can = {CAUSAL}
    _check_head(name, config.model_type, head, can)
    return (pairs if SEQ2SEQ in can else decoders)[kind]


def _check_head(name: str, kind: str, head: str, can: set[str]) -> None:
    if can & {head} or (can and head == ANY_HEAD):
        return
    if not can:
        raise BackboneError(
            f"backbone '{name}' is a {kind}, which reads text and cannot write it. Decoders can (gpt2, llama, qwen, "
            "gemma), encoder-decoders can (t5, bart), and some encoders can start one: warm:NAME."
        )
    raise BackboneError(
        f"backbone '{name}' is a {kind}: it generates with the head '{min(can)}', but '{head}' is asked for. "
        + (
            "Name a decoder, such as gpt2 or gemma."
            if head == CAUSAL
            else "Name an encoder-decoder, such as t5 or bart."
        )
    )


def is_encoder_decoder(name: str) -> bool:
    """Say from its configuration alone whether a backbone reads with one half and writes with another.

    Raises:
        BackboneError: it cannot be found.
    """
    from transformers import AutoConfig

    wanted, local = BackboneName.parse(name), hub_forbidden() or not hub_reachable()
    with _one_line_errors(wanted), quiet_transformers():
        config = AutoConfig.from_pretrained(
            model_location(wanted.place), trust_remote_code=False, local_files_only=local
        )
    return wanted.warm or bool(getattr(config, "is_encoder_decoder", False))


def load_tokenizer(name: str) -> Any:
    """Load a backbone's tokenizer alone, as `load_backbone` does."""
    from transformers import AutoTokenizer

    wanted, local = BackboneName.parse(name), hub_forbidden() or not hub_reachable()
    with _one_line_errors(wanted), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(
            model_location(wanted.place), use_fast=True, trust_remote_code=False, local_files_only=local
        )
    _give_padding(tokenizer, name)
    return tokenizer


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder of an encoder-decoder, whose states are what a text is judged by; others as they are."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return model
    encoder: PreTrainedModel = model.get_encoder()
    return encoder


def as_backbone(model: PreTrainedModel, tokenizer: Any, name: str) -> Backbone:
    """Freeze a model that is already in memory, tell it its padding, and take its fingerprint."""
    model.requires_grad_(False)
    model.eval()
    model.name_or_path = name
    model.config._name_or_path = name
    _give_padding(tokenizer, name)
    generation = getattr(model, "generation_config", None)
    for settings in (model.config, *([] if generation is None else [generation])):
        if getattr(settings, "pad_token_id", None) is None:
            settings.pad_token_id = tokenizer.pad_token_id
    if generation is not None and generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    return Backbone(name, model, tokenizer, fingerprint_of(model))


def fingerprint_of(model: PreTrainedModel) -> str:
    """Hash the weights of a backbone: those of its body by their names there, and those its head has of its own.

    A head that shares the word embeddings has none of its own, so that a decoder with tied embeddings has one
    fingerprint whether it is loaded to judge or to generate. An encoder-decoder loaded for its encoder alone has
    another, as do quantised weights: the artefact's task and the backbone's name say how it is loaded, and the same way
    gives the same fingerprint.
    """
    body = model.base_model
    tensors = dict(body.state_dict())
    if body is not model:
        shared = {tensor.data_ptr() for tensor in tensors.values()}
        own = {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in shared}
        tensors |= own
    return weights_fingerprint(tensors.items())


def _give_padding(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BackboneError(
                f"backbone '{name}': its tokenizer has neither a pad_token nor an eos_token to pad with. "
                "Set one in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token


def check_length(backbone: Backbone, max_length: int, virtual_tokens: int = 0) -> None:
    """Raise when inputs of ``max_length`` tokens, with virtual ones before, are more than the backbone can read."""
    longest = min(backbone.longest_input, backbone.positions - virtual_tokens)
    if not 8 <= max_length <= longest:
        beside = f" beside {virtual_tokens} virtual ones" if virtual_tokens else ""
        raise ConfigError(
            f"max_length is {max_length}, but '{backbone.name}' reads 8 to {longest} tokens{beside}. "
            "Choose within that."
        )


@contextmanager
def _one_line_errors(name: BackboneName) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"backbone '{name}' cannot be loaded: {_reason(error)} "
            "Give a folder that holds config.json, model.safetensors and tokenizer.json, a hub name while the hub can "
            "be reached, or sentence-transformers/all-MiniLM-L6-v2 from the demo extra."
        ) from error
    except (ImportError, RuntimeError) as error:
        mend = f"If this device cannot compute in {name.load_in}, name '{name.place}' alone." if name.load_in else ""
        raise BackboneError(f"backbone '{name}' cannot be loaded: {_reason(error)} {mend}".rstrip()) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _parameters(model_class: type) -> Any:
    return inspect.signature(model_class).parameters

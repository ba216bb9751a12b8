"""An encoder-decoder made of a pretrained encoder, where no pretrained encoder-decoder is to be had."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from peft_rag.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def warm_start(name: str, location: str, tokenizer: Any, **loading: Any) -> PreTrainedModel:
    """Make an encoder-decoder whose encoder and decoder both start as one pretrained encoder.

    One table of word embeddings serves encoder, decoder and output. New are the decoder's cross-attention and, where
    the checkpoint holds none, the transform before the output: they start at random, drawn from the name of each
    tensor, so that they are the same at each load and on every machine.

    **What is new has learned nothing, and the encoder was never taught to write.** Until both are trained the model
    produces noise. Train it in full (``full``), or with LoRA on the cross-attention and the transform
    (``target_modules=all-linear``); a method that leaves them as they are can only steer noise. Even then expect far
    less than of a pretrained encoder-decoder, and need far more pairs.

    Source: Rothe et al. 2020, arXiv:1907.12461 (BERT2BERT with shared embeddings).

    Args:
        name: as the user gave it, for errors.
        location: where the encoder is loaded from.
        tokenizer: its tokenizer; its first and last special tokens begin and end what the decoder writes.
        loading: what `from_pretrained` takes besides.

    Raises:
        BackboneError: the encoder's kind cannot be a decoder, or the tokenizer lacks tokens to begin or end with.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel

    begin = _token(name, tokenizer, "cls_token_id", "bos_token_id")
    end = _token(name, tokenizer, "sep_token_id", "eos_token_id")
    where = {key: loading[key] for key in ("revision", "local_files_only") if key in loading}
    config = AutoConfig.from_pretrained(location, trust_remote_code=False, **where)
    if type(config) not in AutoModelForCausalLM._model_mapping or not hasattr(config, "add_cross_attention"):
        raise BackboneError(_not_a_decoder(name, config.model_type))
    config.is_decoder = config.add_cross_attention = True
    decoder, report = AutoModelForCausalLM.from_pretrained(location, config=config, output_loading_info=True, **loading)
    if not any("crossattention" in path for path, _ in decoder.named_modules()):
        raise BackboneError(_not_a_decoder(name, config.model_type))
    encoder = AutoModel.from_pretrained(location, add_pooling_layer=False, **loading)
    _initialise(decoder, report["missing_keys"])
    decoder.set_input_embeddings(encoder.get_input_embeddings())
    decoder.tie_weights()
    pair = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder.config,
        decoder.config,
        decoder_start_token_id=begin,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=decoder.config.vocab_size,
    )
    return EncoderDecoderModel(config=pair, encoder=encoder, decoder=decoder)


def _initialise(model: PreTrainedModel, names: Any) -> None:
    """Draw the matrices that no checkpoint gave: uniform, with the deviation that the architecture asks for.

    Each element is an integer drawn by PCG64 from a hash of the tensor's name, scaled: exact arithmetic, so that the
    result is the same wherever it is computed. Vectors (biases, norms) keep the zeros and ones they have.
    """
    import torch

    spread = float(getattr(model.config, "initializer_range", 0.02)) * 3**0.5
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(set(names) & set(tensors)):
            if tensors[name].dim() > 1:
                tensors[name].copy_(uniform(name, tuple(tensors[name].shape), spread))


def uniform(name: str, shape: tuple[int, ...], spread: float) -> Tensor:
    """Draw float32 numbers between -``spread`` and ``spread`` that depend on nothing but a name and a shape."""
    import numpy as np
    import torch

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    drawn = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    return torch.from_numpy((2 * drawn - 1) * np.float32(spread))


def _token(name: str, tokenizer: Any, *kinds: str) -> int:
    for kind in kinds:
        found = getattr(tokenizer, kind, None)
        if found is not None:
            return int(found)
    wanted = " nor ".join(kind.removesuffix("_id") for kind in kinds)
    raise BackboneError(
        f"backbone '{name}': its tokenizer has neither {wanted}, which a decoder needs. Choose another encoder."
    )


def _not_a_decoder(name: str, kind: str) -> str:
    return (
        f"backbone '{name}': a {kind} cannot start a decoder, because transformers has no cross-attention for it. "
        "bert, roberta, xlm-roberta, electra, camembert and their like can; or name a T5 or BART."
    )

"""Log-probabilities of given tokens by a backbone's own language-model head, computed for these tokens alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_rag.encoder_states import bare, read_together
from peft_rag.errors import BackboneError

if TYPE_CHECKING:
    from peft_rag.backbone import Backbone
    from peft_rag.tasks.base import Task


def decoder_start(backbone: Backbone) -> int | None:
    """Return the token with which an encoder-decoder's decoder starts; None for a backbone that is none."""
    model = backbone.model
    if not (model.can_generate() and getattr(model.config, "is_encoder_decoder", False)):
        return None
    for settings in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            if getattr(settings, name, None) is not None:
                return int(getattr(settings, name))
    return int(backbone.tokenizer.pad_token_id)


def check_writes(backbone: Backbone, task: Task) -> None:
    """Raise `BackboneError` where a task that writes meets a backbone that cannot."""
    if not task.appends:
        return
    if task.goes_on and decoder_start(backbone) is not None:
        raise BackboneError(
            f"backbone '{backbone.name}' is an encoder-decoder, but the task writes on where its prompt ends. Name a "
            "decoder, or take the task text2text."
        )
    if not backbone.model.can_generate():
        raise BackboneError(
            f"backbone '{backbone.name}' was loaded without the head by which it writes, but the task writes text, or "
            "judges it by how likely it is. "
            "Load it with load_backbone(name, head='any'), or name a decoder or an encoder-decoder."
        )


def head_of(backbone: nn.Module) -> nn.Module:
    """Return the layer that turns states into logits over the vocabulary."""
    head: nn.Module = bare(backbone).get_output_embeddings()
    return head


def last_states(backbone: nn.Module, inputs: dict[str, Tensor], start: int | None) -> Tensor:
    """Return the states that the head reads ``(B, T, D)``; it is given the last of them alone.

    Args:
        backbone: a decoder or an encoder-decoder, with its head, under any method.
        inputs: what it reads.
        start: the token that an encoder-decoder's decoder starts with, whose state is returned; None for a decoder.
    """
    states: list[Tensor] = []

    def choose(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states.append(given[0])
        return (given[0][:, -1:], *given[1:])

    if start is not None:
        ids = inputs["input_ids"]
        inputs = inputs | {"decoder_input_ids": ids.new_full((len(ids), 1), start)}
    handle = head_of(backbone).register_forward_pre_hook(choose)
    try:
        backbone(**inputs, use_cache=False)
    finally:
        handle.remove()
    return states[0]


def token_log_probs(
    backbone: nn.Module,
    inputs: dict[str, Tensor],
    width: int,
    pool_inputs: Tensor,
    pool_tokens: Tensor,
    gold: Tensor,
    encoder_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log p(gold) in nats ``(R,)`` and the states that predict them ``(R, D)``.

    The head is given the states of R places instead of those of all tokens, so that logits over a large vocabulary are
    computed for what counts only; whatever else the backbone does to states and logits, it does here too.

    Args:
        backbone: a decoder or an encoder-decoder, with its head, under any method.
        inputs: what it reads.
        width: tokens of the input that places are counted in; what stands before these is virtual.
        pool_inputs: the input of each place, ``(R,)``.
        pool_tokens: the token there whose successor is judged, ``(R, 1)``, of the decoder's input where there is one.
        gold: the successor, ``(R,)``.
        encoder_rows: the encoder's inputs that the decoder reads together at each of its own, ``(B, K)``, -1 where
            there are fewer; None where it reads one.
    """
    states: list[Tensor] = []

    def choose(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = given[0]
        before = hidden.shape[1] - width
        states.append(hidden[pool_inputs, before + pool_tokens[:, 0]])
        return (states[0], *given[1:])

    handle = head_of(backbone).register_forward_pre_hook(choose)
    together = nullcontext() if encoder_rows is None else read_together(backbone, encoder_rows)
    try:
        with together:
            logits = backbone(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    log_probs = at_least_float(logits).log_softmax(-1).gather(-1, gold.unsqueeze(-1)).squeeze(-1)
    return log_probs, states[0]


def choice_scores(
    log_probs: Tensor, states: Tensor, token_inputs: Tensor, choice_inputs: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log p(c|x) / n_c of each choice ``(M, C)``, -inf for a missing one, and their mean states ``(M, D)``.

    Dims: M readings of questions, C choices, I inputs, each a choice after a question, R tokens of all choices.

    Args:
        log_probs: of the choices' tokens in nats, ``(R,)``.
        states: that predict these, ``(R, D)``.
        token_inputs: the input of each token, ``(R,)``.
        choice_inputs: the input of each choice, ``(M, C)``; -1 for a missing one.
        lengths: n_c, ``(M, C)``.
    """
    inputs = int(choice_inputs.max()) + 1
    sums = log_probs.new_zeros(inputs).index_add(0, token_inputs, log_probs)
    missing = choice_inputs < 0
    scores = (sums[choice_inputs.clamp(min=0)] / lengths).masked_fill(missing, -torch.inf)
    owners = choice_inputs.new_zeros(inputs)
    rows = torch.arange(len(choice_inputs), device=owners.device).unsqueeze(1).expand_as(choice_inputs)
    owners[choice_inputs[~missing]] = rows[~missing]
    owner = owners[token_inputs]
    counts = torch.bincount(owner, minlength=len(choice_inputs)).unsqueeze(1)
    features = states.new_zeros(len(choice_inputs), states.shape[1]).index_add(0, owner, states) / counts
    return scores, features


def at_least_float(logits: Tensor) -> Tensor:
    """Return logits of half precision in single, so that sums over a vocabulary are exact; others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

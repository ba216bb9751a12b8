"""Tiny models that write, with neighbours, in double precision; and what tests ask of them."""

import math
from functools import partial

import torch

from peft_rag.fingerprint import weights_fingerprint
from peft_rag.fusion.base import PASSAGES, Split
from peft_rag.methods import backbone_tensors
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.text2text import Text2Text
from tests.test_generation import examples_of, model_of

PAIRS = (("w1 w2 w3", "w3 w4"), ("w5", "w6 w7 w8"), ("w7 w9", "w8"), ("w10", "w11 w12"))
# Three neighbours of which two are one; one; none; two.
FOUND = (((0, 0.9), (1, 0.4), (1, 0.4)), ((2, 0.3),), (), ((1, 0.5), (2, 0.2)))
LENGTH = 5
ENCODER_DECODERS = ("t5", "bart", "encoder_decoder")
DECODERS = ("gpt2", "llama", "gemma3")


def case(backbone, fusion, method="lora", found=FOUND, pairs=PAIRS):
    """Return a model of a family with a fusion, random where it is trained, and a split for it."""
    options = {"activation": "gelu"} if method == "adapter" else {}  # differentiable everywhere
    model = model_of(backbone, Text2Text(target_length=LENGTH), fusion, method=method, **options)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module)
    return model.to(torch.get_default_dtype()), Split(examples_of(model, *pairs), Neighbours.of_rows(found))


def _norm(module, hidden):
    """Scale as T5's and Llama's norms do, which take the variance in single precision whatever they are given."""
    return module.weight * hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def ids_of(model, row):
    """Return the token ids of each input of an encoded example, without the answer that a decoder goes on with."""
    cut = len(row.get("gold", [1])) - 1 if model.decoder_start is None else 0
    return [one["input_ids"][: len(one["input_ids"]) - cut] for one in row.get(PASSAGES, [row])]


def loss_of(model, split):
    """Return the loss on a split as one batch, with gradients."""
    return model(**model.collate(model.encode(split)))["loss"]


def check_gradients(model, split, step=1e-5):
    """Compare gradients of the loss with central differences, at the largest entry of every trained tensor.

    A tensor without any gradient is an error too.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    gradients = dict(zip(trained, torch.autograd.grad(loss_of(model, split), trained.values()), strict=True))
    for name, parameter in trained.items():
        flat, gradient = parameter.detach().view(-1), gradients[name].reshape(-1)
        assert gradient.any(), name
        for place in gradient.abs().topk(1).indices.tolist():
            kept, losses = flat[place].item(), []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                with torch.no_grad():
                    losses.append(loss_of(model, split).item())
            flat[place] = kept
            found = (losses[0] - losses[1]) / (2 * step)
            assert abs(found - gradient[place].item()) < 1e-6 * max(1, abs(found)), name


def check_step(model, split, rate):
    """Take one step down the loss: it falls, and the backbone stays as it was."""
    before = weights_fingerprint(backbone_tensors(model.backbone).items())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    first = loss_of(model, split)
    first.backward()
    optimiser.step()
    assert loss_of(model, split) < first
    assert weights_fingerprint(backbone_tensors(model.backbone).items()) == before


def greedy(model, next_log_probs):
    """Write at most `LENGTH` tokens, the likeliest each time; return the text and the geometric mean of p."""
    end, tokens, log_probs = model.tokenizer.eos_token_id, [], []
    forced = model.source.model.generation_config.forced_eos_token_id is not None
    while len(tokens) < LENGTH and end not in tokens:
        given = next_log_probs(tokens)
        last = forced and len(tokens) == LENGTH - 1
        tokens.append(end if last else int(given.argmax()))
        log_probs += [] if last else [float(given[tokens[-1]])]
    text = model.tokenizer.decode([token for token in tokens if token != end], skip_special_tokens=True).strip()
    return text, math.exp(sum(log_probs) / len(tokens))

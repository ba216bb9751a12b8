"""Texts mixed from several passages: likelihood and writing against plain loops."""

import math
import re

import pytest
import torch

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import PASSAGES, Split
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.generation import write
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.text2text import Text2Text
from tests.test_generation import examples_of, model_of

FOUND = Neighbours.of_rows([[(0, 0.9), (1, 0.4)], [(2, 0.3)], []])
PAIRS = (("w1 w2", "w3 w4"), ("w5", "w6"), ("w7", "w8 w9"))


def case(backbone, form):
    model = model_of(backbone, Text2Text(target_length=5), MarginalFusion(k=2, form=form))
    with torch.no_grad():
        model.fusion_module.log_temperature.fill_(math.log(0.4))
    return model, Split(examples_of(model, *PAIRS), FOUND)


def passages(model, split, place):
    """Inputs of one example, each as ids, with log π."""
    row = model.encode(split)[place]
    inputs = row.get(PASSAGES, [row])
    scores = torch.tensor(row.get("scores", [0.0]), dtype=torch.float64) / 0.4
    return inputs, scores.log_softmax(-1)


def next_log_probs(model, prompt, written):
    """log p(v|x, z, y_<t) over the vocabulary, by a pass of its own."""
    with torch.no_grad():
        if model.decoder_start is not None:
            begun = torch.tensor([[model.decoder_start, *written]])
            logits = model.backbone(input_ids=torch.tensor([prompt]), decoder_input_ids=begun).logits
        else:
            logits = model.backbone(input_ids=torch.tensor([[*prompt, *written]])).logits
    return logits[0, -1].double().log_softmax(-1)


def prompts_of(model, inputs):
    answers = len(inputs[0].get("gold", [1])) - 1
    cut = answers if model.decoder_start is None else 0
    return [one["input_ids"][: len(one["input_ids"]) - cut] for one in inputs]


@pytest.mark.parametrize("form", ["token", "sequence"])
@pytest.mark.parametrize("backbone", ["gpt2", "llama", "t5", "bart"])
def test_likelihood_of_a_mixed_text_equals_a_plain_loop(backbone, form):
    model, split = case(backbone, form)
    outputs = model.outputs(split)
    sums = outputs.decisions.sums(outputs.log_probs.double()).tolist()
    for place, example in enumerate(split.examples):
        inputs, prior = passages(model, split, place)
        gold = model.task.response_ids(example)
        each = torch.tensor(
            [
                [float(next_log_probs(model, prompt, gold[:t])[token]) for t, token in enumerate(gold)]
                for prompt in prompts_of(model, inputs)
            ],
            dtype=torch.float64,
        )
        if form == "token":
            expected = sum(float((prior + each[:, t]).logsumexp(0)) for t in range(len(gold)))
        else:
            expected = float((prior + each.sum(1)).logsumexp(0))
        assert sums[place] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["token", "sequence"])
@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_a_mixed_text_is_written_as_a_plain_loop_writes_it(backbone, form):
    model, split = case(backbone, form)
    written = write(model, split.examples, split=split)
    for place, (text, probability) in enumerate(written):
        inputs, weights = passages(model, split, place)
        prompts, tokens, total = prompts_of(model, inputs), [], 0.0
        while len(tokens) < 5:
            each = torch.stack([next_log_probs(model, prompt, tokens) for prompt in prompts])
            mixed = (weights.unsqueeze(-1) + each).logsumexp(0)
            token = int(mixed.argmax())
            total += float(mixed[token])
            if form == "sequence":
                weights = (weights + each[:, token]).log_softmax(-1)
            tokens.append(token)
            if token == model.tokenizer.eos_token_id:
                break
        own = [token for token in tokens if token != model.tokenizer.eos_token_id]
        assert text == model.tokenizer.decode(own, skip_special_tokens=True).strip()
        assert probability == pytest.approx(math.exp(total / len(tokens)), abs=1e-4)


def test_gradients_reach_the_temperature_in_both_forms():
    for form in ("token", "sequence"):
        model, split = case("gpt2", form)
        model(**model.collate(model.encode(split)))["loss"].backward()
        assert model.fusion_module.log_temperature.grad.abs() > 0


def test_what_cannot_be_mixed_is_refused():
    model, split = case("gpt2", "token")
    with pytest.raises(ConfigError, match="is written greedily"):
        write(model, split.examples, split=split, num_beams=2)
    with pytest.raises(ConfigError, match=re.escape("fusion.form is 'words'")):
        MarginalFusion(form="words")
    virtual = model_of("gpt2", Text2Text(target_length=5), MarginalFusion(k=2), method="prompt-tuning")
    with pytest.raises(ConfigError, match="virtual tokens cannot write from passages"):
        write(virtual, split.examples, split=split)

"""Ways of decoding: what is refused, before anything is trained, and that an answer does not depend on its batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import GPT2Config, GPT2LMHeadModel, TextIteratorStreamer

from peft_rag.backbone import as_backbone
from peft_rag.cli.writing import check_writes, stream
from peft_rag.combinations import check_backbone, check_task
from peft_rag.config import from_mapping
from peft_rag.errors import ConfigError, DataError, RetrievalError
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.fusion.passages import check_template
from peft_rag.generation import write_tokens
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.decoding import checked_decoding
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import headless
from tests.test_generation import CORPUS, model_of, tokenizer
from tests.test_schema_writing import byte_tokenizer

PROMPTS = ["a", "bc de", "some longer prompt", "zz"]


def of_bytes(**options: Any) -> RetrievalAugmentedModel:
    """A decoder of random weights over single bytes, which writes long and seldom ends."""
    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2, n_positions=128, eos_token_id=1)
    backbone = as_backbone(GPT2LMHeadModel(settings), byte_tokenizer(), "bytes")
    model = RetrievalAugmentedModel(backbone, Text2Text(target_length=40, **options), max_length=96)
    model.progress_bars = False
    model.attach("lora")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_text_that_ends_early_is_the_same_alone_and_in_a_batch() -> None:
    model = of_bytes()
    asked = [model.task.as_example(text, str(number)) for number, text in enumerate(PROMPTS)]
    whole = write_tokens(model, asked)
    stops = {letter for one in whole for letter in one.text[2:20] if letter.isalnum()}
    ends = {token for one in whole for token in one.tokens[2:20]} - {0, 1}
    ways = [{"stop_strings": [letter]} for letter in sorted(stops)[:4]] + [
        {"eos_token_id": [1, token]} for token in sorted(ends)[:4]
    ]
    shorter = 0
    for way in ways:
        together = write_tokens(model, asked, **way)
        for place, example in enumerate(asked):
            (alone,) = write_tokens(model, [example], **way)
            assert together[place].tokens == alone.tokens
            assert together[place].text == alone.text
            assert together[place].probability == pytest.approx(alone.probability, rel=1e-4)
            shorter += len(alone.tokens) < len(whole[place].tokens)
    assert shorter > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "decoding.num_beams must be a whole number of at least 1, but is 0"),
        ({"num_beams": "four"}, "decoding.num_beams must be a whole number"),
        ({"max_new_tokens": 0}, "decoding.max_new_tokens must be a whole number of at least 1"),
        ({"temperature": -1.0, "do_sample": True}, "decoding.temperature is -1.0; it must be a number above 0"),
        ({"do_sample": "maybe"}, "decoding.do_sample is 'maybe'; it must be true or false"),
        ({"num_return_sequences": 2}, "decoding.num_return_sequences asks for several texts"),
        ({"output_scores": False}, "decoding.output_scores is set here"),
        ({"penalty_alpha": 0.6}, "decoding.penalty_alpha needs code from elsewhere"),
        ({"prompt_lookup_num_tokens": 3}, "decoding.prompt_lookup_num_tokens writes one text at a time"),
        ("num_beams", "the decoding is 'num_beams', but must name ways with values"),
    ],
)
def test_values_that_no_text_can_be_written_by_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_decoding(options)
    with pytest.raises(ConfigError, match=message):
        Text2Text(decoding=options)


def test_what_transformers_refuses_while_it_writes_names_the_decoding() -> None:
    model = of_bytes()
    with pytest.raises(ConfigError, match=r"a text cannot be written by stop_strings=5: "):
        model.predict(PROMPTS, decoding={"stop_strings": 5})


def test_what_is_no_list_of_texts_is_refused() -> None:
    model = of_bytes()
    with pytest.raises(DataError, match=r"a list of texts, but one text is given. Write \['a text'\]"):
        model.predict("a text")
    with pytest.raises(DataError, match="a list of texts or records, but None is none"):
        model.predict(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="a list of texts or records, but one record is given"):
        model.predict({"source": "a"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="records row 2: field 'source' is missing"):
        model.predict(["a", {"text": "a"}])


def test_texts_and_records_are_answered_in_the_order_they_are_asked() -> None:
    model = of_bytes()
    mixed: list[str | dict[str, str]] = [{"source": PROMPTS[0]}, PROMPTS[1], {"source": PROMPTS[1]}]
    said = [one.labels for one in model.predict(mixed)]
    assert said == [one.labels for one in model.predict([PROMPTS[0], PROMPTS[1], PROMPTS[1]])]
    with pytest.raises(ConfigError, match="unknown way of decoding 'beams'"):
        model.predict(["a"], decoding={"beams": 2})


def test_more_tokens_than_the_backbone_has_places_for_are_refused() -> None:
    model = of_bytes()
    with pytest.raises(
        ConfigError, match=r"max_new_tokens is 200, but behind \d+ tokens 'bytes' has room for \d+ only"
    ):
        model.predict(PROMPTS, decoding={"max_new_tokens": 200})


@pytest.mark.parametrize("backbone", ["t5", "bart", "gpt2"])
def test_neighbours_are_heard_under_a_method_with_virtual_tokens(backbone: str) -> None:
    model = model_of(backbone, Text2Text(target_length=5), KnnFusion(k=1, temperature=0.1, weight=1.0), "prompt-tuning")
    assert model.predict(["w1 w2"])[0].labels[0].split()[0] in {"w22", "w24", "w28"}


def test_text_whose_neighbours_are_all_hidden_is_the_models_own() -> None:
    model = model_of("gpt2", Text2Text(target_length=4), KnnFusion(k=2, temperature=0.1, weight=0.5))
    memory = model.memory()
    assert memory is not None
    mixing = NeighbourTokens(memory, 2, 0.1, 0.5)
    mixing.states = torch.randn(2, memory.features.shape[1])  # type: ignore[union-attr]
    mixing.forbidden = [set(range(len(memory.targets))), set()]
    scores = torch.randn(2, 40)
    mixed = mixing(torch.zeros(2, 3, dtype=torch.long), scores)
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(2), atol=1e-5)
    assert torch.allclose(mixed[0], scores[0].log_softmax(-1))
    assert not torch.allclose(mixed[1], scores[1].log_softmax(-1))


def test_text_without_tokens_is_read_without_passages_by_a_decoder_that_classifies() -> None:
    known = Knowledge(CORPUS, ExactRetriever(WordEncoder()), "exact", "words")
    backbone = as_backbone(headless(TINY_BACKBONES["gpt2"]()), tokenizer(), "gpt2")
    task = TextClassification(labels=("w22", "w28"))
    model = RetrievalAugmentedModel(backbone, task, ConcatFusion(k=1), known, max_length=32).eval()
    model.progress_bars = False
    assert [len(one.labels) for one in model.predict(["", "w1 w2"])] == [1, 1]


@pytest.mark.parametrize("fusion", [MarginalFusion(k=2), ConcatFusion(k=1)])
@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_texts_are_streamed_as_they_are_written(backbone: str, fusion: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(backbone, Text2Text(target_length=5), fusion)
    stream(model, [model.task.as_example("w1 w2", "0")], {})
    assert capsys.readouterr().out.split() == model.predict(["w1 w2"])[0].labels[0].split()


def test_streamer_that_cannot_be_copied_is_heard_under_virtual_tokens() -> None:
    model = model_of("t5", Text2Text(target_length=5), None, "prompt-tuning")
    streamer = TextIteratorStreamer(model.tokenizer, skip_special_tokens=True)
    (written,) = write_tokens(model, [model.task.as_example("w1 w2", "0")], streamer=streamer)
    assert "".join(streamer).split() == written.text.split()


def test_beams_cannot_be_streamed() -> None:
    import argparse

    model = model_of("gpt2", Text2Text(target_length=5, decoding={"num_beams": 2}))
    known = argparse.Namespace(stream=True, seed=None)
    with pytest.raises(ConfigError, match="which beams do not do"):
        check_writes(model, known, {})
    check_writes(model, known, {"num_beams": 1})


@pytest.mark.parametrize("template", ["{text:d}", "{text!q}", "{text:>x}"])
def test_template_that_no_text_can_be_put_in_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"fusion.template is .*"):
        check_template(template)


# Choices


def test_choices_given_as_a_flag_are_parted_by_commas_and_anything_else_is_refused() -> None:
    assert Text2Text(choices="yes, no").choices == ("yes", "no")
    for wrong in (5, [True, False], {"a": 1}.items()):
        with pytest.raises(ConfigError, match="it must be a list of texts"):
            Text2Text(choices=wrong)


def test_choice_longer_than_an_answer_and_choices_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes 5 tokens with its end, but task\.target_length is 4"):
        Text2Text(target_length=4, choices=("w1 w2 w3 w4", "w5")).with_tokenizer(tokenizer())
    with pytest.raises(ConfigError, match="holds 'strange' and 'unheard'"):
        Text2Text(choices=("strange", "unheard")).with_tokenizer(tokenizer())


def test_choices_that_would_be_cut_are_refused() -> None:
    model = model_of("gpt2", Text2Text(target_length=6, choices=("w1 w2 w3", "w5")))
    with pytest.raises(ConfigError, match=r"max_new_tokens is 3, but the longest of task.choices takes 4\. Raise it"):
        model.predict(["w1"], decoding={"max_new_tokens": 3})
    assert model.predict(["w1"], decoding={"max_new_tokens": 4})[0].labels[0] in ("w1 w2 w3", "w5")


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_choice_is_answered_as_it_was_given_whatever_the_tokenizer_makes_of_its_case(backbone: str) -> None:
    model = model_of(backbone, Text2Text(target_length=4))
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    model.tasks["default"] = replace(model.task, choices=("W1 W2", "W4"))
    assert {one.labels[0] for one in model.predict(["w1 w2", "w7"])} <= {"W1 W2", "W4"}


# What cannot write is known before anything is trained


@pytest.mark.parametrize("decoding", [{"num_beams": 2}, {"do_sample": True}])
def test_mixture_that_is_to_be_searched_or_sampled_is_refused_first(decoding: dict[str, Any]) -> None:
    config = from_mapping({"train": "a", "output": "b", "task": "text2text", "fusion": "marginal"})
    with pytest.raises(ConfigError, match="mixed from several passages is written greedily"):
        check_task(config, MarginalFusion(k=2), Text2Text(decoding=decoding))
    check_task(config, ConcatFusion(k=1), Text2Text(decoding=decoding))


@pytest.mark.parametrize("task", [Text2Text(), TokenClassification(labels=("O", "B-a"))])
def test_whole_texts_cannot_vote_on_words(task: Any) -> None:
    config = from_mapping({"train": "a", "output": "b", "fusion": "knn"})
    with pytest.raises(RetrievalError, match="finds whole texts, but what votes"):
        check_task(config, KnnFusion(space="retriever"), task)
    check_task(config, KnnFusion(), task)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_mixture_under_virtual_tokens_is_refused_first_before_a_decoder(method: str, monkeypatch: Any) -> None:
    config = from_mapping({"train": "a", "output": "b", "task": "text2text", "method": method})
    monkeypatch.setattr("peft_rag.backbone.is_encoder_decoder", lambda name: False)
    with pytest.raises(ConfigError, match="virtual tokens cannot write from passages of different length at once"):
        check_backbone(config, MarginalFusion(k=2), Text2Text())
    check_backbone(replace(config, method="lora"), MarginalFusion(k=2), Text2Text())
    check_backbone(config, MarginalFusion(k=2), TextClassification(labels=("a", "b")))
    monkeypatch.setattr("peft_rag.backbone.is_encoder_decoder", lambda name: True)
    check_backbone(config, MarginalFusion(k=2), Text2Text())

"""Fusion in the decoder against plain loops that encode each passage by itself, and what it refuses."""

from functools import partial

import pytest
import torch
from transformers import TextStreamer
from transformers.modeling_outputs import BaseModelOutput

from peft_rag.artefact import load
from peft_rag.backbone import as_backbone
from peft_rag.combinations import check_backbone, check_task
from peft_rag.config import RunConfig, from_mapping
from peft_rag.encoder_states import joined, read_together
from peft_rag.errors import BackboneError, ConfigError, RetrievalError
from peft_rag.fusion.base import PASSAGES, Split
from peft_rag.fusion.fid import FidFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.generation import write
from peft_rag.job import run
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.text_generation import TextGeneration
from peft_rag.testing import TINY_BACKBONES
from tests.conftest import write_jsonl
from tests.fusion.writers import ENCODER_DECODERS, PAIRS, case, check_gradients, check_step, greedy, ids_of
from tests.test_generation import tokenizer

FID = FidFusion(k=3)
METHODS = ("lora", "adapter", "prompt-tuning", "bitfit")
WORKING = [(b, m) for b in ENCODER_DECODERS for m in METHODS if (b, m) != ("t5", "bitfit")]  # T5 has no biases


pytestmark = pytest.mark.usefixtures("in_double_precision")


def states_of(model, ids):
    """Encode one passage by itself, a prompt of trained vectors put before it by hand."""
    bare = model.backbone.get_base_model()
    embeds = bare.get_input_embeddings()(torch.tensor([ids]))
    if model.backbone.active_peft_config.is_prompt_learning:
        count = model.backbone.active_peft_config.num_virtual_tokens
        embeds = torch.cat([model.backbone.get_prompt(1)[:, :count], embeds], 1)
    return bare.get_encoder()(inputs_embeds=embeds).last_hidden_state


def next_log_probs(model, row, written):
    """log p(v | y_<t, all passages) of an encoded example, by a pass of its own over what is written."""
    states = torch.cat([states_of(model, ids) for ids in ids_of(model, row)], 1)
    given = torch.tensor([[model.decoder_start, *written]])
    with torch.no_grad():
        logits = model.backbone.get_base_model()(
            encoder_outputs=BaseModelOutput(states), decoder_input_ids=given, use_cache=False
        ).logits
    return logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize(("backbone", "method"), WORKING)
def test_likelihood_equals_a_loop_that_encodes_each_passage_by_itself(backbone, method):
    model, split = case(backbone, FID, method)
    rows = model.encode(split)
    assert [len(row.get(PASSAGES, ())) for row in rows] == [3, 1, 0, 2]
    outputs = model.outputs(split)
    for place, example in enumerate(split.examples):
        gold = model.task.response_ids(example)
        expected = [float(next_log_probs(model, rows[place], gold[:t])[token]) for t, token in enumerate(gold)]
        found = outputs.log_probs[outputs.decisions.take([place])].tolist()
        assert found == pytest.approx(expected, abs=1e-9)
        alone = model.outputs(split.of([place]))
        assert alone.log_probs.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("backbone", ENCODER_DECODERS)
def test_nothing_found_is_the_answer_without_retrieval_bit_for_bit(backbone):
    model, split = case(backbone, FID, found=((),) * len(PAIRS))
    plain = model.outputs(split, fusion=NoFusion())
    assert torch.equal(model.outputs(split).log_probs, plain.log_probs)
    assert write(model, split.examples, split=split) == write(model, split.examples, split=split, fusion=NoFusion())


def test_one_passage_is_what_any_fusion_reads_of_it():
    model, split = case("t5", FID, found=(((0, 0.9),), ((2, 0.3),), (), ((1, 0.5),)))
    single = model.outputs(split, fusion=MarginalFusion(k=1))
    assert model.outputs(split).log_probs.tolist() == pytest.approx(single.log_probs.tolist(), abs=1e-9)


@pytest.mark.parametrize(("backbone", "method"), WORKING)
def test_a_text_is_written_as_a_loop_writes_it_in_any_batch(backbone, method):
    model, split = case(backbone, FID, method)
    together = write(model, split.examples, split=split)
    for place, row in enumerate(model.encode(split)):
        text, probability = greedy(model, partial(next_log_probs, model, row))
        assert together[place] == (text, pytest.approx(probability, abs=1e-6))
        ((alone, own),) = write(model, split.examples[place : place + 1], split=split.of([place]))
        assert (alone, own) == (text, pytest.approx(probability, abs=1e-6))


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_every_way_of_decoding_reads_all_passages(method, capsys):
    model, split = case("t5", FID, method)
    for decoding in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        together = write(model, split.examples, split=split, **decoding)
        single = [write(model, [one], split=split.of([n]), **decoding)[0] for n, one in enumerate(split.examples)]
        assert [text for text, _ in together] == [text for text, _ in single]
        assert [p for _, p in together] == pytest.approx([p for _, p in single], abs=1e-6)
    banned = write(model, split.examples, split=split, encoder_no_repeat_ngram_size=1, min_new_tokens=4)
    for (text, _), row in zip(banned, model.encode(split), strict=True):
        read = {model.tokenizer.decode(token) for ids in ids_of(model, row) for token in ids}
        assert text.split()
        assert not set(text.split()) & read
    torch.manual_seed(3)
    sampled = write(model, split.examples, split=split, do_sample=True)
    torch.manual_seed(3)
    assert sampled == write(model, split.examples, split=split, do_sample=True)
    one = split.of([0])
    streamer = TextStreamer(model.tokenizer, skip_special_tokens=True)
    ((text, _),) = write(model, one.examples, split=one, streamer=streamer)
    assert capsys.readouterr().out.strip() == text


def test_only_choices_are_written():
    model, split = case("bart", FID)
    model.tasks["default"] = Text2Text(target_length=5, choices=("w1 w2", "w4")).with_tokenizer(model.tokenizer)
    assert {text for text, _ in write(model, split.examples, split=split)} <= {"w1 w2", "w4"}


@pytest.mark.parametrize(("backbone", "method"), WORKING)
def test_gradients_equal_finite_differences_and_the_backbone_stays(backbone, method):
    model, split = case(backbone, FID, method)
    check_gradients(model, split)
    check_step(model, split, 0.1)


def test_passages_of_one_example_change_no_other():
    model, split = case("bart", FID)
    other = Split(split.examples, Neighbours.of_rows([[(2, 0.9)], *[split.neighbours.row(n) for n in (1, 2, 3)]]))
    before, after = model.outputs(split), model.outputs(other)
    own = before.decisions.take([0])
    others = before.decisions.take([1, 2, 3])
    assert (before.log_probs - after.log_probs)[own].abs().min() > 1e-6
    assert before.log_probs[others].tolist() == pytest.approx(after.log_probs[others].tolist(), abs=1e-12)


def test_order_of_passages_does_not_matter():
    """No position tells one passage from another, so that the decoder reads a set."""
    model, split = case("t5", FID)
    turned = Split(split.examples, Neighbours.of_rows([split.neighbours.row(n)[::-1] for n in range(4)]))
    assert model.outputs(split).log_probs.tolist() == pytest.approx(model.outputs(turned).log_probs.tolist(), abs=1e-9)


def test_states_are_joined_as_a_loop_joins_them():
    states, mask = torch.randn(5, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    rows = torch.tensor([[0, 3, 1], [2, -1, -1], [4, 4, -1]])
    together, there = joined(states, mask, rows)
    assert together.shape == (3, 9, 4)
    for text in range(3):
        wanted = [
            state
            for row in rows[text].tolist()
            if row >= 0
            for state, m in zip(states[row], mask[row], strict=True)
            if m
        ]
        assert torch.equal(together[text][there[text] == 1], torch.stack(wanted))


def test_what_it_cannot_serve_is_refused_before_anything_is_loaded():
    config = RunConfig(train="x", output="y", fusion="fid")
    with pytest.raises(ConfigError, match="task 'text-classification' judges and does not write"):
        check_task(config, FID, TextClassification())
    going_on = RunConfig(train="x", output="y", fusion="fid", task="text-generation")
    with pytest.raises(ConfigError, match="task 'text-generation' goes on where its prompt ends"):
        check_task(going_on, FID, TextGeneration())
    check_task(config, FID, Text2Text())


def test_a_decoder_is_refused_by_its_configuration_alone(tmp_path):
    for family, works in (("gpt2", False), ("t5", True)):
        TINY_BACKBONES[family]().config.save_pretrained(tmp_path / family)
        config = RunConfig(train="x", output="y", task="text2text", fusion="fid", backbone=str(tmp_path / family))
        if works:
            check_backbone(config, FID, Text2Text())
        else:
            with pytest.raises(ConfigError, match=r"is no encoder-decoder\. Name one"):
                check_backbone(config, FID, Text2Text())
            check_backbone(config, NoFusion(), Text2Text())
    start = RunConfig(
        train="x", output="y", fusion="fid", backbone=str(tmp_path / "gpt2"), backbone_encoder_decoder=True
    )
    check_backbone(start, FID, Text2Text())


def test_models_without_a_decoder_are_refused():
    for family, task in (("gpt2", Text2Text()), ("bert", TextClassification(labels=("a", "b")))):
        backbone = as_backbone(TINY_BACKBONES[family](), tokenizer(), family)
        with pytest.raises(BackboneError, match=f"backbone '{family}' is not loaded as an encoder-decoder"):
            RetrievalAugmentedModel(backbone, task, FID, max_length=32)


@pytest.fixture
def trained(tmp_path, tiny_bert):
    """Return what trains a tiny T5 with a fusion for a few steps: the result of the run, and where it lies."""
    torch.set_default_dtype(torch.float32)
    backbone = tmp_path / "t5"
    TINY_BACKBONES["t5"]().save_pretrained(backbone)
    tokenizer().save_pretrained(backbone)
    data = {}
    for name, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = [{"source": f"w{n} w{n + 1}", "target": f"w{n + 2}", "id": f"{name}{n}"} for n in range(count)]
        data[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    about = {"task": "text2text", "task.target_length": 4, "task.scored": 2, "max_length": 32, "max_steps": 3}
    about |= {"backbone": str(backbone), "encoder": tiny_bert, "disable_tqdm": True, "eval_strategy": "no"}

    def go(name, fusion, **changes):
        config = from_mapping({**data, **about, "fusion": fusion, "output": str(tmp_path / name), **changes})
        return run(config, say=lambda line: None), tmp_path / name

    return go


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
def test_a_run_with_every_passage_dropped_is_one_without_retrieval(trained):
    _, alone = trained("alone", "none")
    _, dropped = trained("dropped", "fid", retrieval_dropout=1.0)
    _, half = trained("half", "fid", retrieval_dropout=0.5, retrieval_dropout_by="random")
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (alone, dropped, half)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
def test_a_saved_model_keeps_to_its_minimum_score_and_its_gate(trained):
    result, _ = trained("out", "fid", min_score=0.999999, **{"fusion.k": 2})
    answers = result.answers.log_probs
    assert torch.equal(answers["with_retrieval"], answers["without_retrieval"])
    assert result.metrics["gate"] == 0.0  # nothing is that near, and of equals the cheapest is chosen
    _, folder = trained("full", "fid", fallback=False, **{"fusion.k": 2})
    model = load(str(folder))
    assert model.gate == 1.0
    examples = [model.task.as_example(text, text) for text in ("w1 w2", "w3")]
    assert [len(row["passages"]) for row in model.encode(model.split(examples))] == [2, 2]
    model.gates["default"] = 0.0
    assert not any("passages" in row for row in model.encode(model.split(examples)))


def test_mistakes_say_what_to_do():
    with pytest.raises(ConfigError, match="fusion 'fid' needs k of at least 1, got k=0"):
        FidFusion(k=0)
    with pytest.raises(ConfigError, match="fusion 'fid' needs passage_tokens of at least 1"):
        FidFusion(passage_tokens=0)
    model, split = case("t5", FID)
    with pytest.raises(RetrievalError, match="fusion 'fid' was given no neighbours"):
        model.encode(Split(split.examples))
    decoder = torch.nn.Identity()
    decoder.get_decoder = lambda: decoder
    rows = torch.zeros(1, 1, dtype=torch.long)
    message = "Identity is not given encoder_hidden_states"
    with pytest.raises(BackboneError, match=message), read_together(decoder, rows):
        decoder(torch.zeros(1))

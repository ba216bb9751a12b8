"""Neighbours' vectors beside texts that are written, against plain loops: likelihood, cached writing, and causality."""

from functools import partial

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from peft_rag.combinations import check_backbone
from peft_rag.config import RunConfig
from peft_rag.errors import ConfigError, DataError
from peft_rag.fusion.base import READ, VECTORS, Split
from peft_rag.fusion.cross_attention import CrossAttentionFusion
from peft_rag.fusion.gated_attention import Reading
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.generation import write
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES
from tests.fusion.models import EXAMPLES, NEIGHBOURS, make_model, stirred
from tests.fusion.test_concat import found
from tests.fusion.test_cross_attention import looped
from tests.fusion.test_projector import projected
from tests.fusion.writers import (
    DECODERS,
    ENCODER_DECODERS,
    PAIRS,
    case,
    check_gradients,
    check_step,
    examples_of,
    greedy,
    ids_of,
)
from tests.test_generation import model_of

FUSIONS = {
    "projector": ProjectorFusion(k=3, tokens=2, width=4),
    "cross-attention": CrossAttentionFusion(k=3, layers=(0, 1), width=4, heads=2),
}
every_fusion = pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
every_backbone = pytest.mark.parametrize("backbone", [*DECODERS, *ENCODER_DECODERS])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def embeds_of(model, row, written):
    """What the backbone reads: a prompt of trained vectors, soft tokens, and words, each by hand."""
    words = torch.tensor([ids_of(model, row)[0] + written])
    parts = [model.backbone.get_base_model().get_input_embeddings()(words)]
    if isinstance(model.fusion, ProjectorFusion):
        soft = [token for vector in row.get(VECTORS, ()) for token in projected(model.fusion_module, vector.tolist())]
        parts.insert(0, torch.tensor(soft).reshape(1, -1, parts[0].shape[-1]))
    if model.backbone.active_peft_config.is_prompt_learning:
        parts.insert(0, model.backbone.get_prompt(1)[:, : model.backbone.active_peft_config.num_virtual_tokens])
    return torch.cat(parts, 1)


def looking(model, row):
    """Put hooks on the layers that let each token look at the neighbours in plain loops; nothing for a projector."""
    if not isinstance(model.fusion, CrossAttentionFusion):
        return []
    there = [vector.tolist() for vector in row.get(VECTORS, ())]
    bare = model.backbone.get_base_model()
    part = bare if model.decoder_start is None else bare.get_decoder()
    stack = next(m for m in part.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)

    def changed(layer, module, given, output):
        if not there:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        new = torch.tensor(
            [[looped(model.fusion_module.layers[layer], token, there)[0] for token in hidden[0].tolist()]]
        )
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return [stack[int(name)].register_forward_hook(partial(changed, name)) for name in model.fusion_module.layers]


def next_log_probs(model, row, written):
    """log p(v | y_<t, x, neighbours) by a pass of its own over all that stands before."""
    bare = model.backbone.get_base_model()
    hooks = looking(model, row)
    try:
        with torch.no_grad():
            if model.decoder_start is None:
                logits = bare(inputs_embeds=embeds_of(model, row, written), use_cache=False).logits
            else:
                states = bare.get_encoder()(inputs_embeds=embeds_of(model, row, [])).last_hidden_state
                given = torch.tensor([[model.decoder_start, *written]])
                logits = bare(encoder_outputs=BaseModelOutput(states), decoder_input_ids=given, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0, -1].log_softmax(-1)


@every_fusion
@every_backbone
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_likelihood_and_writing_equal_plain_loops(double, backbone, method, fusion):
    model, split = case(backbone, fusion, method)
    rows, outputs = model.encode(split), model.outputs(split)
    written = write(model, split.examples, split=split)
    for place, example in enumerate(split.examples):
        gold = model.task.response_ids(example)
        expected = [float(next_log_probs(model, rows[place], gold[:t])[token]) for t, token in enumerate(gold)]
        assert outputs.log_probs[outputs.decisions.take([place])].tolist() == pytest.approx(expected, abs=1e-9)
        text, probability = greedy(model, partial(next_log_probs, model, rows[place]))
        assert written[place] == (text, pytest.approx(probability, abs=1e-6))


@every_fusion
@pytest.mark.parametrize("backbone", ["gpt2", "gemma3", "bart"])
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_neither_batches_nor_beams_nor_others_change_what_is_written(double, backbone, method, fusion):
    model, split = case(backbone, fusion, method)
    outputs = model.outputs(split)
    for decoding in ({}, {"num_beams": 3}):
        together = write(model, split.examples, split=split, **decoding)
        for place in range(len(PAIRS)):
            one = split.of([place])
            assert write(model, one.examples, split=one, **decoding) == [
                (together[place][0], pytest.approx(together[place][1], abs=1e-6))
            ]
            given = outputs.log_probs[outputs.decisions.take([place])].tolist()
            assert model.outputs(one).log_probs.tolist() == pytest.approx(given, abs=1e-9)


@every_fusion
@every_backbone
def test_nothing_found_is_the_answer_without_retrieval_bit_for_bit(backbone, fusion):
    model, split = case(backbone, fusion, found=((),) * len(PAIRS))
    plain = model.outputs(split, fusion=NoFusion())
    assert torch.equal(model.outputs(split).log_probs, plain.log_probs)
    assert write(model, split.examples, split=split) == write(model, split.examples, split=split, fusion=NoFusion())


@every_backbone
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_closed_gate_is_the_answer_without_retrieval_bit_for_bit(backbone, method):
    model, split = case(backbone, FUSIONS["cross-attention"], method)
    with torch.no_grad():
        for layer in model.fusion_module.layers.values():
            layer.gate.zero_()
    plain = model.outputs(split, fusion=NoFusion())
    assert torch.equal(model.outputs(split).log_probs, plain.log_probs)
    assert write(model, split.examples, split=split) == write(model, split.examples, split=split, fusion=NoFusion())


@every_fusion
@pytest.mark.parametrize("backbone", DECODERS)
def test_what_is_written_later_changes_no_earlier_token(double, backbone, fusion):
    model, _ = case(backbone, fusion)
    same = Neighbours.of_rows([[(0, 0.9), (1, 0.4)]] * 2)
    split = Split(examples_of(model, ("w1 w2", "w3 w4 w5 w6"), ("w1 w2", "w3 w4 w30 w31")), same)
    first, second = model.outputs(split).log_probs.view(2, -1)
    assert first[:2].tolist() == pytest.approx(second[:2].tolist(), abs=1e-12)
    assert (first[2:] - second[2:]).abs().min() > 1e-6


@every_fusion
@pytest.mark.parametrize(
    ("backbone", "method"), [("gpt2", "lora"), ("gpt2", "bitfit"), ("llama", "prompt-tuning"), ("t5", "adapter")]
)
def test_gradients_equal_finite_differences_and_the_backbone_stays(double, backbone, method, fusion):
    model, split = case(backbone, fusion, method)
    assert any(name.startswith("fusion_modules.") for name in model.trained_state())
    check_gradients(model, split)
    check_step(model, split, 0.02)


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_weights_are_how_much_the_predicting_tokens_looked(double, backbone):
    model, split = case(backbone, FUSIONS["cross-attention"], "prompt-tuning")
    one = split.of([3])
    (row,) = model.encode(one)
    noted = []
    note = Reading.note
    try:
        Reading.note = lambda self, layer, shares: (noted.append(shares), note(self, layer, shares))[1]
        weights = model.outputs(one).weights[0]
    finally:
        Reading.note = note
    begin = len(ids_of(model, row)[0]) - 1 if backbone == "gpt2" else 0
    answer = len(row["gold"])
    for neighbour, weight in enumerate(weights):
        looks = [
            float(shares[0, head, shares.shape[2] - (begin + answer) + begin + token, neighbour])
            for shares in noted
            for head in range(2)
            for token in range(answer)
        ]
        assert weight == pytest.approx(sum(looks) / len(looks), abs=1e-9)


def test_a_prompt_that_is_written_on_is_never_cut_for_soft_tokens():
    model = model_of("gpt2", Text2Text(target_length=6), ProjectorFusion(k=3, tokens=4))
    near = Neighbours.of_rows([[(0, 0.9), (1, 0.5), (2, 0.1)]])
    kept = {}
    for words in (4, 14, 18, 24):
        split = Split(examples_of(model, (" ".join(["w1"] * words), "w2 w3")), near)
        (row,) = model.encode(split)
        kept[words] = row[READ]
        assert ids_of(model, row)[0].count(model.tokenizer.convert_tokens_to_ids("w1")) == words
        assert len(ids_of(model, row)[0]) + 4 * len(row[READ]) <= 32 - 6
    assert kept == {4: [0, 1, 2], 14: [0, 1], 18: [0], 24: []}
    with pytest.raises(DataError, match="but max_length leaves 26 beside an answer of 6"):
        model.encode(Split(examples_of(model, (" ".join(["w1"] * 25), "w2")), near))


def test_soft_tokens_count_in_what_an_encoder_reads():
    model = model_of("t5", Text2Text(target_length=6), ProjectorFusion(k=2, tokens=4))
    split = Split(examples_of(model, (" ".join(["w1"] * 40), "w2 w3")), Neighbours.of_rows([[(0, 0.9), (1, 0.5)]]))
    (row,) = model.encode(split)
    assert (len(row["input_ids"]), row[READ]) == (24, [0, 1])


def test_prefixes_in_the_cache_are_refused_before_anything_is_loaded(tmp_path):
    for family in ("gpt2", "t5"):
        TINY_BACKBONES[family]().config.save_pretrained(tmp_path / family)
    about = {"train": "x", "output": "y", "task": "text2text", "fusion": "projector", "method": "prefix-tuning"}
    decoder = RunConfig(backbone=str(tmp_path / "gpt2"), **about)
    with pytest.raises(ConfigError, match="method 'prefix-tuning' keeps its virtual tokens in the cache"):
        check_backbone(decoder, FUSIONS["projector"], Text2Text())
    check_backbone(RunConfig(backbone=str(tmp_path / "t5"), **about), FUSIONS["projector"], Text2Text())
    check_backbone(decoder, FUSIONS["cross-attention"], Text2Text())
    model, split = case("gpt2", FUSIONS["projector"], "prefix-tuning")
    with pytest.raises(ConfigError, match="method 'prefix-tuning' keeps its virtual tokens in the cache"):
        write(model, split.examples, split=split)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_words_are_judged_by_their_own_states_behind_soft_tokens(double, make_tokenizer, family):
    """Each word's state is that of the word, wherever soft tokens have moved it, in a batch as alone."""
    task = TokenClassification(labels=("O", "B-a"), words="spaces")
    records = [{"tokens": one.text.split(), "tags": ["O"] * len(one.text.split())} for one in EXAMPLES]
    examples = task.read([Record(fields, "rows", number, "row") for number, fields in enumerate(records)])
    model = make_model(make_tokenizer(), family, ProjectorFusion(k=3, tokens=2, width=4), task=task)
    stirred(model.fusion_module)
    split = Split(examples, found(*NEIGHBOURS))
    rows, outputs = model.encode(split), model.outputs(split)
    for place, row in enumerate(rows):
        soft = [token for vector in row.get(VECTORS, ()) for token in projected(model.fusion_module, vector.tolist())]
        words = model.source.model.get_input_embeddings()(torch.tensor([row["input_ids"]]))
        embeds = torch.cat([torch.tensor(soft).reshape(1, -1, words.shape[-1]), words], 1)
        with torch.no_grad():
            hidden = model.backbone(inputs_embeds=embeds).last_hidden_state[0]
        states = [hidden[len(soft) + token] for decision in row["pools"] for (token,) in decision]
        wanted = torch.stack([state / state.norm() for state in states])
        features = outputs.features[outputs.decisions.take([place])]
        torch.testing.assert_close(features, wanted, rtol=1e-9, atol=1e-9)

import math

import pytest
import torch

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fusion.base import Reader
from peft_rag.fusion.batching import NEIGHBOUR_MASK, NEIGHBOUR_VECTORS
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.fusion.soft_tokens import put_before
from peft_rag.testing import WordEncoder
from tests.fusion.models import DOCUMENTS, FAMILIES, answers, batch_of, make_model, pooled_by_hand, split_of, stirred

pytestmark = pytest.mark.usefixtures("in_double_precision")


def projected(module, vector):
    """Return e = W₂·GELU(W₁·√V·d + b₁) + b₂ in plain loops, as m lists of D numbers."""
    vector = [value * math.sqrt(len(vector)) for value in vector]
    hidden = []
    for row, bias in zip(module.first.weight.tolist(), module.first.bias.tolist(), strict=True):
        x = bias + sum(w * d for w, d in zip(row, vector, strict=True))
        hidden.append(x * 0.5 * (1 + math.erf(x / math.sqrt(2))))
    flat = [
        bias + sum(w * h for w, h in zip(row, hidden, strict=True))
        for row, bias in zip(module.second.weight.tolist(), module.second.bias.tolist(), strict=True)
    ]
    size = len(flat) // module.tokens
    return [flat[start : start + size] for start in range(0, len(flat), size)]


def by_hand(model, batch):
    """Read each example by itself: soft tokens and words one after the other, nothing padded; pooled over words."""
    module, features = model.fusion_module, []
    for row in range(len(batch["input_ids"])):
        soft = []
        for vector, there in zip(batch[NEIGHBOUR_VECTORS][row].tolist(), batch[NEIGHBOUR_MASK][row], strict=True):
            soft += projected(module, vector) if there else []
        ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        words = model.source.model.get_input_embeddings()(ids)
        embeds = torch.cat([torch.tensor(soft).reshape(-1, words.shape[-1]), words])[None]
        features.append(pooled_by_hand(model, len(ids), inputs_embeds=embeds))
    return torch.stack(features)


@pytest.mark.parametrize("method", ["", "prompt-tuning"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_equals_soft_tokens_joined_by_hand(make_tokenizer, family, method):
    model = make_model(make_tokenizer(), family, ProjectorFusion(k=3, tokens=2, width=5), method)
    stirred(model.fusion_module)
    batch = batch_of(model, split_of())
    with torch.no_grad():
        given = model(**batch)["features"]
    torch.testing.assert_close(given, by_hand(model, batch), rtol=1e-9, atol=1e-9)


def test_tokens_that_are_there_stand_together_soft_ones_first():
    # The first input is padded on the left: which side it is makes no difference.
    soft, words = torch.arange(8.0).reshape(2, 4, 1), 10 + torch.arange(6.0).reshape(2, 3, 1)
    attention = torch.tensor([[0, 1, 1], [1, 1, 1]])
    inputs = {"attention_mask": attention, "pooled_mask": attention.clone(), "token_type_ids": attention.clone()}
    inputs["examples_in_all"] = torch.tensor(2)
    placed = put_before(soft, torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]), words, inputs)
    assert placed["inputs_embeds"][..., 0].tolist() == [[0, 1, 11, 12], [13, 14, 15, 4]]
    assert placed["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert placed["examples_in_all"] == 2
    assert placed["pooled_mask"].tolist() == placed["token_type_ids"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]


def test_gradients_equal_finite_differences(make_tokenizer):
    model = make_model(make_tokenizer(), "bert", ProjectorFusion(k=2, width=3))
    module = stirred(model.fusion_module)
    batch = batch_of(model, split_of(0, 1, neighbours=([3, 3], [0])))
    vectors = batch.pop(NEIGHBOUR_VECTORS)
    names, values = zip(*((n, p.detach().clone()) for n, p in module.named_parameters()), strict=True)

    def answer(vectors, *parameters):
        def call(given):
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), given)

        call.embed = module.embed
        whole = {**batch, NEIGHBOUR_VECTORS: vectors}
        return model.fusion.run(model.read, {k: v for k, v in whole.items() if k != "labels"}, _Called(call)).features

    given = [value.requires_grad_() for value in (vectors, *values)]
    assert torch.autograd.gradcheck(answer, given, fast_mode=True)


class _Called:
    """A projector whose parameters are arguments of a function."""

    def __init__(self, call):
        self.embed, self._call = call.embed, call

    def __call__(self, vectors):
        return self._call(vectors)


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_tokens_start_as_large_as_words(make_tokenizer, family):
    model = make_model(make_tokenizer(), family, ProjectorFusion(k=4, tokens=4, width=64))
    module = model.fusion_module
    vectors = torch.nn.functional.normalize(torch.randn(8, 4, 6), dim=-1)
    with torch.no_grad():
        soft, words = module(vectors), module.embed(torch.arange(40))
    assert soft.norm(dim=-1).mean() / words.norm(dim=-1).mean() == pytest.approx(1, abs=0.25)


def test_equal_neighbours_are_equal_tokens(make_tokenizer):
    module = make_model(make_tokenizer(), "bert", ProjectorFusion(tokens=2)).fusion_module
    vector = torch.randn(1, 1, 6)
    soft = module(vector.expand(1, 2, 6))
    assert torch.equal(soft[:, :2], soft[:, 2:])


def test_order_of_neighbours_is_closest_first(make_tokenizer):
    model = make_model(make_tokenizer(), "bert", ProjectorFusion(k=2))
    one = answers(model, split_of(0, neighbours=([1, 2],)))["features"]
    other = answers(model, split_of(0, neighbours=([2, 1],)))["features"]
    assert (one - other).abs().max() > 1e-6


def test_input_is_cut_to_what_its_soft_tokens_leave(make_tokenizer):
    from dataclasses import replace

    split = split_of(0, 1, 2, neighbours=([1, 2], [3], []))
    long = replace(split, examples=[replace(one, text=" ".join(["w1"] * 40)) for one in split.examples])
    fusion = ProjectorFusion(k=2, tokens=3)
    rows = fusion.encode(long, DOCUMENTS, Reader(make_tokenizer(), 20, embed=WordEncoder(dimension=6).encode))
    assert [len(row["input_ids"]) for row in rows] == [14, 17, 20]
    assert all(row["input_ids"][-1] == 3 for row in rows)
    assert all(len(row["pooled_mask"]) == len(row["input_ids"]) for row in rows)


def test_mistakes_say_what_to_do(make_tokenizer):
    with pytest.raises(ConfigError, match="needs tokens of at least 1, got tokens=0"):
        ProjectorFusion(tokens=0)
    with pytest.raises(
        ConfigError, match="puts 16 tokens for 4 neighbours before the input, which leaves fewer than 8"
    ):
        ProjectorFusion(tokens=4).encode(split_of(), DOCUMENTS, Reader(make_tokenizer(), 20))


def test_backbone_that_reads_ids_alone_is_refused(make_tokenizer):
    from types import SimpleNamespace

    backbone = SimpleNamespace(model=torch.nn.Embedding(3, 2))
    with pytest.raises(BackboneError, match=r"Embedding reads token ids alone \(its forward takes no inputs_embeds\)"):
        ProjectorFusion().make_module(backbone, 6)

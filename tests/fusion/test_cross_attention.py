import gc
import math

import pytest
import torch

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.fusion.batching import NEIGHBOUR_MASK, NEIGHBOUR_VECTORS
from peft_rag.fusion.cross_attention import CrossAttentionFusion
from peft_rag.fusion.gated_attention import GatedCrossAttention, Reading
from peft_rag.fusion.none import NoFusion
from tests.fusion.models import FAMILIES, METHODS, answers, batch_of, make_model, pooled_by_hand, split_of, stirred

pytestmark = pytest.mark.usefixtures("in_double_precision")


# Three neighbours; one; none; two of equal vectors.
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])


def drawn():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(4, 3, 6), dim=-1)
    vectors[3, 1] = vectors[3, 0]
    return torch.randn(4, 5, 8), vectors


def dot(row, column):
    return sum(a * b for a, b in zip(row, column, strict=True))


def normalised(module, hidden):
    mean = sum(hidden) / len(hidden)
    spread = math.sqrt(sum((x - mean) ** 2 for x in hidden) / len(hidden) + module.norm.eps)
    scale, shift = module.norm.weight.tolist(), module.norm.bias.tolist()
    return [(x - mean) / spread * a + b for x, a, b in zip(hidden, scale, shift, strict=True)]


def looped(module, hidden, vectors):
    """Let a token look at neighbours and the null neighbour, in plain loops; also how each head looks at each."""
    width, heads = len(module.null_key), module.heads
    query = [dot(row, normalised(module, hidden)) for row in module.query.weight.tolist()]
    scaled = [[value * math.sqrt(len(vector)) for value in vector] for vector in vectors]
    keys = [[dot(row, vector) for row in module.key.weight.tolist()] for vector in scaled]
    values = [[dot(row, vector) for row in module.value.weight.tolist()] for vector in scaled]
    keys.append(module.null_key.tolist())
    values.append(module.null_value.tolist())
    seen, shares = [], []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        raised = [math.exp(dot(query[part], key[part]) / math.sqrt(width / heads)) for key in keys]
        given = [one / sum(raised) for one in raised]
        shares.append(given[:-1])
        seen += [dot(given, column) for column in zip(*(value[part] for value in values), strict=True)]
    gate = math.tanh(module.gate.item())
    added = [gate * dot(row, seen) for row in module.output.weight.tolist()]
    return [h + a for h, a in zip(hidden, added, strict=True)], shares


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_plain_loops(heads):
    module = stirred(GatedCrossAttention(8, 6, 4, heads))
    hidden, vectors = drawn()
    with torch.no_grad():
        changed, shares = module(hidden, vectors, MASK)
    for example in range(4):
        there = [vector for vector, one in zip(vectors[example].tolist(), MASK[example], strict=True) if one]
        for token in range(5):
            wanted, looks = looped(module, hidden[example, token].tolist(), there)
            if not there:
                wanted = hidden[example, token].tolist()
            torch.testing.assert_close(changed[example, token], torch.tensor(wanted), rtol=1e-9, atol=1e-9)
            ours = shares[example, :, token, : len(there)]
            torch.testing.assert_close(ours, torch.tensor(looks).reshape(heads, -1), rtol=1e-9, atol=1e-9)
    assert torch.equal(shares[3, ..., 0], shares[3, ..., 1])
    assert not shares.masked_select((MASK == 0)[:, None, None].expand_as(shares)).any()


def test_gradients_equal_finite_differences():
    module = stirred(GatedCrossAttention(8, 6, 4, 2))
    hidden, vectors = drawn()
    names, values = zip(*((n, p.detach().clone()) for n, p in module.named_parameters()), strict=True)

    def changed(hidden, vectors, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, given, (hidden, vectors, MASK))

    assert torch.autograd.gradcheck(changed, [value.requires_grad_() for value in (hidden, vectors, *values)])


def test_weights_are_means_over_heads_own_tokens_and_layers():
    torch.manual_seed(0)
    shares = {"0": torch.rand(2, 3, 6, 2), "5": torch.rand(2, 3, 6, 2)}
    tokens, mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), torch.tensor([[1, 1], [1, 0]])
    reading = Reading(torch.zeros(2, 2, 6), mask, tokens)
    for layer, given in shares.items():
        reading.note(layer, given)
    for example in range(2):
        for neighbour in range(2):
            # The first two of six tokens are a method's own.
            looks = [
                float(given[example, head, 2 + token, neighbour])
                for given in shares.values()
                for head in range(3)
                for token in range(4)
                if tokens[example, token]
            ]
            wanted = sum(looks) / len(looks) * float(mask[example, neighbour])
            assert float(reading.weights[example, neighbour]) == pytest.approx(wanted, abs=1e-12)


def by_hand(model, batch):
    """Run each example by itself, with hooks of our own that do what the formula says."""
    module, features, weights = model.fusion_module, [], []
    stack = next(m for m in model.source.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    for row in range(len(batch["input_ids"])):
        own = batch["attention_mask"][row] == 1
        there = batch[NEIGHBOUR_VECTORS][row][batch[NEIGHBOUR_MASK][row] == 1].tolist()
        looks = []

        def changed(output, layer, there=there, own=own, looks=looks):
            hidden = output[0] if isinstance(output, tuple) else output
            tokens = [looped(module.layers[layer], token, there) for token in hidden[0].tolist()]
            looks.extend(look for _, look in tokens[-int(own.sum()) :])
            new = torch.tensor([[token for token, _ in tokens]]) if there else hidden
            return (new, *output[1:]) if isinstance(output, tuple) else new

        hooks = [
            stack[int(layer)].register_forward_hook(
                lambda m, a, output, layer=layer, changed=changed: changed(output, layer)
            )
            for layer in module.layers
        ]
        features.append(pooled_by_hand(model, int(own.sum()), input_ids=batch["input_ids"][[row]][:, own]))
        for hook in hooks:
            hook.remove()
        weights.append(torch.tensor(looks).mean((0, 1)) if there else torch.zeros(0))
    return torch.stack(features), torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)


@pytest.mark.parametrize("method", ["", "prompt-tuning"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_equals_plain_loops_between_the_layers(make_tokenizer, family, method):
    model = make_model(make_tokenizer(), family, CrossAttentionFusion(k=3, width=4, heads=2), method)
    stirred(model.fusion_module)
    batch = batch_of(model, split_of())
    with torch.no_grad():
        given = model(**batch)
    features, weights = by_hand(model, batch)
    torch.testing.assert_close(given["features"], features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given["weights"], weights, rtol=1e-9, atol=1e-9)
    assert (given["weights"].sum(1) < 1).all()


@pytest.mark.parametrize(
    ("family", "method"), [(family, "") for family in FAMILIES] + [("bert", method) for method in METHODS]
)
def test_fresh_module_gives_the_backbones_output_bit_for_bit(make_tokenizer, family, method):
    torch.set_default_dtype(torch.float32)
    model = make_model(make_tokenizer(), family, CrossAttentionFusion(k=3, layers=(0, 1)), method)
    with torch.no_grad():
        plain = model(**batch_of(model, split_of(), fusion=NoFusion()))
    given = answers(model, split_of())
    assert torch.equal(given["features"], plain["features"])
    assert torch.equal(given["log_probs"], plain["log_probs"])


def test_nothing_is_kept_after_a_run_or_a_failure(make_tokenizer):
    model = make_model(make_tokenizer(), "bert", CrossAttentionFusion(width=4))
    batch = batch_of(model, split_of())
    model(**batch)
    assert model.fusion_module._now is None
    with pytest.raises(RuntimeError, match="as planned"), model.fusion_module.reading(None, None, None):
        raise RuntimeError("as planned")
    assert model.fusion_module._now is None


def test_hooks_go_with_the_module(make_tokenizer):
    model = make_model(make_tokenizer(), "bert", CrossAttentionFusion(layers=(1,)))
    source = model.source
    layer = source.model.encoder.layer[1]
    assert len(layer._forward_hooks) == 1
    del model
    gc.collect()
    assert len(layer._forward_hooks) == 0
    assert not list(source.model.encoder.layer[0]._forward_hooks)


def test_backbone_whose_layers_were_replaced_is_an_error(make_tokenizer):
    import copy

    model = make_model(make_tokenizer(), "bert", CrossAttentionFusion(layers=(0, 1)))
    model.source.model.encoder.layer[1] = copy.deepcopy(model.source.model.encoder.layer[1])
    del model.source.model.encoder.layer[1]._forward_hooks
    model.source.model.encoder.layer[1]._forward_hooks = {}
    with pytest.raises(BackboneError, match="layer 1, after which fusion 'cross-attention' works, did not run"):
        answers(model, split_of())


@pytest.mark.parametrize("given", [(-2, -1), [-2, -1], "-2,-1", (0, 1), "1, 0"])
def test_layers_are_counted_from_either_end(make_tokenizer, given):
    model = make_model(make_tokenizer(), "gpt2", CrossAttentionFusion(layers=given))
    assert list(model.fusion_module.layers) == ["0", "1"]


def test_mistakes_say_what_to_do(make_tokenizer):
    with pytest.raises(
        ConfigError, match=r"fusion.layers names 2, but 'bert' has 2 layers. Choose 0 to 1, or -1 to -2"
    ):
        make_model(make_tokenizer(), "bert", CrossAttentionFusion(layers=(0, 2)))
    with pytest.raises(ConfigError, match=r"fusion.layers names \[1, 1\] of 2 layers. Name each once"):
        make_model(make_tokenizer(), "bert", CrossAttentionFusion(layers=(1, -1)))
    for wrong in ("last", (), (1.5,), (True,), None):
        with pytest.raises(ConfigError, match="it must be layer indices, for example"):
            CrossAttentionFusion(layers=wrong)
    with pytest.raises(ConfigError, match="divides width among heads, but got width=10 and heads=4"):
        CrossAttentionFusion(width=10)


def test_backbones_without_one_list_of_layers_are_refused():
    from types import SimpleNamespace

    from peft_rag.testing import TINY_BACKBONES

    backbone = SimpleNamespace(model=TINY_BACKBONES["t5"](), name="t5", hidden_size=32, is_encoder_decoder=False)
    with pytest.raises(BackboneError, match=r"T5ForConditionalGeneration has encoder.block, decoder.block"):
        CrossAttentionFusion().make_module(backbone, 6)


def test_layers_that_give_other_shapes_are_refused(make_tokenizer):
    module = make_model(make_tokenizer(), "bert", CrossAttentionFusion()).fusion_module
    one = torch.ones(2, 1)
    message = r"shape \(2, tokens, hidden size\), but layer 0 gives \(7, 2, 32\)"
    with pytest.raises(BackboneError, match=message), module.reading(torch.zeros(2, 1, 6), one, one):
        module.look("0", torch.zeros(7, 2, 32))

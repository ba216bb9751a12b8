"""What holds for every fusion that reads neighbours as vectors, on every family and under every method."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peft_rag.artefact import load
from peft_rag.config import from_mapping
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.fusion.base import READ, VECTORS, Reader, Split
from peft_rag.fusion.batching import NEIGHBOUR_MASK, NEIGHBOUR_VECTORS, collate
from peft_rag.fusion.cross_attention import CrossAttentionFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.job import run
from peft_rag.methods import backbone_tensors
from peft_rag.testing import WordEncoder
from tests.fusion.models import (
    DOCUMENTS,
    EXAMPLES,
    FAMILIES,
    METHODS,
    NEIGHBOURS,
    answers,
    batch_of,
    make_model,
    split_of,
    stirred,
    trained_steps,
)
from tests.fusion.test_concat import found

FUSIONS = {
    "projector": ProjectorFusion(k=3, tokens=2, width=8),
    "cross-attention": CrossAttentionFusion(k=3, layers=(0, 1), width=8, heads=2),
}
WITHOUT_BIASES = {"llama", "gemma", "gemma3"}
every_fusion = pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
every_family = pytest.mark.parametrize("family", FAMILIES)
PAIRS = [(f, m) for f in FAMILIES for m in METHODS if not (m == "bitfit" and f in WITHOUT_BIASES)]
every_pair = pytest.mark.parametrize(("family", "method"), PAIRS)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_fusion
def test_encode_gives_each_example_its_neighbours_vectors(make_tokenizer, fusion):
    tokenizer, encoder = make_tokenizer(), WordEncoder(dimension=6)
    asked = []

    def embed(texts):
        asked.append(list(texts))
        return encoder.encode(texts)

    rows = fusion.encode(split_of(0, 1, 2, neighbours=([3, 1], [3], [])), DOCUMENTS, Reader(tokenizer, 32, embed=embed))
    assert asked == [["a: w1 w11", "a: w3 w13"]]
    assert [row[READ] for row in rows] == [[3, 1], [3], []]
    np.testing.assert_array_equal(rows[0][VECTORS], encoder.encode(["a: w3 w13", "a: w1 w11"]))
    np.testing.assert_array_equal(rows[1][VECTORS], encoder.encode(["a: w3 w13"]))
    alone = NoFusion().encode(split_of(0, 1, 2), None, Reader(tokenizer, 32))
    for row, plain in zip(rows, alone, strict=True):
        assert {name: value for name, value in row.items() if name not in (READ, VECTORS)} == plain
    assert VECTORS not in rows[2]


@every_fusion
def test_vectors_without_labels_are_those_documents_were_found_by(make_tokenizer, fusion):
    plain = type(fusion)(**{**fusion.to_dict(), "show_labels": False})
    encode = WordEncoder(dimension=6).encode
    (row,) = plain.encode(split_of(0), DOCUMENTS, Reader(make_tokenizer(), 32, embed=encode))
    np.testing.assert_array_equal(row[VECTORS], encode([DOCUMENTS.texts[place] for place in NEIGHBOURS[0]]))


@every_fusion
@every_family
def test_batch_without_neighbours_is_read_as_it_is(make_tokenizer, fusion, family):
    model = make_model(make_tokenizer(), family, fusion)
    stirred(model.fusion_module)
    plain = batch_of(model, split_of(), fusion=NoFusion())
    with torch.no_grad():
        log_probs, features = model.read(**{name: value for name, value in plain.items() if name != "labels"})
        given = model(**plain)
    assert torch.equal(given["log_probs"], log_probs)
    assert torch.equal(given["features"], features)
    assert "weights" not in given
    none = answers(model, split_of(neighbours=[[]] * 4))
    assert torch.equal(none["features"], features)


@every_fusion
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
@every_family
def test_answers_do_not_depend_on_the_batch(make_tokenizer, double, fusion, family, method):
    model = make_model(make_tokenizer(), family, fusion, method)
    stirred(model.fusion_module)
    together = answers(model, split_of())
    for row in range(len(EXAMPLES)):
        alone = answers(model, split_of(row))
        torch.testing.assert_close(alone["features"], together["features"][[row]], rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        without = model(**batch_of(model, split_of(2), fusion=NoFusion()))
    torch.testing.assert_close(without["features"], together["features"][[2]], rtol=1e-9, atol=1e-9)
    for row in (0, 1, 3):
        with torch.no_grad():
            plain = model(**batch_of(model, split_of(row), fusion=NoFusion()))["features"]
        assert (plain - together["features"][row]).abs().max() > 1e-4


@every_fusion
@every_pair
def test_everything_trained_gets_a_gradient_and_nothing_frozen_changes(make_tokenizer, fusion, family, method):
    options = {"activation": "gelu"} if method == "adapter" else {}
    model = make_model(make_tokenizer(), family, fusion, method, **options)
    before = weights_fingerprint(backbone_tensors(model.backbone).items())
    start = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    gradients = trained_steps(model, split_of(), 3)
    assert {name for name in gradients if name.startswith("fusion_modules.")}
    assert {name: gradient for name, gradient in gradients.items() if gradient is None or not gradient.any()} == {}
    assert [name for name, tensor in model.trained_state().items() if torch.equal(tensor, start[name])] == []
    assert weights_fingerprint(backbone_tensors(model.backbone).items()) == before


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
@pytest.mark.parametrize("name", FUSIONS)
def test_artefact_answers_as_the_model_it_was_saved_from(tiny_bert, toy_data, tmp_path, name):
    kept = {}

    def observe(prepared, answers):
        split = prepared.test
        kept.update(
            device=prepared.model.device,
            split=split,
            outputs=prepared.model.outputs(split),
            module=prepared.model.fusion_module.state_dict(),
        )

    where = {"backbone": tiny_bert, "encoder": tiny_bert, "output": str(tmp_path / "out"), "disable_tqdm": True}
    config = from_mapping({**toy_data, **where, "fusion": name, "max_length": 32, "num_train_epochs": 1})
    run(config, say=lambda line: None, observe=observe)
    again = load(str(tmp_path / "out")).to(kept["device"]).outputs(kept["split"])
    assert torch.equal(again.log_probs, kept["outputs"].log_probs)
    assert torch.equal(again.features, kept["outputs"].features)
    state = load_file(tmp_path / "out/head.safetensors")
    assert {key for key in state if not key.startswith("head.")} == {f"fusion.{key}" for key in kept["module"]}


@every_fusion
def test_two_adapters_share_a_backbone_each_with_its_own_fusion(make_tokenizer, fusion):
    model = make_model(make_tokenizer(), "bert", fusion, "lora")
    stirred(model.fusion_module)
    first = answers(model, split_of())["features"]
    model.add_adapter("second", model.task, CrossAttentionFusion(k=3, layers=(1,), width=4, heads=1))
    stirred(model.fusion_module)
    assert (answers(model, split_of())["features"] - first).abs().max() > 1e-3
    model.set_adapter("default")
    assert torch.equal(answers(model, split_of())["features"], first)


@every_fusion
def test_answers_outlive_merging_and_disabling(make_tokenizer, fusion):
    model = make_model(make_tokenizer(), "bert", fusion, "lora")
    with model.disable_adapter():
        frozen = answers(model, split_of())["features"]
    trained_steps(model, split_of(), 3)
    tuned = answers(model, split_of())["features"]
    assert (tuned - frozen).abs().max() > 1e-5
    model.merge()
    torch.testing.assert_close(answers(model, split_of())["features"], tuned, rtol=1e-4, atol=1e-5)


@every_fusion
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_checkpointed_activations_give_the_same_gradients(make_tokenizer, double, fusion, family):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(make_tokenizer(), family, fusion, "lora")
        stirred(model.fusion_module)
        model.train()
        for module in model.modules():
            module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        if checkpointing:
            model.activation_checkpointing_enable()
        gradients.append(trained_steps(model, split_of(), 1))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)


@every_fusion
def test_half_precision_trains(make_tokenizer, fusion):
    model = make_model(make_tokenizer(), "bert", fusion, "lora")
    batch = batch_of(model, split_of())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    model.backbone.to(torch.bfloat16)
    model.heads.to(torch.bfloat16)
    assert torch.isfinite(model(**batch)["loss"])


@every_fusion
def test_joined_rows_without_vectors_are_masked(make_tokenizer, fusion):
    encode = WordEncoder(dimension=6).encode
    batch = collate(fusion.encode(split_of(), DOCUMENTS, Reader(make_tokenizer(), 32, embed=encode)), 0)
    assert batch[NEIGHBOUR_VECTORS].shape == (4, 3, 6)
    assert batch[NEIGHBOUR_MASK].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]


@every_fusion
def test_options_survive_json(fusion):
    import json

    assert type(fusion).from_dict(json.loads(json.dumps(fusion.to_dict()))) == fusion


@every_fusion
def test_mistakes_say_what_to_do(make_tokenizer, fusion):
    name, tokenizer = fusion.name, make_tokenizer()
    with pytest.raises(ConfigError, match=f"fusion '{name}' needs k of at least 1, got k=0"):
        type(fusion)(k=0)
    with pytest.raises(ConfigError, match=r"fusion.template is '\{labels\}', which does not show"):
        type(fusion)(template="{labels}")
    with pytest.raises(RetrievalError, match=f"fusion '{name}' was given no neighbours"):
        fusion.encode(Split(EXAMPLES), DOCUMENTS, Reader(tokenizer, 32))
    with pytest.raises(ConfigError, match=f"fusion '{name}' works on sentence vectors, but there is no retriever"):
        fusion.encode(Split(EXAMPLES[:1], found([1])), DOCUMENTS, Reader(tokenizer, 32))
    with pytest.raises(ConfigError, match=f"fusion '{name}' works on sentence vectors, but there is no retriever"):
        fusion.make_module(make_model(tokenizer, "bert", NoFusion()).source, 0)

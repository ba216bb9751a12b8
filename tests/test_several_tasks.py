"""Several tasks on one backbone, each with an adapter, a head and labels of its own."""

import json

import pytest
import torch

from peft_rag.backbone import as_backbone, load_backbone
from peft_rag.errors import ArtefactError, BackboneError, ConfigError, FingerprintError, MethodError
from peft_rag.fusion.base import Split
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import headless, word_tokenizer

TOPICS = TextClassification(labels=("even", "odd", "other"))
TAGS = TokenClassification(labels=("O", "B-a", "I-a"), words="spaces")
TEXTS = ["w1 w2 w3", "w4", "w5 w6"]


def fresh(task):
    backbone = as_backbone(headless(TINY_BACKBONES["bert"]()), word_tokenizer(), "tiny")
    torch.manual_seed(0)
    model = RetrievalAugmentedModel(backbone, task, max_length=32)
    model.progress_bars = False
    return model


def shaken(model, seed):
    """Give the active adapter's trained tensors values, as training does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (f".{model.adapter}" in name or name.startswith(f"heads.{model.adapter}")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def test_a_tagger_and_a_classifier_share_a_backbone_and_are_picked_by_name():
    model = fresh(TOPICS)
    model.attach("lora")
    shaken(model, 1)
    topics = model.predict(TEXTS)
    assert {prediction.labels[0] for prediction in topics} <= set(TOPICS.labels)
    model.add_adapter("tags", TAGS)
    shaken(model, 2)
    tags = model.predict(TEXTS)
    assert [len(prediction.labels) for prediction in tags] == [3, 1, 2]
    model.set_adapter("default")
    assert model.predict(TEXTS) == topics
    model.set_adapter("tags")
    assert model.predict(TEXTS) == tags
    with pytest.raises(MethodError, match="no adapter 'other'"):
        model.set_adapter("other")


def test_training_one_task_leaves_the_other_as_it_was():
    model = fresh(TOPICS)
    model.attach("lora")
    shaken(model, 1)
    topics = model.predict(TEXTS)
    model.add_adapter("tags", TAGS)
    shaken(model, 2)
    examples = TAGS.read([Record({"tokens": ["w1", "w2"], "tags": ["B-a", "I-a"]}, "f", 1)])
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.predict(TEXTS)
    for _ in range(3):
        optimiser.zero_grad()
        model(**model.collate(model.encode(Split(examples))))["loss"].backward()
        optimiser.step()
    assert model.predict(TEXTS) != before
    model.set_adapter("default")
    assert model.predict(TEXTS) == topics


def saved(task, seed, folder, backbone, method="lora", max_length=32):
    torch.manual_seed(0)
    model = RetrievalAugmentedModel(load_backbone(backbone), task, max_length=max_length)
    model.attach(method)
    shaken(model, seed)
    model.save_pretrained(folder)
    return folder


def test_artefacts_of_two_tasks_are_loaded_together_and_answer_as_alone(tiny_bert, tmp_path):
    topics = saved(TOPICS, 1, tmp_path / "topics", tiny_bert)
    tags = saved(TAGS, 2, tmp_path / "tags", tiny_bert, max_length=24)
    alone = [RetrievalAugmentedModel.from_pretrained(folder).predict(TEXTS) for folder in (topics, tags)]
    model = RetrievalAugmentedModel.from_pretrained(topics)
    model.load_adapter("tags", tags)
    assert model.max_length == 24
    assert model.predict(TEXTS) == alone[1]
    model.set_adapter("default")
    assert model.max_length == 32
    assert model.predict(TEXTS) == alone[0]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_loaded_beside_says_why_and_leaves_the_model_as_it_was(tiny_bert, tmp_path):
    topics = saved(TOPICS, 1, tmp_path / "topics", tiny_bert)
    other = saved(TAGS, 2, tmp_path / "other", tiny_bert, method="bitfit")
    model = RetrievalAugmentedModel.from_pretrained(topics)
    before = model.predict(TEXTS)
    with pytest.raises(MethodError, match="was trained by bitfit, but this model holds lora"):
        model.load_adapter("tags", other)
    with pytest.raises(MethodError, match="one of that name is there already"):
        model.load_adapter("default", topics)
    assert model.predict(TEXTS) == before
    another = fresh(TOPICS)
    another.attach("lora")
    with pytest.raises(FingerprintError, match="this artefact was trained on backbone"):
        another.load_adapter("topics", topics)


def test_adapter_that_cannot_be_added_leaves_the_model_as_it_was():
    model = fresh(TOPICS)
    model.attach("lora")
    shaken(model, 1)
    topics = model.predict(TEXTS)
    writing = Text2Text()
    with pytest.raises(BackboneError, match="loaded without the head by which it writes"):
        model.add_adapter("texts", writing)
    assert (model.adapter, list(model.reports), list(model.heads)) == ("default", ["default"], ["default"])
    assert list(model.backbone.peft_config) == ["default"]
    assert model.backbone.active_adapter == "default"
    assert model.predict(TEXTS) == topics
    model.add_adapter("texts", TAGS)
    assert model.adapter == "texts"


@pytest.mark.parametrize("name", ["a.b", "", "encoder"])
def test_artefact_is_loaded_under_no_name_that_peft_would_confuse(tmp_path, name):
    model = fresh(TOPICS)
    model.attach("lora")
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"adapter name '{name}' .* Choose another"):
        model.load_adapter(name, tmp_path / "a")
    assert list(model.backbone.peft_config) == ["default"]


def test_artefact_whose_head_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    model = fresh(TOPICS)
    model.attach("lora")
    shaken(model, 1)
    model.save_pretrained(tmp_path / "a")
    about = json.loads((tmp_path / "a/peft_rag.json").read_text())
    about["task"]["settings"]["labels"].pop()
    del about["sha256"]
    (tmp_path / "a/peft_rag.json").write_text(json.dumps(about))
    topics = model.predict(TEXTS)
    with pytest.raises(ArtefactError, match="does not fit"):
        model.load_adapter("again", tmp_path / "a")
    assert (model.adapter, list(model.heads), list(model.backbone.peft_config)) == ("default", ["default"], ["default"])
    assert model.predict(TEXTS) == topics

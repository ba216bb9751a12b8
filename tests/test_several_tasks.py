"""Several tasks on one backbone, each with an adapter, a head and labels of its own."""

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.errors import MethodError
from peft_rag.fusion.base import Split
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
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

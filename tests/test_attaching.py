"""What a method must leave as it is when it is attached: the backbone's values, and room for its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from torch import nn

from peft_rag.backbone import as_backbone
from peft_rag.errors import ConfigError, MethodError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.methods import Method, attach
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import headless, word_tokenizer

BERT = TINY_BACKBONES["bert"]


def state(model: nn.Module) -> str:
    return weights_fingerprint(model.state_dict().items())


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    "options", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"layer_replication": [[0, 1], [0, 2]]}]
)
def test_option_that_changes_the_backbone_is_refused(method: str, options: dict[str, Any]) -> None:
    backbone = BERT()
    before = state(backbone)
    with pytest.raises(ConfigError, match=f"{next(iter(options))}.* stays? as (they are|it is)|stays as it is"):
        attach(backbone, method, **options)
    assert state(backbone) == before


def test_method_that_changes_the_backbone_unasked_is_found_and_undone() -> None:
    backbone = BERT()
    before = state(backbone)
    changing = Method(LoraConfig, target_modules={"bert": ["query"]}, options={"init_lora_weights": "pissa"})
    with pytest.raises(
        MethodError, match=r"changed 2 tensors of the backbone, first '.*encoder.layer.0.*query.base_layer.weight'"
    ):
        attach(backbone, changing)
    assert state(backbone) == before


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_virtual_tokens_take_their_places_among_the_longest_input(method: str) -> None:
    backbone = as_backbone(headless(BERT()), word_tokenizer(), "tiny")
    most = backbone.tokenizer.model_max_length = backbone.positions
    model = RetrievalAugmentedModel(backbone, TextClassification(labels=("a", "b")), max_length=most)
    before = state(backbone.model)
    with pytest.raises(ConfigError, match=f"reads 8 to {most - 4} tokens beside 4 virtual ones"):
        model.attach(method, num_virtual_tokens=4)
    assert state(backbone.model) == before
    model = RetrievalAugmentedModel(backbone, TextClassification(labels=("a", "b")), max_length=most - 4)
    model.attach(method, num_virtual_tokens=4)
    model.progress_bars = False
    assert model.predict([" ".join(["w1"] * 2 * most)])

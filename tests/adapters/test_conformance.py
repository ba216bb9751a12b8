"""Every built-in method on every family of backbones, through the conformance kit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_rag import registry
from peft_rag.errors import MethodError
from peft_rag.testing import TINY_BACKBONES as BACKBONES
from peft_rag.testing import check_method

pytestmark = [
    # torch warns of sparse tensors, once, when FRoD first makes one.
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    # True, and within the tolerance here.
    pytest.mark.filterwarnings(r"ignore:Unmerge result can be inaccurate for \(IA\)\^3"),
]

FAMILIES = ("bert", "gpt2", "llama", "t5")

OPTIONS: dict[str, dict[str, Any]] = {"trainable-tokens": {"token_indices": [3, 4, 5, 6, 7, 8, 9]}}
"""Options without which a method has nothing to train."""

LINEAR_ONLY = "wraps torch.nn.Linear only, and the projections of GPT2LMHeadModel are Conv1D"
NO_BIAS = "has no bias terms"

IMPOSSIBLE = {
    **{
        (method, "gpt2"): LINEAR_ONLY
        for method in (
            "adamss",
            "beft",
            "boft",
            "c3a",
            "delora",
            "glora",
            "hra",
            "lily",
            "loha",
            "lokr",
            "miss",
            "oft",
            "osf",
            "peanut",
            "psoft",
            "road",
            "shira",
            "supertuning",
        )
    },
    **{("bitfit", family): NO_BIAS for family in ("llama", "t5")},
    **{("adaption-prompt", family): "rewrites the attention of llama, mistral, gpt2" for family in ("bert", "t5")},
    **{("cpt", family): "a prompt of worked examples" for family in FAMILIES},
    **{("multitask-prompt-tuning", family): "needs task_ids in every batch" for family in FAMILIES},
    **{("poly", family): "needs task_ids in every batch" for family in FAMILIES},
    **{("shadow", family): "a second, smaller decoder" for family in FAMILIES},
    **{("xlora", family): "LoRA adapters that were trained before" for family in FAMILIES},
}
"""Where a method cannot work, and what its error says."""


def built_in() -> list[str]:
    return [
        plugin.name for plugin in registry.available(registry.METHODS) if plugin.target.startswith("peft_rag_adapters.")
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", built_in())
def test_method_conforms_or_says_why_not(method: str, family: str) -> None:
    options = OPTIONS.get(method, {})
    reason = IMPOSSIBLE.get((method, family))
    if reason is None:
        assert check_method(method, BACKBONES[family], **options).checked
    else:
        with pytest.raises(MethodError, match=reason):
            check_method(method, BACKBONES[family], **options)


def test_table_of_impossible_names_only_built_in_methods() -> None:
    assert {method for method, _ in IMPOSSIBLE} <= set(built_in())


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gemma", "gemma3", "encoder_decoder"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("adapter", {}),
        ("adapter", {"variant": "parallel"}),
        ("prompt-tuning", {}),
        ("bitfit", {"norm_scales": True, "missing_biases": True}),
        ("full", {}),
    ],
)
def test_defaults_cover_more_families(method: str, options: dict[str, Any], family: str) -> None:
    check_method(method, BACKBONES[family], **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["pfeiffer", "parallel"])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_adapter_variants_conform(family: str, variant: str, activation: str) -> None:
    check_method("adapter", BACKBONES[family], variant=variant, activation=activation, reduction_factor=4, scaling=2.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"norm_scales": True}, {"missing_biases": True}])
def test_bitfit_options_conform(family: str, options: dict[str, bool]) -> None:
    check_method("bitfit", BACKBONES[family], **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_conforms_in_the_last_layer_only(family: str) -> None:
    from peft_rag.methods import attach

    for method in ("lora", "adapter", "full", "ia3"):
        _, report = attach(BACKBONES[family](), method, last_layers=1)
        assert report.matched
        assert all(".1." in name for name in report.matched)

"""Scaling vectors: multiply what chosen linear layers give by a trained vector."""

from dataclasses import dataclass, field

import torch
from torch import nn

from peft_rag.methods import Method
from peft_rag.tuner import Tuner, TunerConfig, TunerLayer


@dataclass
class ScalingVectorConfig(TunerConfig):
    type_name = "SCALING_VECTOR"

    per_feature: bool = field(default=True, metadata={"help": "One number per feature, or one per module."})


class ScalingVectorLayer(TunerLayer):
    adapter_layer_names = ("scaling_weights",)

    def build(self, config):
        width = self.base_layer.out_features if config.per_feature else 1
        return nn.ParameterDict({"l": nn.Parameter(torch.zeros(width))})

    def change_output(self, adapter, args, output):
        return output * (1 + self.weights[adapter]["l"])

    def merged_parameters(self, adapter):
        scale = 1 + self.weights[adapter]["l"].detach()
        merged = {"weight": self.base_layer.weight * scale[:, None]}
        return merged if self.base_layer.bias is None else {**merged, "bias": self.base_layer.bias * scale}


class ScalingVectorTuner(Tuner):
    prefix = "scaling_"
    tuner_layer_cls = ScalingVectorLayer


METHOD = Method(
    config_class=ScalingVectorConfig,
    tuner_class=ScalingVectorTuner,
    target_modules={"bert": ["key", "value"], "llama": ["k_proj", "v_proj"], "t5": ["k", "v"]},
    learning_rate=5e-3,
    mergeable=True,
)
"""Multiplies keys and values by a trained vector.

y' = y * (1 + l), with l zero at the start.

Source: Liu et al. 2022, arXiv:2205.05638 (IA3, keys and values only).
"""

"""Every method that peft ships beside those with a file of their own, under its peft name, with peft's own config.

Each is one documented assignment. Defaults are peft's; where a default size does not fit a backbone's dimensions, it is
lowered to the nearest that does. A size the user chose is left alone, and peft says what is wrong with it.
"""

from __future__ import annotations

import math

import peft
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

from peft_rag.methods import Method
from peft_rag_adapters.architectures import QUERY_VALUE
from peft_rag_adapters.lora import keep_backbone
from peft_rag_adapters.prompt_tuning import read_sizes_of_words
from peft_rag_adapters.shipped import (
    common_divisor,
    feed_forward,
    layers_from_the_top,
    lower,
    norms,
    prompt,
    shipped,
    unavailable,
    weights_at_most,
    word_embeddings,
)

_ROUNDING = "the wrapped weights are decomposed and put together again, which is exact only up to rounding"
_RANDOM_PROMPT = "the trained vectors begin at random and every position attends to them"


ADALORA = shipped(
    peft.AdaLoraConfig,
    conv1d=True,
    options={"total_step": 10_000},
    search={"init_r": (12, 24, 16)},
    limits={"several adapters": "peft trains one AdaLoRA adapter at a time"},
)
"""LoRA as a singular value decomposition, whose rank a training loop can spread over the layers.

Ranks stay at init_r unless the loop calls ``model.base_model.update_and_allocate(step)``.

Source: Zhang et al. 2023, arXiv:2303.10512.
"""

ADAMSS = shipped(peft.AdamssConfig)
"""Low-rank updates within clustered subspaces of each weight's singular vectors.

Source: AdaMSS (Adaptive Multi-Subspaces), as implemented in peft.
"""

ADAPTION_PROMPT = Method(
    config_class=peft.AdaptionPromptConfig, options={"adapter_len": 10}, prepare=layers_from_the_top
)
"""Gated prompts that attention reads in the top layers (LLaMA-Adapter).

Source: Zhang et al. 2023, arXiv:2303.16199.
"""

BEFT = shipped(peft.BeftConfig, mergeable=False)
"""A bias on the value projections, and nothing else.

Source: arXiv:2509.15974.
"""

BOFT = shipped(peft.BOFTConfig, changes_output=_ROUNDING)
"""Orthogonal rotations of the weights, factorised into butterflies.

Source: Liu et al. 2023, arXiv:2311.06243.
"""

C3A = shipped(peft.C3AConfig, options={"init_weights": True}, fit=lower("block_size", 256, common_divisor))
"""Circular convolution as the weight update.

Source: arXiv:2407.19342.
"""

CARTRIDGE = prompt(peft.tuners.CartridgeConfig, options={"num_virtual_tokens": 20}, changes_output=_RANDOM_PROMPT)
"""A trained key-value cache in front of the input.

Source: Eyuboglu et al. 2025, arXiv:2506.06266.
"""

CPT = unavailable(
    peft.CPTConfig,
    "it trains on a prompt of worked examples given as cpt_token_ids, cpt_mask and cpt_tokens_type_mask, and needs an "
    "input_type_mask in every batch. Use peft's CPTConfig in a training loop of your own, or prompt-tuning here.",
    task_type="CAUSAL_LM",
)
"""Context-aware prompt tuning from worked examples; not available through this interface.

Source: Blau et al. 2024, arXiv:2410.17222.
"""

DEFT = shipped(peft.DeftConfig, conv1d=True, changes_output=_ROUNDING)
"""Projects a direction out of each weight and injects knowledge in its place.

Source: DEFT (Decompositional Efficient Fine-Tuning), as implemented in peft.
"""

DELORA = shipped(peft.DeloraConfig)
"""LoRA with the strength of the update bounded apart from its direction.

Source: Bini et al. 2025, arXiv:2503.18225.
"""

DORA = shipped(
    peft.LoraConfig,
    conv1d=True,
    fit=keep_backbone,
    options={"r": 8, "lora_alpha": 16, "use_dora": True},
    changes_output=_ROUNDING,
)
"""LoRA on the direction of each weight, with its magnitude trained apart.

Source: Liu et al. 2024, arXiv:2402.09353.
"""

FOURIERFT = shipped(
    peft.FourierFTConfig,
    conv1d=True,
    options={"init_weights": True},
    fit=lower("n_frequency", 1000, weights_at_most),
)
"""A sparse spectrum of each weight's update.

Source: Gao et al. 2024, arXiv:2405.03003.
"""

FROD = shipped(peft.FrodConfig, conv1d=True, changes_output=_ROUNDING)
"""A shared joint decomposition of all layers' weights, of which only small parts are trained.

Source: FRoD, doi:10.1609/aaai.v40i31.39813.
"""

GLORA = shipped(peft.GloraConfig)
"""Scales, shifts and low-rank updates of weights and biases, in one formula.

Source: Chavan et al. 2023, arXiv:2306.07967.
"""

GRALORA = shipped(peft.GraloraConfig, conv1d=True)
"""LoRA in blocks, each with a low-rank update of its own.

Source: Jung et al. 2025, arXiv:2505.20355.
"""

HIRA = shipped(peft.HiraConfig, conv1d=True)
"""A low-rank update that multiplies each weight, so its rank is high.

Source: Huang et al. 2025, openreview:TwJrTz9cRS.
"""

HRA = shipped(peft.HRAConfig, changes_output=_ROUNDING)
"""Chains of Householder reflections that rotate the weights.

Source: Yuan et al. 2024, arXiv:2405.17484.
"""

IA3 = Method(
    config_class=peft.IA3Config,
    target_modules={**QUERY_VALUE, **TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING},
    prepare=feed_forward,
    learning_rate=5e-3,
    mergeable=True,
)
"""One trained factor for each feature of keys, values and feed-forward activations.

Source: Liu et al. 2022, arXiv:2205.05638.
"""

LILY = shipped(
    peft.tuners.LilyConfig,
    mergeable=False,
    limits={
        "rows treated alike": "its router averages over the batch, so that an answer depends on what else is asked; "
        "predict with --batch-size 1"
    },
)
"""Low-rank updates whose parts are shared across layers and mixed by a router.

Source: Zhong et al. 2024, arXiv:2407.09946.
"""

LN_TUNING = shipped(peft.LNTuningConfig, find_targets=norms)
"""Train the normalisation layers and nothing else.

Source: Zhao et al. 2023, arXiv:2312.11420.
"""

LOHA = shipped(peft.LoHaConfig)
"""The elementwise product of two low-rank updates.

Source: Hyeon-Woo et al. 2021, arXiv:2108.06098.
"""

LOKR = shipped(peft.LoKrConfig)
"""The Kronecker product of small matrices as the weight update.

Source: Yeh et al. 2023, arXiv:2309.14859.
"""

MISS = shipped(peft.MissConfig, fit=lower("r", 64, common_divisor))
"""One small matrix for each weight, spread over its shards.

Source: Kang et al. 2024, arXiv:2409.15371.
"""

MULTITASK_PROMPT_TUNING = unavailable(
    peft.MultitaskPromptTuningConfig,
    "it trains one prompt over several tasks and needs task_ids in every batch. Use prompt-tuning for one task.",
    num_virtual_tokens=20,
)
"""One prompt shared over several tasks; not available through this interface.

Source: Wang et al. 2023, arXiv:2303.02861.
"""

OFT = shipped(peft.OFTConfig)
"""Orthogonal rotations of the weights in blocks.

Source: Qiu et al. 2023, arXiv:2306.07280.
"""

OSF = shipped(
    peft.tuners.OSFConfig,
    changes_output=_ROUNDING,
    limits={"unmerging": "peft forgets what was there before merging"},
)
"""Train the lesser singular directions of each weight, orthogonally to the greater ones.

Source: Nayak et al. 2025, arXiv:2504.07097.
"""

P_TUNING = prompt(
    peft.PromptEncoderConfig,
    options={"num_virtual_tokens": 20},
    changes_output=_RANDOM_PROMPT,
    prepare=read_sizes_of_words,
)
"""Virtual tokens made by a small trained network.

Source: Liu et al. 2021, arXiv:2103.10385.
"""

PEANUT = shipped(peft.tuners.PeanutConfig)
"""A small network that reads each weight and gives its update.

Source: Zhong et al. 2024, arXiv:2410.01870.
"""

POLY = unavailable(
    peft.PolyConfig,
    "it routes between skills by task and needs task_ids in every batch. Use lora for one task.",
)
"""A library of LoRA skills mixed by task; not available through this interface.

Source: Ponti et al. 2022, arXiv:2202.13914.
"""

PREFIX_TUNING = prompt(peft.PrefixTuningConfig, options={"num_virtual_tokens": 20}, changes_output=_RANDOM_PROMPT)
"""Trained keys and values in front of every attention layer's own.

Source: Li and Liang 2021, arXiv:2101.00190.
"""

PSOFT = shipped(peft.tuners.PsoftConfig)
"""An orthogonal rotation within the principal subspace of each weight.

Source: PSOFT, openreview:FSHrinMArK.
"""

PVERA = shipped(peft.tuners.PveraConfig, conv1d=True)
"""VeRA with a distribution in place of each trained vector.

Source: arXiv:2512.07703.
"""

RANDLORA = shipped(peft.RandLoraConfig, conv1d=True)
"""Full-rank updates as trained sums of random low-rank ones.

Source: Albert et al. 2025, arXiv:2502.00987.
"""

ROAD = shipped(peft.RoadConfig, fit=lower("group_size", 64, lambda value, _, out: math.gcd(value, out)))
"""Rotations of pairs of output features.

Source: arXiv:2409.00119.
"""

SHADOW = unavailable(
    peft.tuners.ShadowConfig,
    "it runs a second, smaller decoder beside the backbone's blocks, which peft supports for language models with "
    "their own training loss only. Choose another method, e.g. lora or adapter.",
)
"""A small trained network that runs beside the backbone; not available through this interface.

Source: ShadowPEFT, as implemented in peft.
"""

SHIRA = shipped(peft.ShiraConfig, fit=lower("r", 32, lambda r, i, o: min(r, i * o // (i + o))))
"""Train a few chosen entries of each weight.

Source: Bhardwaj et al. 2024, arXiv:2406.13175.
"""

SUPERTUNING = shipped(peft.tuners.SupertuningConfig)
"""Train the few weights that matter most.

Source: arXiv:2607.09287.
"""

TINYLORA = shipped(peft.tuners.TinyLoraConfig, conv1d=True)
"""A handful of numbers that steer frozen singular vectors.

Source: arXiv:2602.04118.
"""

TRAINABLE_TOKENS = shipped(
    peft.TrainableTokensConfig,
    find_targets=word_embeddings,
    limits={"several adapters": "peft cannot add a second where output and input embeddings are tied"},
)
"""Train the embeddings of chosen words.

Source: TrainableTokens, as implemented in peft.
"""

UNILORA = shipped(
    peft.tuners.UniLoraConfig,
    conv1d=True,
    changes_output="both factors of each update are read from one random vector, so neither begins at zero",
)
"""All LoRA parameters read from one short trained vector.

Source: arXiv:2506.00799.
"""

VBLORA = shipped(
    peft.VBLoRAConfig,
    conv1d=True,
    fit=lower("vector_length", 256, common_divisor),
    changes_output="both factors of each update are read from one bank of random vectors, so neither begins at zero",
)
"""LoRA factors put together from a shared bank of vectors.

Source: Li et al. 2024, arXiv:2405.15179.
"""

VERA = shipped(peft.VeraConfig, conv1d=True)
"""Two trained vectors for each layer around random matrices that all layers share.

Source: Kopiczko et al. 2023, arXiv:2310.11454.
"""

WAVEFT = shipped(peft.WaveFTConfig, conv1d=True, fit=lower("n_frequency", 2592, weights_at_most))
"""A sparse wavelet transform of each weight's update.

Source: Bilican et al. 2025, arXiv:2505.12532.
"""

XLORA = unavailable(
    peft.XLoraConfig,
    "it mixes LoRA adapters that were trained before. Use peft's XLoraConfig with adapters=... on a model of your own.",
    hidden_size=1,
    adapters={},
)
"""A trained mixture of finished LoRA adapters; not available through this interface.

Source: Buehler and Buehler 2024, arXiv:2402.07148.
"""

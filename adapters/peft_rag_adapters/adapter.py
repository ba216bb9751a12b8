"""Bottleneck adapters: small networks after, or beside, the blocks of a transformer layer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from peft_rag import registry
from peft_rag.errors import ConfigError, MethodError
from peft_rag.methods import Method
from peft_rag.methods.targets import how_to_name
from peft_rag.tuner import Args, Tuner, TunerConfig, TunerLayer
from peft_rag_adapters.architectures import ATTENTION_OUTPUT, FEED_FORWARD, FEED_FORWARD_OUTPUT

_INITIAL_STD = 1e-2


@dataclass
class AdapterConfig(TunerConfig):
    """Options of bottleneck adapters."""

    type_name: ClassVar[str] = "BOTTLENECK_ADAPTER"

    variant: Literal["houlsby", "pfeiffer", "parallel"] = field(
        default="houlsby",
        metadata={
            "help": "houlsby: after attention and feed-forward; pfeiffer: after feed-forward only; "
            "parallel: beside the feed-forward block."
        },
    )
    reduction_factor: float = field(
        default=16, metadata={"help": "How many times narrower the bottleneck is than the layer it sits on."}
    )
    activation: str = field(default="relu", metadata={"help": "The bottleneck's activation, as transformers names it."})
    scaling: float = field(default=1.0, metadata={"help": "What the adapter's output is multiplied by."})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: a value is out of range or not known.
        """
        super().__post_init__()
        variants = ["houlsby", "pfeiffer", "parallel"]
        if self.variant not in variants:
            raise ConfigError(
                f"adapter: no variant '{self.variant}'.{registry.suggest(self.variant, variants)} "
                f"Variants: {', '.join(variants)}."
            )
        if self.activation not in ACT2FN:
            known = list(ACT2FN)
            raise ConfigError(
                f"adapter: no activation '{self.activation}'.{registry.suggest(self.activation, known)} "
                f"Known: {', '.join(known)}."
            )
        if not self.reduction_factor > 0:
            raise ConfigError(f"adapter: reduction_factor={self.reduction_factor} must be above 0.")


class Bottleneck(nn.Module):
    """Down, bend, up: A(x) = s · U f(D x + d) + u.

    Dims: x and A(x) ``(…, n)``, D ``(m, n)`` normal, U ``(n, m)`` zero, m = max(1, n / reduction_factor).

    Args:
        width: n.
        config: reduction factor, activation and scaling s.
    """

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        middle = max(1, int(width / config.reduction_factor))
        self.down = nn.Linear(width, middle)
        self.act = ACT2FN[config.activation]
        self.up = nn.Linear(middle, width)
        self.scaling = config.scaling
        nn.init.normal_(self.down.weight, std=_INITIAL_STD)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return A(x)."""
        change: Tensor = self.scaling * self.up(self.act(self.down(x.to(self.down.weight.dtype))))
        return change


class AdapterLayer(TunerLayer):
    """A module and, by adapter name, the bottleneck after it or beside it.

    After (houlsby, pfeiffer): y' = y + A(y), where y is what the wrapped projection gives, before the residual
    connection. Beside (parallel): y' = y + A(x), where x is what the wrapped feed-forward block reads. In BERT and its
    kin no one module is that block; there the module that adds the residual connection, LN(dropout(W h) + x), is given
    x + A(x) in place of x, which is the same thing.
    """

    adapter_layer_names = ("adapter_weights",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.residual = _residual_position(base_layer)

    def build(self, config: AdapterConfig) -> nn.Module:
        """Make a bottleneck of the wrapped module's width.

        Raises:
            MethodError: the module is no linear map and the variant is not parallel, or its width cannot be told.
        """
        beside = config.variant == "parallel"
        if not beside and not isinstance(self.base_layer, nn.Linear | Conv1D):
            raise MethodError(
                f"adapter: variant '{config.variant}' sits after linear layers, not after "
                f"{type(self.base_layer).__name__}."
                " Name linear modules, or use variant=parallel."
            )
        return Bottleneck(_width(self.base_layer, beside=beside, residual=self.residual is not None), config)

    @property
    def _beside(self) -> bool:
        return not isinstance(self.base_layer, nn.Linear | Conv1D)

    def change_input(self, adapter: str, args: Args) -> Args:
        """Add A(x) to the residual input x, where the wrapped module has one."""
        at = self.residual
        if at is None:
            return args
        if len(args) <= at:
            raise MethodError(
                f"adapter: {type(self.base_layer).__name__} was called without its residual input in place {at}."
            )
        return *args[:at], args[at] + self.weights[adapter](args[at]), *args[at + 1 :]

    def change_output(self, adapter: str, args: Args, output: Any) -> Any:
        """Add A(y), or A(x) where the wrapped module is a whole feed-forward block."""
        if self.residual is not None:
            return output
        return output + self.weights[adapter](args[0] if self._beside else output)


class AdapterTuner(Tuner):
    """Wraps projections or feed-forward blocks in bottleneck adapters."""

    prefix = "adapter_"
    tuner_layer_cls = AdapterLayer


def choose_places(backbone: PreTrainedModel, config: AdapterConfig) -> str:
    """Name the modules that the chosen variant sits on in this architecture.

    Raises:
        MethodError: the architecture is not known.
    """
    kind = backbone.config.model_type
    halves = [getattr(backbone.config, half, None) for half in ("encoder", "decoder")]
    kinds = [half.model_type for half in halves if half is not None and kind == "encoder-decoder"] or [kind]
    places: list[str] = []
    for each in kinds:
        feed_forward = (FEED_FORWARD if config.variant == "parallel" else FEED_FORWARD_OUTPUT).get(each)
        attention = ATTENTION_OUTPUT.get(each) if config.variant == "houlsby" else []
        if feed_forward is None or attention is None:
            raise MethodError(
                f"adapter: no defaults for variant '{config.variant}' in the architecture '{each}'. "
                f"{how_to_name(backbone)}"
            )
        places += [feed_forward, *(rf".*\.{name}" for name in attention)]
    return "|".join(dict.fromkeys(places))


def _residual_position(module: nn.Module) -> int | None:
    """Find where a module takes the residual input that it adds itself, as BERT's output modules do."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index("input_tensor") if "input_tensor" in names else None


def _width(module: nn.Module, *, beside: bool, residual: bool) -> int:
    if isinstance(module, nn.Linear):
        return int(module.in_features if beside else module.out_features)
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0 if beside else 1])
    inner = [child for child in module.modules() if isinstance(child, nn.Linear | Conv1D)]
    if not inner:
        raise MethodError(f"adapter: {type(module).__name__} holds no linear layer to take a width from.")
    return _width(inner[0], beside=not residual, residual=False)


METHOD = Method(
    config_class=AdapterConfig,
    tuner_class=AdapterTuner,
    learning_rate=1e-3,
    find_targets=choose_places,
)
"""Bottleneck adapters: small networks after or beside the blocks of each layer (houlsby, pfeiffer, parallel).

y' = y + s · U f(D z): z = y after a projection (houlsby, pfeiffer), z = x beside the feed-forward block (parallel).

Dims: x, y ``(…, n)``, D ``(m, n)``, U ``(n, m)`` zero at the start, m = n / reduction_factor.

Source: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; He et al. 2022, arXiv:2110.04366.
"""

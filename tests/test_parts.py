from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from peft_rag.errors import ConfigError
from peft_rag.parts import check_options, make_part

if TYPE_CHECKING:
    from somewhere import Unknown


@dataclass(frozen=True)
class Part:
    k: int | None = None
    rate: float = 0.5
    kind: Literal["near", "far"] = "near"
    loud: bool = False
    name: str = ""
    anything: Any = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError("rate is below 0.")


class WithEncoder:
    def __init__(self, encoder: Unknown, *, depth: int = 3, odd: Unknown = None, bare=4) -> None:
        if depth == 13:
            raise TypeError("thirteen is no depth")
        self.made = (encoder, depth, odd, bare)


def refusal(*arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_part(*arguments)
    return str(caught.value)


def test_make_part_gives_options_to_the_constructor_after_the_fixed_ones() -> None:
    assert make_part(Part, "fusion", {"k": 4, "rate": 1, "loud": True}) == Part(k=4, rate=1, loud=True)
    assert make_part(WithEncoder, "retriever", {"odd": "x", "bare": []}, "the encoder").made == (
        "the encoder",
        3,
        "x",
        [],
    )


def test_make_part_names_the_nearest_when_an_option_is_unknown() -> None:
    assert refusal(Part, "fusion", {"rat": 4}) == (
        "unknown option 'fusion.rat'. Did you mean 'rate'? Options: k, rate, kind, loud, name, anything "
        "(peft-rag fusions tells more)."
    )
    assert refusal(WithEncoder, "retriever", {"encoder": 4}, "the encoder") == (
        "unknown option 'retriever.encoder'. Options: depth, odd, bare (peft-rag retrievers tells more)."
    )


def test_check_options_says_when_there_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        check_options("fusion", {"k": 1}, [])
    assert str(caught.value) == "unknown option 'fusion.k'. Options: none (peft-rag fusions tells more)."


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("k", "many", "int | None"),
        ("k", 2.5, "int | None"),
        ("k", True, "int | None"),
        ("rate", "fast", "float"),
        ("rate", None, "float"),
        ("rate", False, "float"),
        ("kind", "middle", "Literal['near', 'far']"),
        ("loud", "maybe", "bool"),
        ("loud", 1, "bool"),
        ("name", 3, "str"),
    ],
)
def test_make_part_refuses_a_value_of_the_wrong_type_naming_the_right_one(name: str, value: Any, wanted: str) -> None:
    assert refusal(Part, "task", {name: value}) == (
        f"task refuses {name}={value!r}: it must be {wanted}. peft-rag tasks tells each option's type."
    )


def test_make_part_passes_on_what_the_part_itself_refuses() -> None:
    assert refusal(Part, "fusion", {"rate": -1.0}) == "rate is below 0."
    assert refusal(WithEncoder, "retriever", {"depth": 13}, None) == (
        "retriever refuses depth=13: thirteen is no depth. peft-rag retrievers tells each option's type."
    )


@pytest.mark.parametrize("value", [None, 1, "text", [1]])
def test_make_part_leaves_types_it_cannot_know_to_the_part(value: Any) -> None:
    assert make_part(Part, "fusion", {"anything": value}).anything == value

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peft_rag.benchmark.filters import read_filter
from peft_rag.benchmark.plan import make_plan
from peft_rag.benchmark.suite import Suite
from peft_rag.errors import ConfigError, DataError

MakeSuite = Callable[..., Suite]


def chosen(suite: Suite, text: str) -> list[str]:
    return [cell.name for cell in make_plan(suite, read_filter(text)).cells]


def test_filters_choose_cells(toy_suite: MakeSuite) -> None:
    assert chosen(toy_suite(), "method=lora,fusion=knn,seed=1") == ["kinds-lora-knn-s1"]
    assert chosen(toy_suite(), "method=lora,method=head,fusion=knn,seed=1") == [
        "kinds-head-knn-s1",
        "kinds-lora-knn-s1",
    ]
    assert chosen(toy_suite(), "") == [cell.name for cell in make_plan(toy_suite()).cells]


def test_a_row_is_found_in_the_cell_that_holds_it(toy_suite: MakeSuite) -> None:
    assert chosen(toy_suite(), "method=lora,fusion=none,seed=1") == ["kinds-lora-knn-s1"]
    alone = toy_suite(fusions=["none", "concat"], seeds=[0])
    assert chosen(alone, "method=lora,fusion=none") == ["kinds-lora-none-s0"]


def test_a_name_that_is_no_filter(toy_suite: MakeSuite) -> None:
    with pytest.raises(ConfigError, match=r"--only 'metod=lora' is no filter. Did you mean 'method'?"):
        read_filter("metod=lora")
    with pytest.raises(ConfigError, match=r"--only 'method' is no filter"):
        read_filter("method")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method=lorra",
            r"--only 'method=lorra': the suite has no such method. Did you mean 'lora'\? It has head, lora.",
        ),
        ("method=lora,method=bitfit", r"--only 'method=bitfit': the suite has no such method. It has head, lora."),
        ("fusion=kn", r"--only 'fusion=kn': .* Did you mean 'knn'\? It has knn, none, concat."),
        ("seed=9", r"--only 'seed=9': the suite has no such seed. It has 0, 1."),
    ],
)
def test_a_value_that_the_suite_does_not_have(toy_suite: MakeSuite, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(toy_suite(), text)


def test_values_that_no_cell_has_together(toy_suite: MakeSuite, mapping: dict[str, Any]) -> None:
    data = {"few": {**mapping["data"]["kinds"], "shots": [5]}, "all": mapping["data"]["kinds"]}
    with pytest.raises(ConfigError, match="no cell of the suite has all values of --only"):
        chosen(toy_suite(data=data), "dataset=all,shots=5")


def test_data_that_is_absent_and_asked_for(
    toy_suite: MakeSuite, mapping: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOY_DATA", raising=False)
    far = {"train": "${TOY_DATA}/train.jsonl", "test": "${TOY_DATA}/test.jsonl"}
    suite = toy_suite(data={**mapping["data"], "far": far})
    with pytest.raises(DataError, match=r"data set 'far' is absent: .* TOY_DATA is not set"):
        chosen(suite, "dataset=far")

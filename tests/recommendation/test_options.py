from __future__ import annotations

import pytest

from peft_rag.errors import ConfigError, PeftRagError, UnknownMethodError
from peft_rag.recommendation.options import SearchOptions, read_options, read_size, run_settings
from peft_rag.recommendation.report import flags_of

DATA = {"train": "a.jsonl", "output": "out"}


def test_own_names_are_taken_out_and_the_rest_describes_a_run() -> None:
    given = {**DATA, "methods": "lora, head,lora", "budget_bytes": "1.5M", "budget_minutes": "2.5", "eta": "2"}
    options, rest = read_options(given)
    assert options == SearchOptions(methods=("lora", "head"), budget_bytes=1_500_000, budget_minutes=2.5, eta=2)
    assert rest == DATA


@pytest.mark.parametrize(
    ("text", "size"), [("500k", 500_000), ("500 kB", 500_000), ("2M", 2_000_000), ("1g", 10**9), (1234, 1234)]
)
def test_sizes_are_read_as_people_write_them(text: object, size: int) -> None:
    assert read_size("--budget-bytes", text) == size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_bytes": "small"}, "--budget-bytes is 'small', no size. Write bytes"),
        ({"budget_bytes": "0"}, "--budget-bytes is '0', no size"),
        ({"budget_bytes": "-5k"}, "--budget-bytes is '-5k', no size"),
        ({"budget_minutes": "soon"}, "--budget-minutes is 'soon', no number of minutes above 0"),
        ({"budget_minutes": "nan"}, "--budget-minutes is 'nan'"),
        ({"budget_minutes": "inf"}, "--budget-minutes is 'inf'"),
        ({"trials": "2.5"}, "--trials is '2.5', but must be a whole number"),
        ({"trials": "0"}, "--trials is 0"),
        ({"eta": "1"}, "--eta is 1"),
        ({"methods": " , "}, "--methods names nothing"),
        ({"methods": "head,lorra"}, "no PEFT method 'lorra'. Did you mean 'lora'?"),
        ({"fusions": "knm"}, "no fusion 'knm'. Did you mean 'knn'?"),
    ],
)
def test_what_cannot_be_read_is_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(PeftRagError) as caught:
        read_options(given)
    assert message in str(caught.value)


def test_unknown_method_is_the_error_of_train() -> None:
    with pytest.raises(UnknownMethodError):
        SearchOptions(methods=("no-such-method",))


def test_search_has_no_query_tower() -> None:
    with pytest.raises(ConfigError, match="recommend searches with a frozen retriever, but query_method is 'lora'"):
        run_settings(SearchOptions(), {**DATA, "query_method": "lora"}, "here")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lora"}, "'method' is what recommend chooses. Name the methods to choose from with --methods"),
        ({"method.r": 4}, "'method.r' is what recommend chooses"),
        ({"fusion": "knn"}, "'fusion' is what recommend chooses"),
        ({"fusion.k": 4}, None),
    ],
)
def test_run_names_nothing_that_is_searched(given: dict[str, object], message: str | None) -> None:
    if message is None:
        config = run_settings(SearchOptions(), {**DATA, **given}, "here")
        assert (config.fusion, config.part_options("fusion")) == ("knn", {"k": 4})
        with pytest.raises(ConfigError, match="names 2 that could take them"):
            run_settings(SearchOptions(fusions=("none", "knn", "concat")), {**DATA, **given}, "here")
        return
    with pytest.raises(ConfigError, match="is what recommend chooses") as caught:
        run_settings(SearchOptions(), {**DATA, **given}, "here")
    assert message in str(caught.value)


def test_a_search_leaves_out_bad_records_as_the_final_run_does() -> None:
    config = run_settings(SearchOptions(), {**DATA, "on_bad_record": "skip"}, where="here")
    assert flags_of(config)["on_bad_record"] == "skip"

import re
from pathlib import Path

import pytest

from peft_rag.config import RunConfig, from_mapping, override, read_yaml, training_names
from peft_rag.errors import ConfigError

NEEDED = {"train": "a.jsonl", "output": "out"}


def refusal(settings, **options):
    with pytest.raises(ConfigError) as caught:
        from_mapping({**NEEDED, **settings}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", [True, False])
def test_from_mapping_reads_numbers_and_truth_values_also_where_they_are_text(text):
    given = {"shots": 5, "dropout": 3e-4, "validation_share": 1e-1, "resume": True, "last_layers": 2}
    spelled = {"shots": "5", "dropout": "3e-4", "validation_share": "1e-1", "resume": "True", "last_layers": " 2 "}
    config = from_mapping(NEEDED | (spelled if text else given))
    assert {name: getattr(config, name) for name in given} == given
    assert [type(getattr(config, name)) for name in given] == [int, float, float, bool, int]


def test_from_mapping_makes_a_float_of_a_whole_number_and_a_text_of_any_number():
    config = from_mapping(NEEDED | {"dropout": 0, "train": 2024, "label_field": 1.5})
    assert (config.dropout, type(config.dropout), config.train, config.label_field) == (0.0, float, "2024", "1.5")


def test_from_mapping_takes_training_arguments_as_numbers():
    config = from_mapping(NEEDED | {"learning_rate": "3e-4", "max_steps": "10", "bf16": "false", "optim": "sgd"})
    assert config.training == {"learning_rate": 3e-4, "max_steps": 10, "bf16": False, "optim": "sgd"}


def test_from_mapping_takes_a_part_as_a_name_or_with_its_options():
    config = from_mapping(
        NEEDED | {"method": {"name": "bitfit", "norms": "true"}, "fusion": "concat", "retriever": {"M": "32"}}
    )
    assert (config.method, config.fusion, config.retriever) == ("bitfit", "concat", "")
    assert config.part_options("method") == {"norms": True}
    assert config.part_options("retriever") == {"M": 32}
    assert config.part_options("fusion") == {}


@pytest.mark.parametrize("first", ["dotted", "mapping"])
def test_dotted_option_wins_over_a_mapping_in_whatever_order_they_come(first):
    pairs = [("method.r", "4"), ("method", {"name": "lora", "r": 8, "lora_alpha": 16})]
    config = from_mapping(NEEDED | dict(pairs if first == "dotted" else pairs[::-1]))
    assert config.method == "lora"
    assert config.part_options("method") == {"r": 4, "lora_alpha": 16}


def test_options_given_out_are_a_copy():
    config = from_mapping(NEEDED | {"method.r": 4})
    config.part_options("method")["r"] = 5
    assert config.part_options("method") == {"r": 4}


def test_from_mapping_leaves_the_mapping_it_was_given_alone():
    settings = {**NEEDED, "method": {"name": "lora", "r": 8}}
    from_mapping(settings)
    assert settings["method"] == {"name": "lora", "r": 8}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("metod", "method"),
        ("validaton", "validation"),
        ("warmup_step", "warmup_steps"),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest_of_ours_and_the_trainers(wrong, nearest):
    assert refusal({wrong: 1}, where="run.yaml") == (
        f"run.yaml: unknown name '{wrong}'. Did you mean '{nearest}'? peft-rag train --help lists the common names; "
        "every name of transformers.TrainingArguments is taken."
    )


def test_unknown_part_of_a_dotted_name_is_an_error_with_the_nearest():
    assert refusal({"fussion.k": 1}) == (
        "the configuration: 'fussion.k' names no part. Did you mean 'fusion'? "
        "Parts: task, method, fusion, retriever, objective, query_method."
    )


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("shots", "three", "a whole number"),
        ("shots", 2.5, "a whole number"),
        ("shots", True, "a whole number"),
        ("dropout", "much", "a number"),
        ("dropout", True, "a number"),
        ("resume", "maybe", "true or false"),
        ("resume", 1, "true or false"),
        ("train", None, "a text"),
        ("fusion", False, "a text"),
        ("train", ["a", "b"], "a text"),
        ("train", {"name": "a"}, "a text"),
    ],
)
def test_value_of_the_wrong_type_is_an_error_naming_the_right_one(name, value, wanted):
    assert refusal({name: value}, where="the command line") == (
        f"the command line: {name} is {value!r}, but must be {wanted}."
    )


def test_part_whose_name_is_no_text_is_an_error():
    assert refusal({"method": {"name": None}}) == "the configuration: method is None, but must be a text."


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "train",
            "--train is missing. It names training data: .jsonl, .csv, .tsv, .parquet, demo:NAME/SPLIT or a hub id; "
            "[:500] behind any takes so many.",
        ),
        ("output", "--output is missing. It names folder of the artefact; must not hold anything yet."),
    ],
)
def test_missing_name_is_an_error_saying_what_it_is(missing, message):
    assert refusal({missing: ""}) == message
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_mapping({name: value for name, value in NEEDED.items() if name != missing})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_init": "zero"}, "head_init is 'zero'. Choose probe or random."),
        ({"validation_share": 0}, "validation_share is 0.0; it lies between 0 and 1."),
        ({"validation_share": 1}, "validation_share is 1.0; it lies between 0 and 1."),
        ({"validation_share": "nan"}, "validation_share is nan; it lies between 0 and 1."),
        ({"shots": -1}, "shots is -1; it must not be below 0."),
        ({"last_layers": -2}, "last_layers is -2; it must not be below 0."),
        ({"early_stopping_patience": -1}, "early_stopping_patience is -1; it must not be below 0."),
        ({"seed": -3}, "seed is -3; it must not be below 0."),
        ({"leak_threshold": 1.1}, "leak_threshold is 1.1; it is a cosine from 0 (off) to 1."),
        ({"leak_threshold": "nan"}, "leak_threshold is nan; it is a cosine from 0 (off) to 1."),
        ({"long_inputs": "whole"}, "long_inputs is 'whole'. Choose cut or within_document."),
        ({"dropout": 1}, "dropout is 1.0; it must be below 1."),
        ({"dropout": "nan"}, "dropout is nan; it must be below 1."),
    ],
)
def test_value_out_of_range_is_an_error(settings, message):
    assert refusal(settings) == message


def test_read_yaml_gives_names_and_values_and_a_run_of_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "train: ä.jsonl\noutput: out\nmethod: {name: lora, r: 4}\nfusion.k: 8\nlearning_rate: 3e-4\nresume: yes\n",
        encoding="utf-8",
    )
    config = from_mapping(read_yaml(path))
    assert config == RunConfig(
        train="ä.jsonl",
        output="out",
        method="lora",
        resume=True,
        options={"method": {"r": 4}, "fusion": {"k": 8}},
        training={"learning_rate": 3e-4},
    )


def test_to_dict_makes_the_same_run_again():
    config = from_mapping(NEEDED | {"method.r": 4, "max_steps": 3, "shots": 2})
    assert RunConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run file '{path}' must hold names and values, each written as 'name: value'."),
        (b"- a\n- b\n", "run file '{path}' must hold names and values, each written as 'name: value'."),
        (b"1: a\n", "run file '{path}' must hold names and values, each written as 'name: value'."),
        (b"method: [a\n", "run file '{path}' cannot be read: while parsing a flow sequence in"),
        (b"method: \xff\n", "run file '{path}' cannot be read: 'utf-8' codec can't decode byte 0xff in position 8"),
    ],
)
def test_read_yaml_refuses_what_holds_no_names_and_values(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_read_yaml_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_yaml("nowhere/run.yaml")
    assert str(caught.value) == "run file 'nowhere/run.yaml' does not exist. examples/ holds some to start from."
    with pytest.raises(ConfigError, match=f"^run file '{re.escape(str(tmp_path))}' cannot be read: .*directory"):
        read_yaml(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be read: .*Not a directory"):
        read_yaml(tmp_path / "file/run.yaml")


def test_override_checks_what_it_changes():
    config = from_mapping(NEEDED)
    assert override(config, seed=7).seed == 7
    with pytest.raises(ConfigError, match="shots is -1"):
        override(config, shots=-1)


def test_no_name_of_ours_hides_one_of_the_trainers_but_the_seed():
    ours = set(RunConfig.__dataclass_fields__) - {"options", "training"}
    assert ours & set(training_names()) <= {"seed"}


def test_every_run_file_of_the_examples_is_valid():
    files = sorted((Path(__file__).parent.parent / "examples").glob("wiki-topics*.yaml"))
    for path in files:
        assert from_mapping(read_yaml(path) | {"output": "out"}).train


@pytest.mark.parametrize(
    ("given", "read"), [(0.5, 0.5), ("0.5", 0.5), (1, 1.0), ("-3", -3.0), (None, None), ("none", None)]
)
def test_option_without_a_default_is_a_number_or_none(given, read):
    assert RunConfig(**NEEDED).min_score is None
    assert from_mapping({**NEEDED, "min_score": given}).min_score == read

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from peft_rag.card import model_card, results_table
from peft_rag.config import RunConfig
from peft_rag.evaluation.bootstrap import Score
from peft_rag.refusals import LeftOut
from peft_rag.results import metrics, peak_memory_bytes, table

ARMS = {
    "untrained": {"accuracy": Score(0.1, 0.08, 0.12), "mcc": Score(-0.05, -0.1, 0.0)},
    "retrieval_alone": {"accuracy": Score(0.8, 0.7, 0.9), "mcc": Score(0.7, 0.6, 0.8)},
    "without_retrieval": {"accuracy": Score(0.9049, 0.88, 0.93), "mcc": Score(0.9, 0.85, 0.95)},
    "with_retrieval": {"accuracy": Score(1.0, 1.0, 1.0), "mcc": Score(1.0, 1.0, 1.0)},
}
MANIFEST = {
    "task": {"name": "text-classification", "settings": {"labels": ["cat", "dog"]}},
    "method": {"name": "lora", "trainable_parameters": 12345},
    "fusion": {"name": "knn", "settings": {}},
    "backbone": {"name": "some/backbone"},
    "knowledge": {"corpus": {"source": "docs.jsonl"}},
}


OVERLAP = {
    "examples": 1000,
    "exact": 3,
    "near": None,
    "threshold": None,
    "metric": "accuracy",
    "arms": {"with_retrieval": {"all": 1.0, "overlapping": 1.0, "clean": 1.0}},
}


def measured(arms=ARMS, **changes):
    frozen = torch.nn.Linear(9, 10, bias=False).requires_grad_(False)
    trained = torch.nn.Linear(5, 2, bias=False)
    model = SimpleNamespace(
        trained_state=lambda: {"head.weight": trained.weight},
        parameters=lambda: [frozen.weight, trained.weight],
        fusion=SimpleNamespace(to_dict=lambda: {"k": 4}),
        adapter="default",
        gates={"default": 0.25},
    )
    training = SimpleNamespace(seconds=12.5, examples_per_second=40.0, steps=50, best_step=30)
    config = RunConfig(**({"train": "a.jsonl", "output": "out", "seed": 3, "resume": True} | changes))
    left_out = {"train": LeftOut(10, ("a.jsonl line 2: empty",)), "test": LeftOut(5)}
    return metrics(config, model, arms, training, test_examples=1000, overlap=OVERLAP, left_out=left_out)


def test_metrics_hold_before_after_and_every_arm_with_its_interval():
    content = measured()
    assert content["before"] == {"accuracy": 0.1, "mcc": -0.05}
    assert content["after"] == content["test"] == {"accuracy": 1.0, "mcc": 1.0}
    assert content["arms"]["without_retrieval"]["accuracy"] == {"value": 0.9049, "low": 0.88, "high": 0.93}
    assert list(content["arms"]) == list(ARMS)
    assert content["left_out"] == {"train": {"count": 1, "of": 10, "first": ["a.jsonl line 2: empty"]}}
    assert (content["fusion"], content["gate"]) == ({"k": 4}, 0.25)
    assert (content["seed"], content["steps"], content["best_step"], content["test_examples"]) == (3, 50, 30, 1000)
    assert (content["train_seconds"], content["examples_per_second"]) == (12.5, 40.0)
    assert json.loads(json.dumps(content)) == content


def test_metrics_after_are_those_without_retrieval_when_nothing_is_retrieved():
    arms = {name: ARMS[name] for name in ("untrained", "without_retrieval")}
    assert measured(arms)["after"] == {"accuracy": 0.9049, "mcc": 0.9}


def test_metrics_count_trained_parameters_against_all():
    content = measured()
    assert (content["trainable_parameters"], content["trainable_percent"]) == (10, 10.0)


def test_metrics_keep_the_configuration_but_not_where_the_output_went():
    content = measured(**{"method": "bitfit"})
    assert content["config"]["method"] == "bitfit"
    assert not {"output", "resume"} & content["config"].keys()


def test_metrics_name_the_data_every_number_rests_on():
    assert measured()["data"] == {
        "train": "a.jsonl",
        "validation": "10% of train",
        "test": "the validation split, on which settings were chosen too",
        "corpus": "a.jsonl",
    }
    named = {"validation": "v.jsonl", "test": "t.jsonl", "corpus": "c.jsonl"}
    assert measured(**named)["data"] == {"train": "a.jsonl", **named}


def test_table_has_a_row_an_arm_and_columns_that_never_touch():
    assert table(ARMS, "test.jsonl", 12345) == [
        "in percent on 12,345 examples of test.jsonl, 95% bootstrap intervals in brackets",
        "                   accuracy              mcc",
        "untrained          10.0 [8.0, 12.0]      -5.0 [-10.0, 0.0]",
        "retrieval alone    80.0 [70.0, 90.0]     70.0 [60.0, 80.0]",
        "without retrieval  90.5 [88.0, 93.0]     90.0 [85.0, 95.0]",
        "with retrieval     100.0 [100.0, 100.0]  100.0 [100.0, 100.0]",
    ]


def test_table_makes_room_for_a_long_metric_name():
    long = "mean_reciprocal_rank_of_labels"
    lines = table({"untrained": {long: Score(0.5, 0.4, 0.6), "b": Score(0.5, 0.4, 0.6)}}, "x", 1)
    assert lines[1].split() == [long, "b"]
    assert lines[1].index(" b") + 1 == lines[2].rindex("50.0")


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_bytes()
    held = torch.ones(40_000_000 + before // 4)
    assert peak_memory_bytes() - before > 30_000_000
    del held


def test_scores_that_are_no_shares_are_written_as_they_are():
    arms = {
        name: {"likelihood": Score(0.2, 0.1, 0.3), "perplexity": Score(5.0, 3.5, 9.25, percent=False)}
        for name in ("untrained", "without_retrieval")
    }
    assert table(arms, "t.jsonl", 9)[0].startswith("in percent (perplexity as it is) on 9 examples of t.jsonl")
    card = model_card(MANIFEST, json.loads(json.dumps(measured(arms, test="t.jsonl"))), "some text")
    assert "In percent (perplexity as it is) on 1,000 examples (t.jsonl)" in card
    assert "| untrained | 20.0 [10.0, 30.0] | 5.0 [3.5, 9.2] |" in card


def test_model_card_asks_what_the_task_takes_and_names_labels_only_where_there_are_some():
    writes = MANIFEST | {"task": {"name": "text-generation", "settings": {"labels": []}}, "knowledge": None}
    card = model_card(writes, {}, {"question": "Où?", "choices": ["ici"]})
    assert 'model.predict([{"question": "Où?", "choices": ["ici"]}])\n' in card
    assert card.endswith("```\n")


def test_model_card_begins_with_front_matter_the_hub_reads():
    card = model_card(MANIFEST, measured() | {"artefact_bytes": 612_345}, "some text")
    _, front, _ = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "base_model": "some/backbone",
        "pipeline_tag": "text-classification",
        "tags": ["peft-rag", "retrieval-augmented", "lora"],
        "metrics": ["accuracy", "mcc"],
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("some/backbone", "some/backbone"),
        ("4bit:some/backbone", "some/backbone"),
        ("warm:some/backbone", "some/backbone"),
        ("gemma-3-270m", None),
        ("runs/here", None),
        ("/data/a: b #c", None),
    ],
)
def test_model_card_names_a_base_model_only_of_the_hub(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/here").mkdir(parents=True)
    card = model_card(MANIFEST | {"backbone": {"name": name}}, {}, "some text")
    assert yaml.safe_load(card.split("---\n", 2)[1]).get("base_model") == said
    assert f"frozen backbone `{name}`" in card


def test_model_card_states_results_costs_labels_and_corpus():
    card = model_card(
        MANIFEST, measured(test="t.jsonl") | {"artefact_bytes": 612_345, "peak_memory_bytes": 1.5e9}, "hi"
    )
    for sentence in (
        "# lora for text-classification on some/backbone",
        "In percent on 1,000 examples (t.jsonl), with 95% bootstrap intervals; seed 3.",
        "| without retrieval | 90.5 [88.0, 93.0] | 90.0 [85.0, 95.0] |",
        "- trained: 10 parameters, 10.00% of the model",
        "- artefact: 612 kB",
        "- training: 12 s, 40 examples/s, peak memory 1,500 MB",
        'model.predict(["hi"], explain=True)',
        "Labels: cat, dog. It retrieves from `docs.jsonl`; where that lies elsewhere, say so: `from_pretrained(…, corp",
    ):
        assert sentence in card


def test_model_card_claims_nothing_that_was_not_measured():
    card = model_card({name: value for name, value in MANIFEST.items() if name != "knowledge"}, {}, "some text")
    assert "## Results\n\nNot measured.\n" in card
    assert "- trained in the backbone: 12,345 parameters" in card
    for absent in ("artefact:", "training:", "metrics:", "It retrieves", "%"):
        assert absent not in card


def test_results_table_leaves_a_cell_empty_where_an_arm_lacks_a_metric():
    arms = {
        "a": {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}},
        "b_c": {"mcc": {"value": 0.1, "low": 0.0, "high": 0.2}},
    }
    assert results_table(arms) == (
        "| answers | accuracy | mcc |\n"
        "| --- | --- | --- |\n"
        "| a | 50.0 [25.0, 75.0] |  |\n"
        "| b c |  | 10.0 [0.0, 20.0] |\n"
    )


@pytest.mark.parametrize("metrics_given", [{}, {"artefact_bytes": 5}])
def test_model_card_example_is_python(metrics_given):
    code = model_card(MANIFEST, metrics_given, "some text").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")

"""What training minimises beside the task's own loss, against plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_rag.artefact import load
from peft_rag.config import RunConfig, from_mapping
from peft_rag.data import read_splits
from peft_rag.errors import ConfigError, UnknownObjectiveError
from peft_rag.job import run
from peft_rag.objectives.contrastive import ClassGroups, ContrastiveObjective, supervised_contrastive
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification
from tests.conftest import write_jsonl
from tests.test_job import settings

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


def plain_contrast(features: Tensor, classes: list[int], temperature: float) -> float:
    """Return the loss as its formula is written, a term at a time."""
    unit = [[value / math.hypot(*row) for value in row] for row in features.tolist()]
    likeness = [[sum(a * b for a, b in zip(one, two, strict=True)) / temperature for two in unit] for one in unit]
    terms = []
    for i, mine in enumerate(classes):
        others = [p for p, theirs in enumerate(classes) if theirs == mine and p != i]
        if others:
            total = math.log(sum(math.exp(likeness[i][a]) for a in range(len(classes)) if a != i))
            terms.append(-sum(likeness[i][p] - total for p in others) / len(others))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("classes", [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [3, 3], [0, 1, 2]])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_contrast_equals_a_plain_loop(classes: list[int], temperature: float) -> None:
    features = torch.randn(len(classes), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = supervised_contrastive(features, torch.tensor(classes), temperature)
    assert loss.item() == pytest.approx(plain_contrast(features, classes, temperature), abs=1e-9)


def test_gradient_of_the_contrast_equals_finite_differences() -> None:
    features = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    classes = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda given: supervised_contrastive(given, classes, 0.3), (features,))


def test_batch_without_a_pair_has_no_contrast_and_no_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrastive(features, torch.tensor([0, 1, 2]), 0.05)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_contrast_is_least_where_classes_lie_apart() -> None:
    classes = torch.tensor([0, 0, 1, 1])
    apart = supervised_contrastive(torch.eye(2)[classes], classes, 0.1)
    mixed = supervised_contrastive(torch.eye(2)[[0, 1, 0, 1]], classes, 0.1)
    assert apart < 1e-3 < mixed


def test_groups_hold_one_class_and_every_example_comes_once() -> None:
    classes = [0, 1, 0, 2, 1, 0, 2, 2, 0, 1]
    torch.manual_seed(0)
    order = ClassGroups(classes, 2)
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(len(classes)))
    assert first != second
    runs = [len(group) for group in _runs([classes[place] for place in first])]
    assert sum(size % 2 for size in runs) <= 2  # classes 1 and 2 have an odd one each
    torch.manual_seed(0)
    assert list(ClassGroups(classes, 2)) == first


def _runs(values: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for value in values:
        if groups and groups[-1][-1] == value:
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups


@pytest.fixture
def configured(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> Any:
    """Make the configuration of a run on the toy data, some names changed."""

    def make(**changes: Any) -> RunConfig:
        return from_mapping(settings(tiny_bert, toy_data, tmp_path / f"out-{len(list(tmp_path.iterdir()))}", **changes))

    return make


def test_training_with_the_contrast_draws_classes_together(configured: Any) -> None:
    closeness = {}
    for objective in ("task", "contrastive"):
        kept: list[float] = []

        def observe(prepared: Any, answers: Any, kept: list[float] = kept) -> None:
            features = prepared.model.outputs(prepared.train).features.double()
            targets = prepared.splits.task.targets(prepared.train.examples)
            kept.append(supervised_contrastive(features, targets, 0.05).item())

        run(
            configured(objective=objective, fusion="none", method="full", eval_strategy="no"),
            lambda line: None,
            observe=observe,
        )
        closeness[objective] = kept[0]
    assert closeness["contrastive"] < closeness["task"] - 0.1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"objective": "contrastiv"}, UnknownObjectiveError, "Did you mean 'contrastive'"),
        (
            {"objective": "contrastive", "objective.weight": 0},
            ConfigError,
            "objective.weight is 0; it must be above 0.",
        ),
        (
            {"objective": "contrastive", "objective.per_class": 1},
            ConfigError,
            "objective.per_class is 1; a text needs another of its class beside it.",
        ),
        ({"objective.temperature": 0.1}, ConfigError, "unknown option 'objective.temperature'"),
    ],
)
def test_objective_that_cannot_be_is_refused_before_anything_is_loaded(
    configured: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(configured(backbone="no-such-backbone", **given), lambda line: None)


def test_objective_that_needs_classes_refuses_a_task_without() -> None:
    with pytest.raises(ConfigError, match="which those of task 'token-classification' do not have"):
        ContrastiveObjective().check(TokenClassification(), "token-classification")


def test_names_of_labels_are_examples_and_documents_that_an_artefact_reads_again(
    configured: Any, toy_data: dict[str, str]
) -> None:
    splits = read_splits(TextClassification(), **toy_data)
    named = read_splits(TextClassification(), **toy_data, label_documents=True)
    labels = sorted({label for one in splits.train for label in one.labels or ()})
    added = named.train[len(splits.train) :]
    assert [(one.id, one.text, one.labels) for one in added] == [(f"label:{name}", name, (name,)) for name in labels]
    assert len(named.corpus) == len(splits.corpus) + len(labels)
    assert named.validation == splits.validation
    config = configured(label_documents=True, num_train_epochs=1, **{"fusion.weight": 0.5})
    run(config, lambda line: None)
    model = load(config.output)
    assert model.knowledge is not None
    assert model.knowledge.corpus.fingerprint == named.corpus.fingerprint


def test_name_of_a_label_is_read_as_words(tmp_path: Path) -> None:
    records = [{"text": f"{label} {n}", "label": label} for label in ("card_arrival", "top-up") for n in range(4)]
    named = read_splits(
        TextClassification(), train=write_jsonl(tmp_path / "train.jsonl", records), label_documents=True
    )
    assert [one.text for one in named.train[-2:]] == ["card arrival", "top up"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corpus": "documents.jsonl"}, "the corpus is 'documents.jsonl'"),
        ({"task": "token-classification"}, "this task does not give labels to whole texts"),
    ],
)
def test_names_of_labels_are_refused_where_they_cannot_be_documents(
    configured: Any, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    if "task" in given:
        words = [{"tokens": ["a", "b"], "tags": ["B-X", "O"]}] * 4
        given = given | {"train": write_jsonl(tmp_path / "tagged.jsonl", words)}
    with pytest.raises(ConfigError, match=message):
        run(configured(label_documents=True, **given), lambda line: None)

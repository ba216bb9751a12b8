from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peft_rag.benchmark.work import try_settings
from peft_rag.config import RunConfig, override
from peft_rag.errors import ArtefactError
from peft_rag.fusion.base import Memory, Outputs, Split
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.recommendation.candidates import Candidate
from peft_rag.recommendation.schedule import Pace, Rung
from peft_rag.recommendation.store import Store
from peft_rag.recommendation.trial import FOLDS, Trials, cross_fitted, judged
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification

MakeConfig = Callable[..., RunConfig]

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

LORA = Candidate("lora", {"learning_rate": 1e-2, "method.r": 4}, ("none", "knn"), 1)


def test_fusion_answers_each_example_as_fitted_to_the_others() -> None:
    torch.manual_seed(0)
    task = TextClassification(labels=("a", "b"))
    examples = [Example(str(place), "x", (("a", "b")[place % 3 % 2],)) for place in range(11)]
    outputs = Outputs(torch.randn(11, 2).log_softmax(-1), torch.randn(11, 4))
    memory = Memory(torch.tensor([0, 1, 0, 1, 1, 0]), torch.randn(6, 4))
    fusion = KnnFusion(k=2, temperature=0.1)
    split, targets = Split(examples), task.targets(examples)
    found = cross_fitted(fusion, outputs, split, memory, task)
    for row in range(11):
        rest = [other for other in range(11) if other % FOLDS != row % FOLDS]
        those = Outputs(outputs.log_probs[rest], outputs.features[rest])
        fitted = fusion.fit(those, Split([examples[one] for one in rest]), memory, task, targets[rest])
        alone = Outputs(outputs.log_probs[row : row + 1], outputs.features[row : row + 1])
        expected = fitted.combine(alone, Split(examples[row : row + 1]), memory, task)
        torch.testing.assert_close(found[row], expected[0])
    assert torch.equal(cross_fitted(NoFusion(), outputs, split, None, task), outputs.log_probs)


def test_answers_are_judged_by_main_metric_loss_and_place_by_place() -> None:
    task = TextClassification(labels=("a", "b"))
    given = judged(
        task, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [1.0, 0.0]]).log(), torch.tensor([0, 1, 1, 0])
    )
    assert given.tallies == ((1.0,), (1.0,), (0.0,), (1.0,))
    assert given.statistic == "mean"
    assert given.score == 0.75
    assert given.loss == pytest.approx(-sum(torch.tensor([0.9, 0.8, 0.4, 1.0]).log().tolist()) / 4)


def test_trial_is_the_benchmarks_trial_whether_or_not_its_probe_is_shared(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_config(test="")
    trials, store = Trials(base), Store(tmp_path / "trials", base)
    first, second = trials.run(LORA, 6), trials.run(LORA, 6)
    assert first.status == "done", first.error
    assert first.answers == second.answers

    settings = {name: value for name, value in base.to_dict().items() if name not in ("options", "training", "output")}
    settings |= {"method": "lora", "fusion": "none", **LORA.settings, **LORA.config(base, 6).training}
    expected = try_settings({"settings": settings})
    assert first.answers["none"].score == expected["validation"]["accuracy"]
    assert first.answers["none"].loss == pytest.approx(expected["validation"]["loss"], abs=1e-6)

    assert store.read(LORA, 6) is None
    store.write(LORA, first)
    assert Store(tmp_path / "trials", base).read(LORA, 6) == first
    assert store.read(LORA, 7) is None
    assert Store(tmp_path / "trials", override(base, seed=1)).read(LORA, 6) is None
    Path(base.train).write_text(Path(base.train).read_text() + "\n")
    assert Store(tmp_path / "trials", base).read(LORA, 6) is None


def test_damaged_trial_and_plan_are_one_line(make_config: MakeConfig, tmp_path: Path) -> None:
    base = make_config(test="")
    store = Store(tmp_path, base)
    store.write_plan([LORA], 30, 1, [Rung(1, 30)], Pace(1.0, 0.1, 3.0))
    assert store.read_plan([LORA], 30) == (1, [Rung(1, 30)], Pace(1.0, 0.1, 3.0))
    assert store.read_plan([LORA], 31) is None
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"plan.json' cannot be read"):
        store.read_plan([LORA], 30)
    failed = Trials(override(base, backbone="nowhere/at-all")).run(LORA, 2)
    assert failed.status == "failed"
    store.write(LORA, failed)
    assert store.read(LORA, 2) is None  # it is tried again
    store.write(LORA, replace(failed, status="diverged"))
    assert store.read(LORA, 2) == replace(failed, status="diverged")
    assert store.read(replace(LORA, fusions=("none",)), 2) is None
    path = next(path for path in tmp_path.glob("*.json") if '"diverged"' in path.read_text())
    path.write_text('{"status": "done"}')
    with pytest.raises(ArtefactError, match="cannot be read"):
        store.read(LORA, 2)


def test_candidate_that_diverges_or_breaks_is_a_result(make_config: MakeConfig) -> None:
    trials = Trials(make_config(test="", fusion="none", head_refit=False))
    wild = Candidate("lora", {"learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0}, ("none",), 1)
    diverged = trials.run(wild, 4)
    assert diverged.status == "diverged"
    assert "loss is" in diverged.error
    broken = trials.run(Candidate("adaption-prompt", {}, ("none",), 1), 4)
    assert broken.status == "failed"
    assert broken.error.startswith("MethodError: ")

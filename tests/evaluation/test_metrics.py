import evaluate
import numpy as np
import pytest

from peft_rag.errors import ConfigError
from peft_rag.evaluation import scores
from peft_rag.evaluation.metrics import Accuracy, MacroF1, MatthewsCorrelation, MicroF1

pytestmark = pytest.mark.usefixtures("no_network")

ALL = {
    Accuracy: scores.accuracy,
    MacroF1: scores.macro_f1,
    MicroF1: scores.micro_f1,
    MatthewsCorrelation: scores.matthews_correlation,
}


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_metric_module_equals_the_score_and_writes_no_file(metric, tmp_path):
    draw = np.random.default_rng(0)
    predictions, references = draw.integers(0, 4, 50), draw.integers(0, 4, 50)
    module = metric(cache_dir=str(tmp_path))
    assert isinstance(module, evaluate.Metric)
    result = module.compute(predictions=predictions, references=references)
    assert result == {metric.key: pytest.approx(ALL[metric](predictions, references))}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("metric", [Accuracy, MacroF1, MicroF1], ids=lambda metric: metric.__name__)
def test_multilabel_configuration_takes_rows_of_labels(metric, tmp_path):
    draw = np.random.default_rng(0)
    predictions, references = draw.integers(0, 2, (30, 5)), draw.integers(0, 2, (30, 5))
    result = metric("multilabel", cache_dir=str(tmp_path)).compute(predictions=predictions, references=references)
    assert result == {metric.key: pytest.approx(ALL[metric](predictions, references))}


def test_batches_added_one_by_one_are_scored_together(tmp_path):
    draw = np.random.default_rng(0)
    predictions, references = draw.integers(0, 4, 50), draw.integers(0, 4, 50)
    module = MacroF1(cache_dir=str(tmp_path))
    for start in range(0, 50, 20):
        part = slice(start, start + 20)
        module.add_batch(predictions=predictions[part], references=references[part])
    assert module.compute() == {"macro_f1": pytest.approx(scores.macro_f1(predictions, references))}


def test_metrics_combine(tmp_path):
    together = evaluate.combine([Accuracy(cache_dir=str(tmp_path)), MacroF1(cache_dir=str(tmp_path))])
    assert together.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx(2 / 3),
    }


def test_unknown_configuration_is_refused():
    with pytest.raises(ConfigError) as caught:
        Accuracy("multilable")
    assert str(caught.value) == "metric 'accuracy' has no configuration 'multilable'. Choose default or multilabel."
    with pytest.raises(ConfigError) as caught:
        MatthewsCorrelation("multilabel")
    assert str(caught.value) == ("metric 'mcc' has no configuration 'multilabel'. Choose default.")

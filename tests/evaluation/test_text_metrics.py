import evaluate
import pytest

from peft_rag.errors import ConfigError, DataError
from peft_rag.evaluation.answers import answer_scores
from peft_rag.evaluation.entities import entity_scores
from peft_rag.evaluation.text_metrics import AnswerMatch, Bleu, Chrf, EntityF1, Rouge
from peft_rag.evaluation.texts import ROUGE, text_scores

pytestmark = pytest.mark.usefixtures("no_network")

TAGS = ([["B-PER", "I-PER", "O"], [], ["O", "B-LOC"]], [["B-PER", "I-PER", "O"], [], ["B-LOC", "I-LOC"]])
PREDICTIONS = ["the old dogs were running", "a cat", ""]
ALONE = ["old dogs ran", "a cat sat on the grass", ""]
SEVERAL = [["old dogs ran", "the dogs were running"], ["a cat sat"], ["", "nothing"]]


def values(scores):
    return {name: score.value for name, score in scores.items()}


WITH_REFERENCES = {
    AnswerMatch: lambda references: answer_scores(PREDICTIONS, references, resamples=0),
    Bleu: lambda references: text_scores(PREDICTIONS, references, metrics=("bleu",), resamples=0),
    Chrf: lambda references: text_scores(PREDICTIONS, references, metrics=("chrf",), resamples=0),
    Rouge: lambda references: text_scores(PREDICTIONS, references, metrics=ROUGE, resamples=0),
}


@pytest.mark.parametrize(("configuration", "references"), [("default", ALONE), ("multireference", SEVERAL)])
@pytest.mark.parametrize("metric", WITH_REFERENCES, ids=lambda metric: metric.__name__)
def test_metric_of_texts_equals_the_scores_and_writes_no_file(metric, configuration, references, tmp_path):
    module = metric(configuration, cache_dir=str(tmp_path))
    assert isinstance(module, evaluate.Metric)
    result = module.compute(predictions=PREDICTIONS, references=references)
    assert result == values(WITH_REFERENCES[metric](references))
    assert 0 < max(result.values()) < 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_entity_metric_equals_the_scores_and_writes_no_file(tmp_path):
    predicted, actual = TAGS
    module = EntityF1(cache_dir=str(tmp_path))
    assert module.compute(predictions=predicted, references=actual) == values(entity_scores(*TAGS, resamples=0))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_batches_added_one_by_one_are_scored_together(tmp_path):
    module = EntityF1(cache_dir=str(tmp_path))
    for predicted, actual in zip(*TAGS, strict=True):
        module.add(prediction=predicted, reference=actual)
    assert module.compute() == {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5}


def test_question_without_an_answer_has_an_empty_list(tmp_path):
    module = AnswerMatch("multireference", cache_dir=str(tmp_path))
    assert module.compute(predictions=["", "Paris"], references=[[], []]) == {"exact_match": 0.5, "f1": 0.5}


def test_options_are_given_where_they_are_computed(tmp_path):
    letters = Bleu(cache_dir=str(tmp_path)).compute(predictions=["abcdef"], references=["abcdeg"], tokenize="char")
    assert letters == values(text_scores(["abcdef"], ["abcdeg"], metrics=("bleu",), tokenize="char", resamples=0))
    assert letters["bleu"] > 0.5
    stems = Rouge(cache_dir=str(tmp_path)).compute(predictions=["old dogs"], references=["old dog"], stem=True)
    assert stems == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_metrics_combine(tmp_path):
    together = evaluate.combine([Bleu(cache_dir=str(tmp_path)), Chrf(cache_dir=str(tmp_path))])
    expected = values(text_scores(PREDICTIONS, ALONE, metrics=("bleu", "chrf"), resamples=0))
    assert together.compute(predictions=PREDICTIONS, references=ALONE) == expected


def test_unknown_configuration_and_bad_tags_are_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Rouge("several")
    assert str(caught.value) == "metric 'rouge' has no configuration 'several'. Choose default or multireference."
    with pytest.raises(DataError, match=r"sentence 1: tag 'PER' of token 1 is not BIO\."):
        EntityF1(cache_dir=str(tmp_path)).compute(predictions=[["PER"]], references=[["O"]])

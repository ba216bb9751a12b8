import json
import math
import re

import pytest
import torch
from sklearn.metrics import f1_score

from peft_rag.corpus import Corpus, Document
from peft_rag.data import read_splits
from peft_rag.errors import ConfigError, DataError
from peft_rag.evaluation.statistics import STATISTICS
from peft_rag.records import Record
from peft_rag.tasks.base import Example
from peft_rag.tasks.relation_extraction import RelationExtraction
from peft_rag.tasks.text_classification import TextClassification
from tests.conftest import write_jsonl

TASK = RelationExtraction(labels=("capital of", "none", "part of"))
SENSE = TextClassification(span_field="position", labels=("bird", "machine"))


def read(task=TASK, **fields):
    return task.read([Record(fields, "data/a.jsonl", 7)])[0]


def test_head_and_tail_become_spans_of_the_text():
    given = read(tokens=["Paris", "leads", "la", "France"], head=[0], tail=[2, 3], label="capital of")
    assert [given.text[slice(*span)] for span in given.spans] == ["Paris", "la France"]
    assert given.labels == ("capital of",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": 0, "tail": 0, "label": "x"}, "'head' and 'tail' both mark 'a'"),
        ({"head": 0, "label": "x"}, "field 'tail' is missing"),
        ({"head": 0, "tail": 5, "label": "x"}, "'tail' 5 lies outside of its 2 tokens"),
        ({"head": 0, "tail": 1}, "field 'label' is missing"),
        ({"head": 0, "tail": 1, "label": ["x", "y"]}, "holds 2 relations (x, y)"),
    ],
)
def test_bad_records_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(tokens=["a", "b"], **fields)
    assert str(error.value).startswith("a.jsonl line 7")


def test_features_are_both_means_joined_and_scaled_as_in_a_plain_loop():
    pools = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = TASK.pooled(pools)
    assert found.shape == (2, 6)
    for row in range(2):
        joined = [float(value) for pool in (2 * row, 2 * row + 1) for value in pools[pool]]
        length = math.sqrt(sum(value * value for value in joined))
        assert found[row].tolist() == pytest.approx([value / length for value in joined])
    assert TASK.make_head(3).in_features == 6


def test_pools_hold_the_tokens_of_head_and_tail():
    given = read(text="aa bb cc", head=[0, 2], tail=[3, 8], label="part of")
    assert TASK.pools(given, [None, (0, 2), (3, 5), (6, 8), None]) == [[[1], [2, 3]]]
    with pytest.raises(DataError, match="nothing marks 'head' and 'tail' in it"):
        TASK.pools(Example("d", "aa bb"), [(0, 2), (3, 5)])


def test_scores_without_no_relation_equal_scikit_learns_and_micro_f1_is_accuracy_with_all():
    draw = torch.Generator().manual_seed(0)
    log_probs = torch.randn(60, 3, generator=draw).log_softmax(-1)
    targets = torch.randint(0, 3, (60,), generator=draw)
    predicted = log_probs.argmax(-1)
    ignoring = RelationExtraction(labels=TASK.labels, no_relation="none")
    found = ignoring.evaluate(log_probs, targets, resamples=20)
    for task in (ignoring, TASK):
        means = task.tally(log_probs, targets).mean(0)
        value = task.evaluate(log_probs, targets, resamples=0)["micro_f1"].value
        assert STATISTICS[task.statistic].of(means) == pytest.approx(value)
    for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        assert found[name].value == pytest.approx(f1_score(targets, predicted, labels=[0, 2], average=average))
        assert found[name].low <= found[name].value <= found[name].high
    everything = TASK.evaluate(log_probs, targets, resamples=0)
    assert everything["micro_f1"].value == pytest.approx(float((predicted == targets).float().mean()))


def test_no_relation_must_be_a_label_of_the_training_data():
    examples = [Example("1", "a b", ("none",)), Example("2", "a b", ("part of",))]
    assert RelationExtraction(no_relation="none").with_labels_of(examples).labels == ("none", "part of")
    with pytest.raises(ConfigError, match=r"task\.no_relation is 'nome'.*Did you mean 'none'"):
        RelationExtraction(no_relation="nome").with_labels_of(examples)


def test_training_data_as_corpus_keeps_its_marks_and_its_fingerprint_tells_them_apart(tmp_path):
    records = [
        {"tokens": ["a", "b", "c"], "head": 0, "tail": 2, "label": label, "id": f"{label}{number}"}
        for number in range(3)
        for label in ("x", "y")
    ]
    splits = read_splits(RelationExtraction(), train=write_jsonl(tmp_path / "a.jsonl", records), validation_share=0.4)
    document = splits.corpus[0]
    assert splits.task.example_of(document, "corpus").spans == ((0, 1), (4, 5))
    assert splits.task.shown_labels(document) == "a → c: x"
    others = write_jsonl(tmp_path / "b.jsonl", [record | {"tail": 1} for record in records])
    other = read_splits(RelationExtraction(), train=others, validation_share=0.4)
    assert other.corpus.fingerprint != splits.corpus.fingerprint


def test_documents_of_a_corpus_of_its_own_are_marked_by_their_fields():
    rows = [{"text": "Paris, France", "label": "capital of", "head": [0, 5], "tail": {"start": 7, "end": 13}}]
    document = Corpus.read(rows)[0]
    assert TASK.example_of(document, "corpus").spans == ((0, 5), (7, 13))
    assert TASK.shown_labels(document) == "Paris → France: capital of"
    assert TASK.shown_labels(Document("d", "Paris", ("part of",))) == "part of"
    assert TASK.shown_labels(Document("d", "Paris")) == ""
    other = Document("d", "Paris, France", ("news",), metadata={"head": "Paris", "tail": 1})
    assert TASK.shown_labels(other) == "news"
    wrong = Document("d", "Paris", ("part of",), metadata={"head": [0, 9], "tail": [0, 2]})
    with pytest.raises(DataError, match=r"corpus 'c' document 'd': 'head' \[0, 9\] lies outside"):
        TASK.example_of(wrong, "corpus 'c' document 'd'")


def test_a_bare_text_cannot_be_judged():
    with pytest.raises(DataError, match="a bare text says nothing of 'head' and 'tail'"):
        TASK.as_example("Paris", "1")
    with pytest.raises(DataError, match="a bare text says nothing of 'position'"):
        SENSE.as_example("crane", "1")


def test_the_sense_of_one_word_is_judged_by_its_own_tokens():
    given = read(SENSE, tokens=["the", "crane", "flew"], position=1, label="bird")
    assert given.text[slice(*given.spans[0])] == "crane"
    assert SENSE.pools(given, [None, (0, 3), (4, 6), (6, 9), (10, 14), None]) == [[[2, 3]]]
    assert SENSE.make_head(8).in_features == 8
    assert SENSE.shown_labels(Document("d", given.text, ("bird",), spans=given.spans)) == "crane: bird"


def test_a_marked_part_is_pooled_by_its_mean_alone():
    with pytest.raises(ConfigError, match=r"task\.pooling is 'cls', but of the part that task\.span_field marks"):
        TextClassification(span_field="position", pooling="cls")


@pytest.mark.parametrize("task", [TASK, SENSE, RelationExtraction(no_relation="none", labels=("none", "x"))])
def test_settings_survive_json(task):
    assert type(task).from_dict(json.loads(json.dumps(task.to_dict()))) == task

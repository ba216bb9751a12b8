import json
import random
from collections import Counter

import pytest

from peft_rag.data import CorpusFields, as_fields, hold_out, read_corpus, read_splits, sample_shots
from peft_rag.errors import CorpusError, DataError
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(counts, start=0):
    """Return so many rows of each label, one label after the other."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [{"id": f"r{start + n}", "text": f"text {start + n}", "label": label} for n, label in enumerate(labels)]


def examples(counts):
    return [Example(row["id"], row["text"], (row["label"],), f"line {n}") for n, row in enumerate(rows(counts), 1)]


def labels(chosen):
    return Counter(example.labels[0] for example in chosen)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_hold_out_is_disjoint_complete_stratified_and_in_order(share):
    counts = {"a": 100, "b": 41, "c": 17, "d": 3}
    given = examples(counts)
    kept, held = hold_out(given, share, seed=3)
    place = {example.id: n for n, example in enumerate(given)}
    for side in (kept, held):
        assert [place[example.id] for example in side] == sorted(place[example.id] for example in side)
    assert sorted(place[example.id] for example in kept + held) == list(range(len(given)))
    assert len(held) == pytest.approx(share * len(given), abs=1.5)
    for label, count in counts.items():
        assert labels(held)[label] == pytest.approx(share * count, abs=1.0)
        assert labels(kept)[label] >= 1


def test_hold_out_serves_many_small_classes_as_a_whole_when_none_earns_an_example_alone():
    given = examples({f"c{n}": 3 for n in range(40)})
    _, held = hold_out(given, 0.1, seed=0)
    assert len(held) == 12
    assert max(labels(held).values()) == 1


def test_hold_out_never_takes_the_last_example_of_a_class():
    kept, held = hold_out(examples({"a": 1, "b": 1, "c": 50}), 0.9, seed=0)
    assert labels(kept)["a"] == labels(kept)["b"] == 1
    assert set(labels(held)) == {"c"}


def test_hold_out_takes_no_more_of_a_class_for_the_rare_ones_before_it():
    rare = {f"a{number}": 1 for number in range(300)}
    kept, held = hold_out(examples({**rare, "z": 40, "zz": 40}), 0.1, 0)
    assert (labels(kept)["z"], labels(kept)["zz"], len(held)) == (35, 36, 9)


def test_hold_out_of_sets_that_are_all_different_keeps_every_label():
    rng = random.Random(0)
    sets = [tuple(sorted(rng.sample("abcdefghijklmnop", 4))) for _ in range(300)] + [("a", "rare"), ("rarer", "rarest")]
    given = [Example(str(row), "text", labels) for row, labels in enumerate(dict.fromkeys(sets))]
    kept, held = hold_out(given, 0.2, seed=0)
    assert len(held) == round(0.2 * len(given))
    assert {label for one in kept for label in one.labels} == {label for one in given for label in one.labels}
    with pytest.raises(DataError, match="too few to hold out"):
        hold_out([Example(str(row), "text", (f"a{row}", f"b{row}")) for row in range(9)], 0.5, seed=0)


def test_hold_out_depends_on_the_seed_and_on_nothing_else():
    given = examples({"a": 40, "b": 40})
    assert hold_out(given, 0.2, seed=1) == hold_out(list(given), 0.2, seed=1)
    assert hold_out(given, 0.2, seed=1) != hold_out(given, 0.2, seed=2)


def test_hold_out_keeps_a_class_as_it_is_when_another_is_added():
    """A draw of its own for each class: data that grows by a class does not reshuffle the others."""
    few = hold_out(examples({"a": 40, "b": 40}), 0.25, seed=0)[1]
    more = hold_out(examples({"a": 40, "b": 40, "z": 40}), 0.25, seed=0)[1]
    assert [one for one in more if one.labels != ("z",)] == few


def test_hold_out_refuses_when_nothing_can_be_spared():
    with pytest.raises(DataError) as caught:
        hold_out(examples({"a": 1, "b": 1}), 0.1, seed=0)
    assert str(caught.value) == (
        "2 training examples are too few to hold out a share of 0.1 for validation. "
        "Name a validation file with --validation."
    )


def test_sample_shots_draws_so_many_of_each_class_in_the_order_of_the_data():
    given = examples({"b": 9, "a": 30, "c": 4})
    drawn = sample_shots(given, 4, seed=5)
    assert labels(drawn) == {"a": 4, "b": 4, "c": 4}
    assert drawn == [example for example in given if example in drawn]
    assert drawn == sample_shots(given, 4, seed=5)
    assert drawn != sample_shots(given, 4, seed=6)


def test_sample_shots_names_the_class_that_has_too_few():
    with pytest.raises(DataError) as caught:
        sample_shots(examples({"a": 9, "b": 3}), 4, seed=0)
    assert str(caught.value) == "--shots 4 asks for 4 examples of each class, but label 'b' has 3. Lower --shots."


def test_sample_shots_takes_each_set_of_labels_as_a_class():
    given = [Example(str(n), "t", chosen) for n, chosen in enumerate([("a",), ("a", "b"), (), ("a",), ("a", "b"), ()])]
    assert Counter(one.labels for one in sample_shots(given, 1, seed=0)) == {("a",): 1, ("a", "b"): 1, (): 1}


def test_training_data_is_the_corpus_with_the_held_out_examples_in_it(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 20, "b": 20}))
    splits = read_splits(TextClassification(), train=train, validation_share=0.25, seed=1)
    assert splits.validation_in_corpus
    assert splits.test == []
    assert [document.id for document in splits.corpus] == [f"r{n}" for n in range(40)]
    assert {one.id for one in splits.train} | {one.id for one in splits.validation} == {
        document.id for document in splits.corpus
    }
    assert len(splits.validation) == 10
    assert splits.task.labels == ("a", "b")
    assert splits.corpus.name == "train.jsonl"


def test_validation_file_leaves_the_training_data_whole_and_is_not_in_the_corpus(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 5, "b": 5}))
    validation = write(tmp_path / "validation.jsonl", rows({"a": 2, "b": 2}, start=100))
    test = write(tmp_path / "test.jsonl", rows({"b": 3}, start=200))
    splits = read_splits(TextClassification(), train=train, validation=validation, test=test)
    assert (len(splits.train), len(splits.validation), len(splits.test), len(splits.corpus)) == (10, 4, 3, 10)
    assert not splits.validation_in_corpus


def test_separate_corpus_is_read_with_its_own_fields(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 20, "b": 20}))
    corpus = write(tmp_path / "corpus.jsonl", [{"key": "k", "body": "x", "topic": "a", "page": 3}])
    fields = CorpusFields("ignored", text_field="body", label_field="topic", id_field="key", group_field="page")
    splits = read_splits(TextClassification(), train=train, corpus=corpus, corpus_fields=fields)
    document = splits.corpus[0]
    assert (document.id, document.text, document.labels, document.group) == ("k", "x", ("a",), "3")
    assert not splits.validation_in_corpus
    assert splits.fields.source == corpus
    assert read_corpus(splits.fields, splits.task).fingerprint == splits.corpus.fingerprint


@pytest.mark.parametrize("shots", [0, 6])
@pytest.mark.parametrize("kind", ["single", "one-item lists", "multi-label", "no ids", "groups", "other names"])
def test_corpus_of_training_data_is_the_same_when_read_again_from_what_an_artefact_stores(tmp_path, kind, shots):
    given = rows({"a": 20, "b": 30})
    task = TextClassification()
    if kind == "one-item lists":
        given = [row | {"label": [row["label"]]} for row in given]
    if kind == "multi-label":
        given = [row | {"label": ["c", row["label"]]} for row in given]
    if kind == "no ids":
        given = [{"text": row["text"], "label": row["label"]} for row in given]
    if kind == "groups":
        given = [row | {"page": n // 2} for n, row in enumerate(given)]
        task = TextClassification(group_field="page")
    if kind == "other names":
        given = [{"key": row["id"], "body": row["text"], "topic": row["label"]} for row in given]
        task = TextClassification(text_field="body", label_field="topic", id_field="key")
    train = write(tmp_path / "train.jsonl", given)
    splits = read_splits(task, train=train, shots=shots, seed=4)
    assert len(splits.corpus) == (2 * shots or 50)

    stored = json.loads(json.dumps(splits.fields.__dict__ | {"fingerprint": "x", "documents": 3}))
    settings = json.loads(json.dumps(splits.task.to_dict()))
    again = read_corpus(as_fields(stored), TextClassification.from_dict(settings))
    assert again.fingerprint == splits.corpus.fingerprint
    assert [document.group for document in again] == [document.group for document in splits.corpus]
    assert again[0].group == ("0" if kind == "groups" and not shots else again[0].group)


def test_examples_carry_their_group_into_the_corpus(tmp_path):
    given = [row | {"page": n // 2} for n, row in enumerate(rows({"a": 4, "b": 4}))]
    given[0]["page"] = None
    train = write(tmp_path / "train.jsonl", given)
    splits = read_splits(TextClassification(group_field="page"), train=train, validation=train)
    assert [document.group for document in splits.corpus] == ["", "0", "1", "1", "2", "2", "3", "3"]
    assert [example.group for example in splits.validation] == [document.group for document in splits.corpus]


def test_shots_are_drawn_before_validation_is_held_out(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 50, "b": 50}))
    splits = read_splits(TextClassification(), train=train, shots=10, validation_share=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.corpus)) == (16, 4, 20)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_label_unseen_in_training_names_file_line_and_the_nearest(tmp_path, split):
    train = write(tmp_path / "train.jsonl", rows({"apple": 5, "pear": 5}))
    fine = write(tmp_path / "fine.jsonl", rows({"pear": 3}))
    other = write(tmp_path / "other.jsonl", rows({"pear": 2, "aple": 1}))
    with pytest.raises(DataError) as caught:
        read_splits(TextClassification(), train=train, **({"validation": fine} | {split: other}))
    assert str(caught.value) == (
        "other.jsonl line 3: label 'aple' does not occur in the training data (2 labels). Did you mean 'apple'? "
        "Add training examples with it, or correct the record."
    )


def test_label_that_only_shots_left_out_cannot_happen(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 5, "b": 5, "c": 5}))
    splits = read_splits(TextClassification(), train=train, validation=train, shots=1)
    assert splits.task.labels == ("a", "b", "c")
    assert len(splits.train) == 3


def test_two_labels_in_validation_of_single_label_data_are_an_error_and_not_dropped(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 5, "b": 5}))
    other = write(tmp_path / "other.jsonl", [{"text": "x", "label": ["a", "b"]}])
    with pytest.raises(DataError) as caught:
        read_splits(TextClassification(), train=train, validation=other)
    assert str(caught.value) == (
        "other.jsonl line 1: has 2 labels (a, b), but this model was trained on one label a text. "
        "Give one label, or train on data with several."
    )


def test_id_given_twice_names_both_lines_and_the_way_out(tmp_path):
    given = rows({"a": 5, "b": 5})
    given[7]["id"] = "r2"
    train = write(tmp_path / "train.jsonl", given)
    with pytest.raises(CorpusError) as caught:
        read_splits(TextClassification(), train=train)
    assert str(caught.value) == (
        "train.jsonl line 8: id 'r2' was given already at train.jsonl line 3. Give each record an id of its own, "
        "or name another field with --id_field."
    )


def test_empty_ids_count_as_none(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,text,label\n,one,a\n,two,b\nx,three,a\n", encoding="utf-8")
    splits = read_splits(TextClassification(), train=str(path), validation=str(path))
    assert [document.id for document in splits.corpus] == ["1", "2", "x"]


def test_training_data_of_one_label_names_the_field(tmp_path):
    train = write(tmp_path / "train.jsonl", rows({"a": 5}))
    with pytest.raises(DataError) as caught:
        read_splits(TextClassification(), train=train, validation=train)
    assert str(caught.value) == (
        "the training data has 1 distinct labels (a) in field 'label'; a classifier needs two at least. "
        "Name the field with --label_field."
    )

import json

import pytest

from peft_rag.corpus import Corpus, Document, text_key
from peft_rag.errors import CorpusError, DataError


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def failure(*arguments, **options):
    with pytest.raises(CorpusError) as caught:
        Corpus.read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_read_keeps_ids_texts_labels_groups_and_everything_else(tmp_path):
    path = write(
        tmp_path / "c.jsonl",
        {"id": "x", "text": "one", "label": "p", "page": 7, "year": 1999},
        {"id": 5, "text": "two", "label": ["p", 1], "page": "7"},
        {"text": "three", "page": None},
    )
    corpus = Corpus.read(path, group_field="page")
    assert list(corpus) == [
        Document("x", "one", ("p",), "7", {"year": 1999}),
        Document("5", "two", ("p", "1"), "7", {}),
        Document("3", "three", (), "", {}),
    ]
    assert corpus.texts == ["one", "two", "three"]
    assert repr(corpus) == f"Corpus({str(path)!r}, 3 documents)"


def test_read_takes_other_field_names_and_csv(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("key,body,topic\nk,hello,t\nl,world,\n", encoding="utf-8")
    corpus = Corpus.read(path, text_field="body", label_field="topic", id_field="key")
    assert list(corpus) == [Document("k", "hello", ("t",)), Document("l", "world")]


def test_corpus_is_a_sequence():
    corpus = Corpus.from_documents([Document("a", "x"), Document("b", "y")])
    assert corpus[-1].id == "b"
    assert [document.id for document in corpus[:1]] == ["a"]
    assert len(corpus) == 2


@pytest.mark.parametrize("label", [None, "", []])
def test_read_takes_a_document_without_labels(label):
    assert Corpus.read([{"text": "x", "label": label}])[0].labels == ()


def test_read_refuses_a_missing_text_naming_line_and_likely_field(tmp_path):
    path = write(tmp_path / "corpus.jsonl", {"id": 1, "text": "x"}, {"id": 2, "body": "y"})
    assert failure(path) == (
        "corpus.jsonl line 2: field 'text' is missing (found: body, id). Name the field with --text_field body."
    )


def test_read_refuses_an_empty_text(tmp_path):
    path = write(tmp_path / "c.jsonl", {"text": "x"}, {"text": " "})
    assert failure(path) == "c.jsonl line 2: field 'text' is empty. Remove the record or give it a text."


def test_read_refuses_an_id_given_twice_naming_both_lines(tmp_path):
    path = write(tmp_path / "c.jsonl", {"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"})
    assert failure(path) == "c.jsonl line 3: id 'a' is taken by c.jsonl line 1. Make the ids unique."


def test_read_refuses_a_running_number_that_is_also_an_id():
    message = failure([{"id": "2", "text": "x"}, {"text": "y"}])
    assert message == ("the data given row 2: id '2' is taken by the data given row 1. Make the ids unique.")


def test_read_refuses_ids_groups_and_labels_of_another_kind():
    assert failure([{"id": 1.5, "text": "x"}]) == (
        "the data given row 1: field 'id' holds the float 1.5, not text or a whole number."
    )
    assert failure([{"text": "x", "label": {"a": 1}}]) == (
        "the data given row 1: field 'label' holds an object. A label is text, a whole number, true or false."
    )
    assert failure([{"text": "x"}], group_field="page") == (
        "the data given row 1: field 'page' is missing (found: text). Name another with --group_field."
    )


def test_read_passes_on_what_is_wrong_with_the_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Corpus.read(tmp_path / "none.jsonl")


def test_from_documents_refuses_none_an_empty_text_and_an_id_given_twice():
    with pytest.raises(CorpusError, match=r"^mine: holds no documents\. Give at least one\.$"):
        Corpus.from_documents([], "mine")
    with pytest.raises(CorpusError, match=r"^mine document 1: the text is empty\."):
        Corpus.from_documents([Document("a", " ")], "mine")
    with pytest.raises(CorpusError, match=r"^mine document 2: id 'a' is taken by mine document 1\."):
        Corpus.from_documents([Document("a", "x"), Document("a", "y")], "mine")


BASE = [Document("a", "x", ("l",)), Document("b", "y")]


def test_fingerprint_is_the_same_for_the_same_documents_whatever_else_they_hold():
    other = [Document("a", "x", ("l",), "group", {"year": 1}), Document("b", "y")]
    assert Corpus(BASE, "one").fingerprint == Corpus(other, "two").fingerprint
    assert Corpus(BASE).fingerprint.startswith("sha256:")


@pytest.mark.parametrize(
    "other",
    [
        BASE[::-1],
        BASE[:1],
        [Document("c", "x", ("l",)), BASE[1]],
        [Document("a", "z", ("l",)), BASE[1]],
        [Document("a", "x", ("m",)), BASE[1]],
        [Document("a", "x"), Document("b", "y", ("l",))],
    ],
)
def test_fingerprint_changes_with_order_ids_texts_and_labels(other):
    assert Corpus(BASE).fingerprint != Corpus(other).fingerprint


@pytest.mark.parametrize("other", ["A  Fine\tday", " a ﬁne day\n", "Ａ fine day", "a fine\u00a0day"])
def test_text_key_ignores_case_white_space_and_unicode_form(other):
    assert text_key(other) == text_key("a fine day")


def test_text_key_tells_different_texts_apart():
    assert text_key("a fine day") != text_key("a fine day.")
    assert text_key("Straße") == text_key("STRASSE")

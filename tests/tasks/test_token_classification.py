import json
import math
import re

import numpy as np
import pytest
import torch

from peft_rag.corpus import Document
from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError, DataError, RetrievalError
from peft_rag.fusion.base import Memory, Outputs, Split
from peft_rag.fusion.batching import collate
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.marginal import marginalised
from peft_rag.pooling import mean_pools
from peft_rag.records import Record
from peft_rag.tasks.token_classification import TokenClassification

TASK = TokenClassification(labels=("O", "B-a", "I-a", "B-b", "I-b"), words="spaces")


def record(**fields):
    return Record(fields, "data/a.jsonl", 7)


def read(**fields):
    return TokenClassification().read([record(**fields)])[0]


def example(text, *tags):
    return TASK.read([record(tokens=text.split(), tags=list(tags))])[0]


def test_tokens_and_tags_become_a_text_with_a_span_for_each_word():
    given = read(tokens=["New", "York", "!"], tags=["B-place", "I-place", "O"])
    assert given.text == "New York !"
    assert [given.text[begin:end] for begin, end in given.spans] == ["New", "York", "!"]
    assert given.labels == ("B-place", "I-place", "O")


def test_spans_of_characters_become_tags_of_words():
    spans = [{"start": 8, "end": 16, "label": "place"}, {"start": 18, "end": 21, "label": "person"}]
    given = read(text="I saw a New York, Ada.", spans=spans)
    assert given.labels == ("O", "O", "O", "B-place", "I-place", "O", "B-person", "O")
    answer = TASK.answer(given, given.labels)
    assert [{k: v for k, v in entity.items() if k != "text"} for entity in answer["entities"]] == spans
    assert [entity["text"] for entity in answer["entities"]] == ["New York", "Ada"]
    marked = read(text="नयी दिल्ली x² cafe\u0301", spans=[{"start": 0, "end": 10, "label": "place"}])
    assert [marked.text[begin:end] for begin, end in marked.spans] == ["नयी", "दिल्ली", "x²", "cafe\u0301"]
    assert marked.labels == ("B-place", "I-place", "O", "O")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "a.jsonl line 7: 2 tokens in 'tokens', but 1 tags in 'tags'"),
        ({"tokens": ["a", "b"], "tags": ["O", "X"]}, "tag 2 is 'X', which is not BIO"),
        ({"tokens": ["a"], "tags": ["I-x"]}, "no entity 'x' has begun. Write B-x"),
        ({"tokens": ["a", "b"], "tags": ["B-x", "I-y"]}, "tag 2 is 'I-y', but the tag before it is 'B-x'"),
        ({"tokens": [], "tags": []}, "holds an empty list, not a list of words"),
        ({"tokens": "a b", "tags": ["O"]}, "not a list of words"),
        ({"tokens": ["a b"], "tags": ["O"]}, "'a b' at place 1, which is no single word"),
        ({"tokens": ["a"]}, "field 'tags' is missing"),
        ({"text": "Ada", "spans": "x"}, "must be a list of entities"),
        ({"text": "Ada", "spans": [{"start": 0, "end": 9, "label": "x"}]}, "lies outside of its text of 3 characters"),
        ({"text": "Ada", "spans": [{"start": True, "end": 3, "label": "x"}]}, "lies outside of its text"),
        ({"text": "Ada", "spans": [{"start": 0, "end": 3}]}, "has no label"),
        ({"text": "Ada", "spans": [{"start": 1, "end": 3, "label": "x"}]}, "begins or ends inside of a word"),
        (
            {"text": "Ada B", "spans": [{"start": 0, "end": 5, "label": "x"}, {"start": 4, "end": 5, "label": "y"}]},
            "crosses another",
        ),
    ],
)
def test_bad_records_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(**fields)
    assert str(error.value).startswith("a.jsonl line 7")


def test_training_data_gives_both_tags_of_every_kind():
    examples = [read(tokens=["a"], tags=["B-z"]), read(tokens=["b"], tags=["O"])]
    assert TokenClassification().with_labels_of(examples).labels == ("O", "B-z", "I-z")
    with pytest.raises(DataError, match="has no entity in field 'tags'"):
        TokenClassification().with_labels_of(examples[1:])


def test_unknown_tag_names_the_record_and_the_nearest():
    with pytest.raises(DataError, match=re.escape("a.jsonl line 7: tag 'B-aa' does not occur")):
        TASK.targets([example("w1", "B-aa")])


def test_targets_hold_the_class_and_where_texts_begin():
    examples = [example("x y", "B-a", "I-a"), example("z", "O")]
    assert TASK.targets(examples).tolist() == [[1, 1], [2, 0], [0, 1]]


def test_first_token_of_each_word_is_pooled_and_a_dropped_word_is_judged_by_the_token_before():
    given = example("unbelievable \u200d end", "O", "O", "O")
    # [CLS] un ##believ ##able end [SEP]: the second word has no token
    spans = [None, (0, 2), (2, 8), (8, 12), (15, 18), None]
    assert TASK.pools(given, spans) == [[[1]], [[3]], [[4]]]
    # A variation selector is printable, and dropped all the same.
    ending = example("love \ufe0f", "O", "O")
    assert TASK.pools(ending, [None, (0, 4), None]) == [[[1]], [[1]]]


def test_a_word_beyond_the_window_is_an_error_that_says_what_to_do():
    given = example("aa bb cc", "O", "O", "O")
    with pytest.raises(DataError, match=r"word 3 of 3 \('cc'\) lies beyond the window.*--max_length"):
        TASK.pools(given, [None, (0, 2), (3, 5), None])


def test_mean_pools_equal_a_plain_loop():
    hidden = torch.randn(2, 4, 3, dtype=torch.float64)
    inputs, tokens = torch.tensor([0, 1, 1]), torch.tensor([[1, 2, 3], [0, -1, -1], [-1, -1, -1]])
    found = mean_pools(hidden, inputs, tokens)
    assert torch.allclose(found[0], (hidden[0, 1] + hidden[0, 2] + hidden[0, 3]) / 3, atol=1e-9)
    assert torch.equal(found[1], hidden[1, 0])
    assert torch.equal(found[2], torch.zeros(3, dtype=torch.float64))


def test_neighbours_of_words_equal_a_plain_loop_and_keep_away_from_forbidden_texts():
    """Two documents of 2 and 3 words, queries of 1 and 2; the second must not see the first document."""
    draw = torch.Generator().manual_seed(0)
    documents = [Document("0", "a b", ("B-a", "O")), Document("1", "c d e", ("O", "B-b", "I-b"))]
    remembered = [TASK.example_of(one, "corpus") for one in documents]
    known, asked = torch.randn(5, 4, generator=draw), torch.randn(3, 4, generator=draw)
    memory = Memory(TASK.targets(remembered), known, Decisions.on(TASK, remembered))
    queries = [example("x", "O"), example("y z", "O", "O")]
    own = torch.randn(3, 5, generator=draw).log_softmax(-1)
    outputs = Outputs(own, asked, decisions=Decisions.on(TASK, queries))
    split = Split(queries, None, [set(), {0}])
    fusion = KnnFusion(k=2, temperature=0.1, weight=0.4)
    fused = fusion.combine(outputs, split, memory, TASK)
    classes = [1, 0, 0, 3, 4]
    for row, allowed in enumerate([range(5), range(2, 5), range(2, 5)]):
        cosines = {
            place: float(asked[row] @ known[place] / asked[row].norm() / known[place].norm()) for place in allowed
        }
        nearest = sorted(allowed, key=lambda place: -cosines[place])[:2]
        raised = {place: math.exp(cosines[place] / 0.1) for place in nearest}
        for tag in range(5):
            votes = sum(raised[place] for place in nearest if classes[place] == tag) / sum(raised.values())
            expected = 0.4 * votes + 0.6 * math.exp(own[row, tag])
            assert math.exp(fused[row, tag]) == pytest.approx(expected, abs=1e-5)
    shown = fusion.shown(outputs, split, memory)
    assert [one.position for one in shown[1]] == [1]
    assert sum(one.weight for one in shown[1]) == pytest.approx(0.4)


def test_a_corpus_without_a_tag_for_each_word_cannot_vote():
    with pytest.raises(RetrievalError, match="has 1 labels for 2 words"):
        TASK.example_of(Document("d", "a b", ("B-a",)), "corpus 'c' document 'd'")


def test_each_word_is_marginalised_over_the_inputs_that_hold_it():
    """Two texts of 2 and 1 words, the first read with two neighbours, the second alone."""

    def one(*pools):
        ids = [1] * 4
        return {"input_ids": ids, "attention_mask": ids, "pooled_mask": ids, "pools": [[[pool]] for pool in pools]}

    rows = [{"passages": [one(1, 2), one(2, 3)], "scores": [0.3, 0.1], "read": [4, 5]}, one(1)]
    batch = collate(rows, 0)
    assert batch["pool_inputs"].tolist() == [0, 0, 1, 1, 2]
    assert batch["pool_tokens"].flatten().tolist() == [1, 2, 2, 3, 1]
    assert batch["passage_rows"].tolist() == [[0, 2], [1, 3], [4, -1]]
    log_probs = torch.randn(5, 3, dtype=torch.float64).log_softmax(-1)
    logits = batch["passage_scores"].double()
    fused = marginalised(log_probs, torch.zeros(5, 2), batch["passage_rows"], logits).log_probs
    share = math.exp(0.3) / (math.exp(0.3) + math.exp(0.1))
    for word in range(2):
        expected = share * log_probs[word].exp() + (1 - share) * log_probs[2 + word].exp()
        assert torch.allclose(fused[word].exp(), expected, atol=1e-6)
    assert torch.allclose(fused[2], log_probs[4])


def test_entities_shown_to_a_reader():
    assert TASK.shown_labels(Document("d", "Ada in New York", ("B-a", "O", "B-b", "I-b"))) == "Ada (a), New York (b)"
    assert TASK.shown_labels(Document("d", "so what", ("O", "O"))) == "nothing"
    assert TASK.shown_labels(Document("d", "Paris", ("city",))) == "city"


def test_decoding_gives_each_text_its_own_words():
    examples = [example("x y", "O", "O"), example("z", "O")]
    log_probs = torch.full((3, 5), 0.05).log()
    log_probs[0, 1] = log_probs[1, 2] = log_probs[2, 3] = math.log(0.8)
    said = TASK.decode(log_probs, examples)
    assert [labels for labels, _ in said] == [("B-a", "I-a"), ("B-b",)]
    assert [probability for _, probability in said] == pytest.approx([0.64, 0.8])


def test_unknown_way_to_cut_words_is_refused():
    with pytest.raises(ConfigError, match=r"task\.words is 'bytes'"):
        TokenClassification(words="bytes")


def test_settings_survive_json():
    assert TokenClassification.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK


def test_sums_belong_to_examples():
    decisions = Decisions([2, 1])
    assert decisions.sums(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]
    assert np.array_equal(decisions.owners, [0, 0, 1])

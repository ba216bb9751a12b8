import numpy as np
import pytest
import torch

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import READ, Outputs, Reader, Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_generation import TextGeneration

CORPUS = Corpus(
    [
        Document("d0", "w10 w11", ("a",)),
        Document("d1", "w20 w21 w22", ("a", "b")),
        Document("d2", "w30 w31 w32 w33"),
        Document("d3", "w40", ("b",)),
    ]
)


def found(*rows):
    """Neighbours of some queries, nearest first, padded to one length."""
    width = max(map(len, rows))
    positions = np.full((len(rows), width), -1, dtype=np.int64)
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for number, row in enumerate(rows):
        positions[number, : len(row)] = row
        scores[number, : len(row)] = 1 - 0.1 * np.arange(len(row))
    return Neighbours(positions, scores)


def read(tokenizer, text, neighbours, max_length=64, **options):
    """Return the tokens of one example, and those of them that are pooled over."""
    split = Split([Example("0", text)], found(neighbours))
    (row,) = ConcatFusion(**options).encode(split, CORPUS, Reader(tokenizer, max_length))
    assert len(row["input_ids"]) == len(row["attention_mask"]) == len(row["pooled_mask"]) <= max_length
    assert set(row["attention_mask"]) == {1}
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    return " ".join(tokens), " ".join(t for t, one in zip(tokens, row["pooled_mask"], strict=True) if one)


def test_neighbours_follow_the_input_nearest_first_with_their_labels_before_their_text(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1 w2", [3, 1, 2])
    assert tokens == "[CLS] w1 w2 [SEP] b : w40 a , b : w20 w21 w22 w30 w31 w32 w33 [SEP]"


def test_labels_are_left_out_when_they_are_not_to_be_shown(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1 w2", [3, 0], show_labels=False)
    assert tokens == "[CLS] w1 w2 [SEP] w40 w10 w11 [SEP]"


@pytest.mark.parametrize(
    ("kind", "pooled"), [("bert", "[CLS] w1 w2 [SEP]"), ("roberta", "[CLS] w1 w2 [SEP] [SEP]"), ("bare", "w1 w2")]
)
def test_pooled_mask_covers_exactly_the_segment_of_the_input(make_tokenizer, kind, pooled):
    tokens, seen = read(make_tokenizer(kind), "w1 w2", [0, 3])
    assert seen == pooled
    assert tokens.startswith(f"{pooled} a : w10 w11 b : w40")


def test_only_the_k_nearest_are_read(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1", [3, 0, 1], k=1)
    assert tokens == "[CLS] w1 [SEP] b : w40 [SEP]"


def test_a_passage_is_cut_to_its_tokens_at_the_end_and_the_labels_stay(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1", [2, 1], passage_tokens=5)
    assert tokens == "[CLS] w1 [SEP] w30 w31 w32 w33 a , b : w20 [SEP]"


SPECIAL_TOKENS = {"bert": 3, "roberta": 4, "bare": 0}
PASSAGES = ["b : w40", "a : w10 w11", "a , b : w20 w21 w22"]


@pytest.mark.parametrize("kind", SPECIAL_TOKENS)
@pytest.mark.parametrize("max_length", range(2, 25))
def test_farthest_neighbours_are_dropped_first_and_the_input_is_never_cut_before(make_tokenizer, kind, max_length):
    """A plain loop: take neighbours, nearest first, as long as input, specials and passages fit."""
    text = "w1 w2 w3 w4"
    room = max_length - 4 - SPECIAL_TOKENS[kind]
    chosen = []
    for passage in PASSAGES:
        if len(passage.split()) > room:
            break
        chosen.append(passage)
        room -= len(passage.split())

    tokenizer = make_tokenizer(kind)
    tokens, seen = read(tokenizer, text, [3, 0, 1], max_length)
    if not chosen:
        (alone,) = NoFusion().encode(Split([Example("0", text)]), None, Reader(tokenizer, max_length))
        assert tokens == " ".join(tokenizer.convert_ids_to_tokens(alone["input_ids"]))
        return
    words = [word for word in tokens.split() if word not in ("[CLS]", "[SEP]")]
    assert " ".join(words) == " ".join([text, *chosen])
    assert [word for word in seen.split() if word not in ("[CLS]", "[SEP]")] == text.split()


def test_nearer_neighbour_that_does_not_fit_is_not_replaced_by_a_farther_one(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1", [1, 3], max_length=4 + 3)
    assert tokens == "[CLS] w1 [SEP]"


def test_input_longer_than_everything_is_cut_and_reads_no_neighbour(make_tokenizer):
    tokens, seen = read(make_tokenizer(), " ".join(f"w{n}" for n in range(50)), [3], max_length=6)
    assert tokens == seen == "[CLS] w0 w1 w2 w3 [SEP]"


def test_without_neighbours_an_example_is_read_as_by_no_fusion(make_tokenizer):
    tokenizer = make_tokenizer()
    examples = [Example("0", "w1 w2"), Example("1", "w3")]
    rows = ConcatFusion().encode(Split(examples, found([], [3])), CORPUS, Reader(tokenizer, 32))
    alone = NoFusion().encode(Split(examples), None, Reader(tokenizer, 32))
    assert rows[0] == alone[0] | {"read": []}
    assert rows[1]["read"] == [3]
    assert rows[1] != alone[1]


def test_neighbour_of_nothing_the_tokenizer_knows_is_left_out(make_tokenizer):
    corpus = Corpus([Document("empty", "\u200b\u200b"), Document("d", "w9")])
    split = Split([Example("0", "w1"), Example("1", "w2")], found([0, 1], [0]))
    tokenizer = make_tokenizer()
    rows = ConcatFusion().encode(split, corpus, Reader(tokenizer, 32))
    assert [" ".join(tokenizer.convert_ids_to_tokens(row["input_ids"])) for row in rows] == [
        "[CLS] w1 [SEP] w9 [SEP]",
        "[CLS] w2 [SEP]",
    ]


def test_segments_are_told_apart_where_the_backbone_reads_them(make_tokenizer):
    split = Split([Example("0", "w1 w2")], found([3]))
    (row,) = ConcatFusion().encode(split, CORPUS, Reader(make_tokenizer(), 32))
    assert row["token_type_ids"] == [1 - one for one in row["pooled_mask"]]


@pytest.mark.parametrize("split", [Split([Example("0", "w1")]), None])
def test_encode_without_corpus_or_neighbours_says_what_to_pass(make_tokenizer, split):
    given = split or Split([Example("0", "w1")], found([0]))
    with pytest.raises(RetrievalError) as caught:
        ConcatFusion().encode(given, CORPUS if split else None, Reader(make_tokenizer(), 32))
    assert str(caught.value) == ("fusion 'concat' was given no neighbours. Pass the corpus it was trained with.")


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"k": 0}, "k of at least 1, got k=0. Use --fusion none for no neighbours."),
        ({"passage_tokens": 0}, "passage_tokens of at least 1, got passage_tokens=0."),
        ({"k": -1, "passage_tokens": 5}, "k of at least 1, got k=-1. Use --fusion none for no neighbours."),
    ],
)
def test_options_below_one_are_refused(options, wrong):
    with pytest.raises(ConfigError) as caught:
        ConcatFusion(**options)
    assert str(caught.value) == f"fusion 'concat' needs {wrong}"


def test_shown_are_the_neighbours_read_with_equal_weights_that_sum_to_one():
    split = Split([Example("0", "x"), Example("1", "y"), Example("2", "z")], found([3, 1, 0], [2], []))
    outputs = Outputs(torch.zeros(3, 2), torch.zeros(3, 4), [[3, 1], [2], []])
    rows = ConcatFusion(k=2).shown(outputs, split, None)
    assert [[one.position for one in row] for row in rows] == [[3, 1], [2], []]
    assert [[one.weight for one in row] for row in rows] == [[0.5, 0.5], [1.0], []]
    assert [one.score for one in rows[0]] == pytest.approx([1.0, 0.9])
    assert ConcatFusion(k=2).shown(outputs, Split(split.examples), None) == [[], [], []]


def test_needs_follow_from_k_and_survive_json():
    fusion = ConcatFusion(k=5, show_labels=False)
    assert (fusion.documents_needed, fusion.neighbours_wanted, fusion.reads_neighbours) == (5, 5, True)
    assert ConcatFusion.from_dict(fusion.to_dict()) == fusion


def test_the_closest_may_stand_last_and_is_still_the_last_to_be_dropped(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1", [3, 0, 1], order="best-last", max_length=12)
    assert tokens == "[CLS] w1 [SEP] a : w10 w11 b : w40 [SEP]"
    (row,) = ConcatFusion(order="best-last").encode(
        Split([Example("0", "w1")], found([3, 0])), CORPUS, Reader(make_tokenizer(), 32)
    )
    assert row["read"] == [3, 0]


def test_a_template_says_how_a_labelled_neighbour_is_written(make_tokenizer):
    tokens, _ = read(make_tokenizer(), "w1", [3, 2], template="{text} : {labels}")
    assert tokens == "[CLS] w1 [SEP] w40 : b w30 w31 w32 w33 [SEP]"
    with pytest.raises(ConfigError, match="Choose best-first or best-last"):
        ConcatFusion(order="worst")


@pytest.mark.parametrize("kind", ["bert", "bare"])
def test_neighbours_stand_before_the_input_where_nothing_after_it_is_seen(make_tokenizer, kind):
    tokenizer = make_tokenizer(kind)
    split = Split([Example("0", "w1 w2")], found([3, 0]))
    (row,) = ConcatFusion().encode(split, CORPUS, Reader(tokenizer, 64, causal=True))
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    pooled = [token for token, one in zip(tokens, row["pooled_mask"], strict=True) if one]
    begin, middle, end = ([], [], []) if kind == "bare" else (["[CLS]"], ["[SEP]"], ["[SEP]"])
    assert tokens == [*begin, *["b", ":", "w40", "a", ":", "w10", "w11"], *middle, "w1", "w2", *end]
    assert pooled == ["w1", "w2", *end]


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token a byte, so that what stands between passages has tokens of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(["<pad>", "</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize("order", ["best-first", "best-last"])
@pytest.mark.parametrize("max_length", range(14, 60))
def test_decoder_reads_the_closest_passages_that_fit_with_what_stands_between(bytes_tokenizer, order, max_length):
    """A plain loop: take passages, nearest first, while they fit with two line ends after each."""
    texts = ["w40", "w10 w11", "w20 w21 w22"]
    room, fit = max_length - len("w1 w2 w3"), []
    for text in texts:
        if len(text) + 2 > room:
            break
        fit.append(text)
        room -= len(text) + 2
    task = TextGeneration(target_length=2).with_tokenizer(bytes_tokenizer)
    reader = Reader(bytes_tokenizer, max_length, causal=True, task=task)
    split = Split([Example("0", "w1 w2 w3")], found([3, 0, 1]))
    (row,) = ConcatFusion(order=order, show_labels=False).encode(split, CORPUS, reader)
    shown = fit if order == "best-first" else fit[::-1]
    assert bytes_tokenizer.decode(row["input_ids"]) == "\n\n".join([*shown, "w1 w2 w3"])
    assert row[READ] == [3, 0, 1][: len(fit)]

import re

import pytest

from peft_rag.errors import DataError
from peft_rag.records import Record
from peft_rag.tasks.spans import marked_text, tokens_of


def read(marks=("head",), **fields):
    return marked_text(Record(fields, "data/a.jsonl", 7), "text", "tokens", marks)


@pytest.mark.parametrize(
    ("fields", "marked"),
    [
        ({"tokens": ["New", "York", "sleeps"], "head": [0, 1]}, "New York"),
        ({"tokens": ["New", "York", "sleeps"], "head": 2}, "sleeps"),
        ({"tokens": ["New", "\n", "York", ""], "head": [2]}, "York"),
        ({"text": "New York sleeps", "head": [4, 8]}, "York"),
        ({"text": "New York sleeps", "head": {"start": 0, "end": 8}}, "New York"),
        ({"text": "not this", "tokens": ["New", "York"], "head": [1]}, "York"),
    ],
)
def test_a_part_is_marked_by_positions_of_tokens_or_by_characters(fields, marked):
    text, (span,) = read(**fields)
    assert text[slice(*span)] == marked


def test_tokens_stand_in_for_a_text_only_where_there_is_none_or_parts_are_marked():
    assert read((), tokens=["a", "b"]) == ("a b", ())
    assert read((), tokens=["a", "b"], text="c") == ("c", ())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Ada"}, "field 'head' is missing (found: text)"),
        ({"text": "Ada", "head": None}, "field 'head' is missing"),
        ({"head": [0]}, "field 'text' is missing"),
        ({"text": "Ada", "head": 1}, "'head' is 1, which is no part of a text"),
        ({"text": "Ada", "head": [0, 1, 2]}, "'head' is [0, 1, 2], which is no part of a text"),
        ({"text": "Ada", "head": [False, True]}, "which is no part of a text"),
        ({"text": "Ada", "head": {"start": 0}}, "which is no part of a text"),
        ({"text": "Ada", "head": [0, 4]}, "'head' [0, 4] lies outside of its text of 3 characters"),
        ({"text": "Ada", "head": [-1, 2]}, "'head' [-1, 2] lies outside of its text"),
        ({"text": "Ada", "head": [2, 1]}, "'head' [2, 1] lies outside of its text"),
        ({"text": "Ada", "head": [1, 1]}, "'head' [1, 1] covers no word"),
        ({"text": "A da", "head": [1, 2]}, "'head' [1, 2] covers no word"),
        ({"tokens": ["a", "b"], "head": [2]}, "'head' [2] lies outside of its 2 tokens, which are counted from 0"),
        ({"tokens": ["a", "b"], "head": -1}, "'head' -1 lies outside of its 2 tokens"),
        ({"tokens": ["a", "b", "c"], "head": [0, 2]}, "'head' [0, 2] leaves tokens out"),
        ({"tokens": ["a"], "head": []}, "'head' is an empty list"),
        ({"tokens": ["a"], "head": "a"}, "'head' is 'a', which is no position of a token"),
        ({"tokens": ["a"], "head": {"start": 0, "end": 1}}, "which is no position of a token"),
        ({"tokens": ["a", "\xa0"], "head": 1}, "'head' 1 covers no word"),
        ({"tokens": ["\xa0"], "head": 0}, "field 'tokens' holds no words"),
        ({"tokens": ["a", 5], "head": 0}, "field 'tokens' holds 5 at place 2"),
        ({"tokens": "a b", "head": 0}, "not a list of words"),
    ],
)
def test_bad_marks_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(**fields)
    assert str(error.value).startswith("a.jsonl line 7")


def test_tokens_of_a_part_are_all_that_overlap_it():
    # [CLS] un ##believ ##able end [SEP]
    spans = [None, (0, 2), (2, 8), (8, 12), (13, 16), None]
    assert tokens_of((0, 12), "unbelievable end", spans, "x") == [1, 2, 3]
    assert tokens_of((13, 16), "unbelievable end", spans, "x") == [4]
    assert tokens_of((1, 14), "unbelievable end", spans, "x") == [1, 2, 3, 4]


def test_a_part_that_the_tokenizer_drops_is_judged_by_the_token_before():
    assert tokens_of((3, 4), "aa \u200d bb", [None, (0, 2), (5, 7), None], "x") == [1]
    assert tokens_of((0, 1), "\u200d bb", [None, (2, 4)], "x") == [0]


def test_a_part_beyond_the_window_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"a\.jsonl line 7: 'head' \('cc'\) lies beyond the window.*--max_length"):
        tokens_of((6, 8), "aa bb cc", [None, (0, 2), (3, 5), None], "a.jsonl line 7: 'head'")
    with pytest.raises(DataError, match="lies beyond the window"):  # a no-break space is no character to print
        tokens_of((6, 14), "aa bb New\xa0York", [None, (0, 2), (3, 5), None], "x")

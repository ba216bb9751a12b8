import torch

from peft_rag.fusion.base import Memory, Outputs, Reader, Split
from peft_rag.fusion.none import NoFusion
from peft_rag.tasks.base import Example


def test_encode_reads_each_text_alone_and_pools_over_all_of_it(make_tokenizer):
    tokenizer = make_tokenizer()
    split = Split([Example("0", "w1 w2"), Example("1", "w3 w4 w5 w6")])
    rows = NoFusion().encode(split, None, Reader(tokenizer, 16))
    assert [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in rows] == [
        ["[CLS]", "w1", "w2", "[SEP]"],
        ["[CLS]", "w3", "w4", "w5", "w6", "[SEP]"],
    ]
    for row in rows:
        assert row["pooled_mask"] == row["attention_mask"] == [1] * len(row["input_ids"])


def test_encode_cuts_a_text_that_is_too_long_and_only_that(make_tokenizer):
    tokenizer = make_tokenizer()
    split = Split([Example("0", "w1 w2 w3"), Example("1", "w4 w5 w6 w7")])
    rows = NoFusion().encode(split, None, Reader(tokenizer, 5))
    assert [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in rows] == [
        ["[CLS]", "w1", "w2", "w3", "[SEP]"],
        ["[CLS]", "w4", "w5", "w6", "[SEP]"],
    ]


def test_combine_and_fit_change_nothing_and_nothing_is_shown():
    fusion, split = NoFusion(), Split([Example("0", "x"), Example("1", "y")])
    outputs = Outputs(torch.randn(2, 3), torch.randn(2, 4))
    memory = Memory(torch.zeros(1, dtype=torch.long))
    assert fusion.combine(outputs, split, memory, None) is outputs.log_probs
    assert fusion.fit(outputs, split, memory, None, torch.zeros(2)) is fusion
    assert fusion.shown(outputs, split, memory) == [[], []]
    assert (fusion.neighbours_wanted, fusion.documents_needed) == (0, 0)
    assert (fusion.reads_neighbours, fusion.needs_labels, fusion.needs_features) == (False, False, False)
    assert NoFusion.from_dict(fusion.to_dict()) == fusion

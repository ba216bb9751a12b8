"""Questions whose contexts are retrieved."""

import json
import random

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.cli import main
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import DataError
from peft_rag.fusion.base import READ, Split
from peft_rag.fusion.batching import inputs_of
from peft_rag.fusion.contexts import ContextsFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.knowledge import Knowledge, find_for
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.open_contexts import best_within, shares, words_in
from peft_rag.tasks.question_answering import QuestionAnswering
from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.fusions import headless, word_tokenizer
from peft_rag.testing.retrievers import WordEncoder
from tests.conftest import FILLER, WORDS, write_jsonl
from tests.tasks.test_question_answering import one_softmax

TASK = QuestionAnswering(retrieved=True, context_words=12, overlap=2, max_answer_words=3)
A, B, C = Document("a", "w3 w4 w5"), Document("b", "w6 w7"), Document("c", "w8 w9 w10 w11")


def read(labelled=True, task=TASK, **fields):
    return task.read([Record({"question": "w1 w2", **fields}, "data/a.jsonl", 7)], labelled=labelled)[0]


def learned():
    return read(context="w6 w7", context_id="b", answers={"text": ["w7"], "answer_start": [3]})


def words_of(example):
    return [example.text[slice(*span)] for span in example.spans if span != (0, 0)]


def test_a_question_is_asked_without_its_context_and_opened_with_what_is_found():
    given = learned()
    asked = TASK.alone(given)
    assert (asked.text, words_of(asked), asked.passages) == ("w1 w2\n", [], ())
    opened = TASK.opened(given, [A, B], learn=False)
    assert opened.text == "w1 w2\nw3 w4 w5\n\nw6 w7"
    assert words_of(opened) == ["w3", "w4", "w5", "w6", "w7"]
    assert [(one.id, opened.text[one.begin : one.end]) for one in opened.passages] == [("a", A.text), ("b", B.text)]
    assert TASK.targets([opened]).tolist() == [[5, 5]]
    (said,) = TASK.decode(sharp((5, 5)), [opened])
    assert TASK.answer(opened, said[0]) == {
        "answer": "w7",
        "start": 3,
        "end": 5,
        "passage": {"id": "b", "text": "w6 w7"},
    }
    assert TASK.answer(opened, ()) == {"answer": "", "start": None, "end": None, "passage": None}


def sharp(*spans, width=13):
    probabilities = torch.full((len(spans), 2, width), 0.1 / (width - 1))
    for row, span in enumerate(spans):
        for side in (0, 1):
            probabilities[row, side, span[side]] = 0.9
    return probabilities.log()


def test_the_answer_is_marked_in_the_given_context_alone():
    given = learned()
    beside = TASK.opened(given, [C, A], learn=True)
    assert [(one.id, one.found) for one in beside.passages] == [("b", False), ("c", True)]
    assert words_of(beside)[TASK.targets([beside])[0, 0] - 1] == "w7"
    same = TASK.opened(given, [Document("x", "W6  w7"), A], learn=True)  # the same text under another name
    assert [one.id for one in same.passages] == ["b", "a"]
    found = TASK.opened(given, [A, B], learn=True)
    assert [(one.id, one.found) for one in found.passages] == [("b", True), ("a", True)]


def test_the_answer_is_found_in_its_context_in_another_writing():
    for text in ("W6  w7", "w6\n w7", "w6 w7"):
        beside = TASK.opened(learned(), [A, Document("x", text)], learn=False)
        assert words_of(beside)[TASK.targets([beside])[0, 0] - 1] == "w7"


def test_the_answer_is_marked_in_the_piece_that_was_cut_from_its_context():
    given = read(context="w6 w7 w8 w6 w7", context_id="b", answers={"text": ["w7"], "answer_start": [12]})

    def piece(number, text, start):
        return Document(f"b#{number}", text, metadata={"document": "b", "start": start, "end": start + len(text)})

    first, second = piece(1, "w6 w7 w8", 0), piece(2, "w8 w6 w7", 6)
    beside = TASK.opened(given, [first, A, second], learn=False)
    assert beside.labels == (f"w7 @{len('w6 w7 w8') + 2 + len(A.text) + 2 + 6}",)
    assert TASK.opened(given, [first, A], learn=False).labels == ("w7 @3",)  # the same words at another place
    assert TASK.opened(given, [piece(3, "w8 w6", 6), A], learn=False).labels == ("w7 @-1",)
    learned_from = TASK.opened(given, [first, A, second], learn=True)
    assert [one.id for one in learned_from.passages] == ["b", "a"]
    assert learned_from.labels == ("w7 @12",)


def test_an_answer_whose_context_is_not_found_is_not_learned_but_still_right():
    opened = TASK.opened(learned(), [A, Document("d", "w7 w20")], learn=False)
    assert TASK.targets([opened]).tolist() == [[-1, -1]]
    right = TASK.evaluate(sharp((4, 4)), TASK.targets([opened]), examples=[opened], resamples=0)
    assert right["exact_match"].value == 1
    bare = read(answers={"text": ["w7", "w7"]})
    assert bare.labels == ("w7 @-1",)
    assert TASK.targets([TASK.opened(bare, [B], learn=False)]).tolist() == [[-1, -1]]
    with pytest.raises(DataError, match=r"must hold texts"):
        read(answers={"text": "w7"})
    with pytest.raises(DataError, match="no question of the training data names the context"):
        TASK.with_labels_of([bare])


def test_predicting_looks_at_no_context():
    assert read(labelled=False, context_id="nowhere", context="w6") == read(labelled=False)
    assert TASK.as_example("w1 w2", "0").text == "w1 w2\n"


@pytest.mark.parametrize("seed", range(8))
def test_best_answer_lies_within_one_passage_as_a_plain_loop_finds_it(seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(2, 13, generator=generator).log_softmax(-1)
    log_probs[:, 0] -= 2 * (seed % 3)
    owned = [range(0, 4), range(4, 4), range(4, 9), range(9, 11)]
    best, score = (0, 0), float(log_probs[0, 0] + log_probs[1, 0])
    for words in owned:
        for first in words:
            for last in range(first, min(first + 3, words.stop)):
                found = float(log_probs[0, 1 + first] + log_probs[1, 1 + last])
                if found > score:
                    best, score = (1 + first, 1 + last), found
    assert best_within(log_probs, owned, 3) == best


def model(k=2, max_length=32, backbone="bert"):
    torch.manual_seed(0)
    knowledge = Knowledge(Corpus([A, B, C]), ExactRetriever(WordEncoder()), "exact", "words")
    tiny = as_backbone(headless(TINY_BACKBONES[backbone]()), word_tokenizer(), "tiny")
    made = RetrievalAugmentedModel(tiny, TASK, ContextsFusion(k=k), knowledge, max_length=max_length)
    made.progress_bars = False
    made.attach("lora")
    return made.eval()


def split_of(*found):
    given = [TASK.opened(learned(), [(A, B, C)[place] for place, _ in row], learn=False) for row in found]
    return Split(given, Neighbours.of_rows(found))


@pytest.mark.parametrize("backbone", ["bert", "gpt2"])
def test_one_softmax_runs_over_the_words_of_all_windows_of_all_passages(backbone):
    made = model(max_length=8, backbone=backbone)
    split = split_of([(2, 0.9), (1, 0.5)])
    (row,) = made.encode(split)
    assert row[READ] == [2, 1]
    texts = [made.tokenizer.decode(one["input_ids"]).split()[1:-1] for one in inputs_of(row)]
    assert [words[:2] for words in texts] == [["w1", "w2"]] * len(texts)
    assert {word for words in texts for word in words[2:]} == {"w8", "w9", "w10", "w11", "w6", "w7"}
    assert not any({"w11", "w6"} <= set(words) for words in texts)
    expected = one_softmax(made, row)
    assert len(expected[0]) == 1 + 6
    found = made.outputs(split).log_probs[0].tolist()
    for side in (0, 1):
        assert found[side][:7] == pytest.approx(expected[side], abs=1e-4)


def test_words_of_a_passage_that_is_left_out_keep_their_places_and_have_no_part():
    made = model()
    both, one = split_of([(0, 0.9), (1, 0.5)]), split_of([(1, 0.5)])
    without_a = Split(both.examples, Neighbours.of_rows([[(1, 0.5)]]))
    given = made.outputs(without_a).log_probs[0]
    assert (given[:, 1:4] == -100).all()
    assert torch.allclose(given[:, 4:6], made.outputs(one).log_probs[0, :, 1:3], atol=1e-5)
    assert torch.allclose(given[:, 0], made.outputs(one).log_probs[0, :, 0], atol=1e-5)
    alone = made.outputs(both, fusion=NoFusion()).log_probs[0]
    assert torch.allclose(alone[:, 0], torch.zeros(2), atol=1e-6)
    nothing = made.outputs(Split(both.examples, Neighbours.of_rows([[]]))).log_probs[0]
    assert torch.allclose(alone, nothing, atol=1e-6)


def test_weights_are_the_mass_on_each_passage():
    made = model()
    split = split_of([(0, 0.9), (1, 0.5)])
    outputs = made.outputs(split)
    probabilities = outputs.log_probs[0].exp()
    by_loop = [
        sum(float(probabilities[side, 1 + word]) for side in (0, 1) for word in words) / 2
        for words in (range(0, 3), range(3, 5))
    ]
    assert shares(split.examples[0], outputs.log_probs[0]) == pytest.approx(by_loop)
    assert [one.weight for one in made.fusion.shown(outputs, split, None)[0]] == pytest.approx(by_loop)
    assert words_in(split.examples[0], [(6, 8)]) == [range(0, 1), range(0)]


def test_the_passage_that_holds_the_answer_may_be_found():
    made = model(k=3)
    split = find_for(TASK, made.knowledge, [learned()], 3, name="train", learn=True, exclude_duplicates=True)
    assert {one.id for one in split.examples[0].passages} == {"a", "b", "c"}


def metals(count, seed, begin=0):
    """Return documents that each name a town and its metal, and a question for each."""
    draw = random.Random(seed)
    documents, questions = [], []
    rivers = [f"{one} {two}" for one in WORDS["river"] for two in WORDS["fruit"]]
    for number in range(begin, begin + count):
        metal = draw.choice(WORDS["metal"])
        text = f"{rivers[number]} {draw.choice(FILLER)} {metal} {draw.choice(FILLER)}"
        documents.append({"id": f"d{number}", "text": text})
        about = {"text": [metal], "answer_start": [text.index(metal)]}
        questions.append({"id": f"q{number}", "question": rivers[number], "context_id": f"d{number}", "answers": about})
    return documents, questions


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
def test_command_line_answers_from_passages_and_names_the_one_that_says_so(tmp_path, tiny_bert, capsys, monkeypatch):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    documents, questions = metals(36, 1)
    corpus = write_jsonl(tmp_path / "corpus.jsonl", documents)
    train = write_jsonl(tmp_path / "train.jsonl", questions[:28])
    test = write_jsonl(tmp_path / "test.jsonl", questions[28:])
    out = tmp_path / "out"
    flags = [f"--train={train}", f"--validation={test}", f"--test={test}", f"--corpus={corpus}", "--fallback=false"]
    flags += ["--task=question-answering", "--task.retrieved=true", f"--task.contexts={corpus}"]
    flags += ["--task.context_words=24", f"--backbone={tiny_bert}", f"--encoder={tiny_bert}", "--retriever=bm25"]
    flags += ["--max_length=32", "--method=full", "--learning_rate=1e-2", "--num_train_epochs=8", "--disable_tqdm"]
    fusion = ["--fusion=contexts", "--fusion.k=2"]

    for wrong, message in (
        (["--fusion=concat"], "Use --fusion contexts, or leave --task.retrieved out"),
        ([*fusion, "--task.retrieved=false"], "question-answering with --task.retrieved true does"),
        ([*fusion, "--retrieval_dropout=0.5"], "without them there is nothing to learn"),
    ):
        named = {flag.partition("=")[0] for flag in wrong}
        own = [flag for flag in flags if flag.partition("=")[0] not in named]
        assert main(["train", *own, *wrong, f"--output={tmp_path / 'wrong'}"]) == 2
        assert message in capsys.readouterr().err
    own = [flag for flag in flags if not flag.startswith("--corpus")]
    assert main(["train", *own, *fusion, f"--output={tmp_path / 'wrong'}"]) == 2
    assert "no corpus of such is named" in capsys.readouterr().err

    assert main(["train", *flags, *fusion, f"--output={out}"]) == 0
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["arms"]["with_retrieval"]["f1"]["value"] > 0.8
    assert measured["arms"]["without_retrieval"]["f1"]["value"] == 0
    assert "of 8 test examples (100.0%) find a document that their record names" in capsys.readouterr().out

    assert main(["evaluate", str(out), "--data", test, "--output", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["f1"]["value"] == pytest.approx(measured["test"]["f1"])
    capsys.readouterr()
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"question": one["question"]} for one in questions[28:]])
    assert main(["predict", str(out), asked, "--explain"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [one["question"] for one in questions[28:]]
    texts = {document["id"]: document["text"] for document in documents}
    right = 0
    for line, question in zip(lines, questions[28:], strict=True):
        named = line["passage"]
        assert named["text"] == texts[named["id"]]
        assert named["text"][line["start"] : line["end"]] == line["answer"]
        assert [one["id"] for one in line["neighbours"]].count(named["id"]) == 1
        assert sum(one["weight"] for one in line["neighbours"]) <= 1.001
        assert line["without_retrieval"]["answer"] == ""
        if named["id"] == question["context_id"]:
            right += 1
            effects = {one["id"]: one["effect"] for one in line["neighbours"]}
            assert effects[named["id"]] == max(effects.values())
    assert right / len(lines) >= 0.75

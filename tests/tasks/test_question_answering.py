import itertools
import json
import math
import random
import re

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.cli import main
from peft_rag.config import from_mapping, read_yaml
from peft_rag.corpus import Corpus, Document
from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError, CorpusError, DataError, RetrievalError
from peft_rag.evaluation.answers import exact_matches, token_f1s
from peft_rag.fusion.base import MORE, POOLS, READ, Reader, Split, encode_inputs
from peft_rag.fusion.batching import collate, inputs_of, tokens_in
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.passages import Passages
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.job import read_data
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.base import Example
from peft_rag.tasks.question_answering import NO_WORD, QuestionAnswering
from peft_rag.tasks.span_head import SpanHead, best_spans, mean_words
from peft_rag.tasks.windows import windows
from peft_rag.testing.backbones import TINY_BACKBONES
from peft_rag.testing.fusions import headless, word_tokenizer
from peft_rag.testing.retrievers import WordEncoder
from tests.conftest import FILLER, WORDS, write_jsonl

TASK = QuestionAnswering(context_words=6, max_answer_words=2)
NOTHING = {"text": [], "answer_start": []}


def answers(*pairs):
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def record(**fields):
    return Record({"question": "who?", "context": "Ada and Bob.", "answers": NOTHING} | fields, "data/a.jsonl", 7)


def read(task=TASK, **fields):
    return task.read([record(**fields)])[0]


def sharp(*spans, width=7):
    """Return log-probabilities that put 0.9 on the first and the last position of each span."""
    probabilities = torch.full((len(spans), 2, width), 0.1 / (width - 1))
    for row, span in enumerate(spans):
        for side in (0, 1):
            probabilities[row, side, span[side]] = 0.9
    return probabilities.log()


def test_question_and_context_become_one_text_with_a_span_for_each_word():
    given = read(question=" who\nis it? ", answers=answers(("Bob", 8), ("Bob.", 8), ("Bob", 8)))
    assert given.text == "who is it?\nAda and Bob."
    words = [given.text[begin:end] for begin, end in given.spans if (begin, end) != NO_WORD]
    assert words == ["Ada", "and", "Bob", "."]
    assert len(given.spans) == 6
    assert given.labels == ("Bob @8", "Bob. @8")
    assert read().labels == ()
    mixed = read(context="in 東京 x²-1")
    assert [mixed.text[begin:end] for begin, end in mixed.spans] == ["in", "東", "京", "x²", "-", "1"]
    marks = read(context="हिन्दी की भाषा ภาษาที่ cafe\u0301.")
    assert [marks.text[begin:end] for begin, end in marks.spans] == [
        "हिन्दी", "की", "भाषा", "ภาษาที่", "cafe\u0301", ".",
    ]  # fmt: skip


def test_context_is_looked_up_by_its_id(tmp_path):
    path = write_jsonl(tmp_path / "contexts.jsonl", [{"id": "p1", "text": "Ada and Bob."}, {"id": 2, "text": "Eve."}])
    task = QuestionAnswering(contexts=path, context_words=6)
    by_id = [record(context=None, context_id=name) for name in ("p1", 2)]
    assert [one.text for one in task.read(by_id)] == ["who?\nAda and Bob.", "who?\nEve."]
    with pytest.raises(DataError, match=r"line 7: context 'p2' is not among the 2 of .*Did you mean"):
        task.read([record(context=None, context_id="p2")])
    with pytest.raises(
        DataError, match=r"context 'p1' in field 'context_id', but holds none in 'context'.*contexts FILE"
    ):
        TASK.read([record(context=None, context_id="p1")])
    write_jsonl(tmp_path / "contexts.jsonl", [{"id": "p1"}])
    with pytest.raises(CorpusError, match=r"contexts.jsonl line 1: field 'text' is missing"):
        QuestionAnswering(contexts=path).read(by_id)


def test_contexts_are_read_once_however_often_records_are(tmp_path):
    path = tmp_path / "contexts.jsonl"
    write_jsonl(path, [{"id": "1", "text": "w1 w2"}])
    task = QuestionAnswering(contexts=str(path), context_words=6)
    asked = {"question": "w3", "context_id": "1", "answers": {"text": ["w1"], "answer_start": [0]}}
    (first,) = task.read([Record(asked, "data/a.jsonl", 1)])
    path.unlink()
    assert task.read([Record(asked, "data/a.jsonl", 1)]) == [first]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": " "}, "a.jsonl line 7: field 'question' is empty"),
        ({"question": None}, "field 'question' is null"),
        ({"context": ""}, "field 'context' is empty"),
        ({"answers": None}, "must hold as many texts as starts"),
        ({"answers": {"text": ["Ada"]}}, "must hold as many texts as starts"),
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "must hold as many texts as starts"),
        (
            {"answers": answers(("Bob", 0))},
            "the answer 'Bob' does not stand at character 0 of its context, but first stan",
        ),
        ({"answers": answers(("Bob", 0))}, "stands at 8"),
        ({"answers": answers(("Eve", 0))}, "but stands nowhere in it"),
        ({"answers": answers(("Ada", -12))}, "does not stand at character -12"),
        ({"answers": answers(("Ada", False))}, "does not stand at character False"),
        ({"answers": answers((" ", 3))}, "the answer ' ' is no text"),
        ({"answers": answers((3, 3))}, "the answer 3 is no text"),
    ],
)
def test_bad_records_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(**fields)
    assert str(error.value).startswith("a.jsonl line 7: ")


def test_records_without_context_or_id_name_the_field():
    with pytest.raises(DataError, match=r"line 7: field 'context' is missing .*--task.context_field"):
        TASK.read([Record({"question": "who?"}, "data/a.jsonl", 7)], labelled=False)


@pytest.mark.parametrize("name", ["context_words", "max_answer_words"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=rf"task\.{name} is 0; it must be at least 1"):
        QuestionAnswering(**{name: 0})


def test_targets_are_positions_of_words_and_an_answer_that_is_not_read_has_none():
    context = "one two-three four five six"  # seven words, of which six are read
    given = [
        read(),
        read(context=context, answers=answers(("two-three", 4))),
        read(context=context, answers=answers(("wo-", 5))),
        read(context=context, answers=answers(("six", 24))),
        read(context=context, answers=answers(("five six", 19), ("one", 0))),
    ]
    assert TASK.targets(given).tolist() == [[0, 0], [2, 4], [2, 3], [-1, -1], [-1, -1]]
    assert TASK.notes(given) == [
        "2 of 4 answers beyond the first 6 words of a context, counted as wrong and not learned from (raise "
        "--task.context_words), the first at a.jsonl line 7",
        "1 of 4 answers that are not whole words, learned as the words they are in, the first at a.jsonl line 7",
    ]
    assert TASK.notes(given[:2]) == []


def test_loss_and_likelihood_equal_a_plain_loop_and_leave_out_what_is_not_read():
    log_probs = torch.randn(4, 2, 7).log_softmax(-1)
    targets = torch.tensor([[0, 0], [2, 4], [-1, -1], [6, 6]])
    lost = [-float(log_probs[row, side, targets[row, side]]) for row in (0, 1, 3) for side in (0, 1)]
    assert float(TASK.loss(log_probs, targets)) == pytest.approx(sum(lost) / 6, abs=1e-6)
    likely = TASK.log_likelihood(log_probs, targets)
    assert likely.tolist() == pytest.approx(
        [-lost[0] - lost[1], -lost[2] - lost[3], -200.0, -lost[4] - lost[5]], abs=1e-5
    )
    assert float(TASK.loss(log_probs[2:3], targets[2:3])) == 0


def best_by_loops(begins, ends, words, longest):
    best, chosen = begins[0] + ends[0], (0, 0)
    for first in range(1, words + 1):
        for last in range(first, min(first + longest, words + 1)):
            if begins[first] + ends[last] > best:
                best, chosen = begins[first] + ends[last], (first, last)
    return chosen


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_best_spans_equal_a_plain_loop(longest):
    draw = torch.Generator().manual_seed(longest)
    log_probs = (3 * torch.randn(150, 2, 13, generator=draw)).log_softmax(-1)
    words = torch.randint(1, 13, (150,), generator=draw)
    found = best_spans(log_probs, words, longest)
    wanted = [best_by_loops(*log_probs[row].tolist(), int(words[row]), longest) for row in range(150)]
    assert found.tolist() == [list(span) for span in wanted]
    assert {span == (0, 0) for span in wanted} == {True, False}


def test_head_equals_a_plain_loop_and_words_that_are_missing_take_no_part():
    states = torch.randn(2, 3, 4)
    states[1, 2] = 0
    head = SpanHead(4).requires_grad_(False)
    logits = head(states)
    for row, words in ((0, 3), (1, 2)):
        mean = sum(states[row, word] for word in range(words)) / words
        assert torch.allclose(mean_words(states)[row], mean)
        for side in (0, 1):
            for word in range(words):
                wanted = head.word.weight[side] @ states[row, word] + head.word.bias[side]
                assert float(logits[row, side, 1 + word]) == pytest.approx(float(wanted), abs=1e-6)
            wanted = head.nowhere.weight[side] @ mean + head.nowhere.bias[side]
            assert float(logits[row, side, 0]) == pytest.approx(float(wanted), abs=1e-6)
    given = QuestionAnswering(context_words=3).log_probs(logits)
    assert torch.allclose(given.exp().sum(-1), torch.ones(2, 2))
    assert given[1, :, 3].tolist() == [-100.0, -100.0]


def test_answers_decode_to_their_text_and_characters_and_nothing_to_the_empty_answer():
    given = [read(), read(context="The  Ada, Bob"), read(context="Eve")]
    said = TASK.decode(sharp((2, 3), (0, 0), (1, 1)), given)
    assert [labels for labels, _ in said] == [("and Bob @4",), (), ("Eve @0",)]
    assert [probability for _, probability in said] == pytest.approx([0.81] * 3)
    assert TASK.answer(given[0], said[0][0]) == {"answer": "and Bob", "start": 4, "end": 11}
    assert TASK.answer(given[1], ()) == {"answer": "", "start": None, "end": None}


def test_scores_are_squads_of_the_answers_texts():
    """Three questions: one answered in part, one rightly not, one with two right answers."""
    given = [
        read(answers=answers(("Ada and Bob", 0))),
        read(),
        read(context="the Eve is", answers=answers(("is", 8), ("Eve", 4))),
    ]
    scores = TASK.evaluate(sharp((1, 2), (0, 0), (1, 2)), TASK.targets(given), examples=given, resamples=0)
    texts, right = ["Ada and", "", "the Eve"], [["Ada and Bob"], [], ["is", "Eve"]]
    assert scores["exact_match"].value == pytest.approx(exact_matches(texts, right).mean()) == pytest.approx(2 / 3)
    assert scores["f1"].value == pytest.approx(token_f1s(texts, right).mean()) == pytest.approx((0.8 + 1 + 1) / 3)
    with pytest.raises(ValueError, match="1 answers, but 0 examples"):
        TASK.evaluate(sharp((1, 1)), torch.zeros(1, 2, dtype=torch.long))


def test_each_word_is_judged_by_its_last_token_and_a_dropped_one_by_the_token_before():
    given = read(context="unbelievable \u200d end")
    begin = len("who?\n")
    spans = [None, (0, 3), (3, 4), *[(begin + a, begin + b) for a, b in [(0, 2), (2, 8), (8, 12), (15, 18)]], None]
    assert TASK.pools(given, spans) == [[[5], [5], [6], [], [], []]]


@pytest.mark.parametrize("overlap", [0, 1, 4, 99])
def test_windows_own_every_word_once_and_each_where_it_has_most_around(overlap):
    text = "q: " + " ".join(f"w{number}" for number in range(37))
    words = [match.span() for match in re.finditer(r"w\d+", text)]
    limit = 30

    found = windows(text, 3, words, overlap, lambda piece: None if len(piece) <= limit else limit)
    assert [word for one in found for word in one.owned] == list(range(37))
    assert len(found) > 4
    for one in found:
        assert one.first <= one.owned.start
        assert one.owned.stop <= one.last
        assert 3 + words[one.last - 1][1] - words[one.first][0] <= limit
    for one, other in itertools.pairwise(found):
        shared = one.last - other.first
        assert 0 <= shared <= overlap
        assert abs((one.last - one.owned.stop) - (other.owned.start - other.first)) <= 1


def test_a_word_longer_than_a_window_is_judged_there_and_no_room_gives_no_window():
    text = "q: aa bbbbbbbbbb cc"
    words = [(3, 5), (6, 16), (17, 19)]
    reach = lambda piece: None if len(piece) <= 8 else 8  # noqa: E731
    assert [one.owned for one in windows(text, 3, words, 1, reach)] == [range(1), range(1, 2), range(2, 3)]
    assert windows(text, 3, words, 1, lambda piece: 2) == []


def reader(task, max_length=12):
    return Reader(word_tokenizer(), max_length, task=task)


def test_long_context_is_read_in_windows_whose_pools_are_its_words():
    task = QuestionAnswering(context_words=24, overlap=2)
    given = read(task, question="w1 w2", context=" ".join(f"w{3 + number}" for number in range(20)))
    (row,) = encode_inputs(Split([given]), reader(task))
    inputs = inputs_of(row)
    assert len(inputs) == 1 + len(row[MORE]) == 3
    assert all(len(one["input_ids"]) <= 12 for one in inputs)
    assert tokens_in(row) == sum(len(one["input_ids"]) for one in inputs)
    judged = [one["input_ids"][pool[0]] if pool else None for one in inputs for pool in one[POOLS][0]]
    assert judged == [*range(4 + 3, 4 + 23), *[None] * 4]
    assert collate([row, row], 0)["pool_inputs"].tolist() == [
        *[0] * 7,
        *[1] * 6,
        *[2] * 11,
        *[3] * 7,
        *[4] * 6,
        *[5] * 11,
    ]


def test_question_that_fills_the_window_is_an_error_that_says_what_to_do():
    given = read(QuestionAnswering(), question="w1 " * 20, context="w2 w3")
    with pytest.raises(DataError, match=r"a.jsonl line 7: the question leaves no room .* Raise --max_length"):
        encode_inputs(Split([given]), reader(QuestionAnswering()))


def model(task, fusion=None, max_length=32, backbone="bert"):
    torch.manual_seed(0)
    corpus = Corpus([Document(f"d{n}", f"w{n} w{n + 1}") for n in range(20, 26)])
    knowledge = Knowledge(corpus, ExactRetriever(WordEncoder()), "exact", "words")
    tiny = as_backbone(headless(TINY_BACKBONES[backbone]()), word_tokenizer(), "tiny")
    made = RetrievalAugmentedModel(tiny, task, fusion, knowledge, max_length=max_length)
    made.progress_bars = False
    made.attach("lora")
    return made.eval()


def one_softmax(made, row):
    """Return log p of no answer and of each word as first and as last, over all inputs of an encoded example."""
    states = []
    for one in inputs_of(row):
        batch = {name: torch.tensor([one[name]]) for name in ("input_ids", "attention_mask")}
        hidden = made.backbone(**batch).last_hidden_state[0].detach()
        states += [hidden[pool[0]] for pool in one[POOLS][0] if pool]
    scaled = [state / state.norm() * math.sqrt(32) for state in states]
    head, sides = made.head.requires_grad_(False), []
    for side in (0, 1):
        logits = [float(head.nowhere.weight[side] @ (sum(scaled) / len(scaled)) + head.nowhere.bias[side])]
        logits += [float(head.word.weight[side] @ state + head.word.bias[side]) for state in scaled]
        total = math.log(sum(math.exp(logit) for logit in logits))
        sides.append([logit - total for logit in logits])
    return sides


def test_answer_from_windows_equals_one_softmax_over_all_their_words():
    task = QuestionAnswering(context_words=24, overlap=4)
    given = read(task, question="w1 w2", context=" ".join(f"w{3 + number % 30}" for number in range(23)))
    made = model(task, max_length=16)
    rows = made.encode(Split([given]))
    expected = one_softmax(made, rows[0])
    assert len(expected[0]) == 1 + 23
    found = made.outputs(Split([given])).log_probs[0].tolist()
    for side in (0, 1):
        assert found[side] == pytest.approx([*expected[side], -100.0], abs=1e-4)


def test_what_is_kept_of_a_question_is_one_vector_and_answers_are_read_again():
    task = QuestionAnswering(context_words=24)
    given = read(task, question="w1", context="w2 w3", answers=answers(("w2", 0)))
    made = model(task)
    outputs = made.outputs(Split([given]))
    assert outputs.features.shape == (1, 32)
    torch.nn.init.zeros_(made.head.word.weight)
    assert torch.equal(made.judge(outputs, Split([given])).log_probs, made.outputs(Split([given])).log_probs)


@pytest.mark.parametrize("fusion", [ConcatFusion(k=2), MarginalFusion(k=2)])
@pytest.mark.parametrize("backbone", ["bert", "gpt2"])
def test_neighbours_are_read_beside_a_context_that_is_given_and_not_beside_one_in_windows(fusion, backbone):
    task = QuestionAnswering(context_words=24, overlap=2)
    short = read(task, question="w1", context="w2 w3", answers=answers(("w2", 0)))
    long = read(task, question="w1", context=" ".join(f"w{number}" for number in range(2, 24)), answers=NOTHING)
    made = model(task, fusion, max_length=20, backbone=backbone)
    split = Split([short, long], Neighbours.of_rows([[(0, 0.9), (3, 0.4)]] * 2))
    rows = made.encode(split)
    assert [row[READ] for row in rows] == [[0, 3], []]
    assert len(rows[1][MORE]) == 1
    batch = made.collate(rows)
    given = made(**batch)
    assert given["log_probs"].shape == (2, 2, 25)
    assert torch.allclose(given["log_probs"].exp().sum(-1), torch.ones(2, 2), atol=1e-5)
    given["loss"].backward()
    alone = made.outputs(split.of([1])).log_probs
    assert torch.allclose(given["log_probs"][1], alone[0], atol=1e-4)


def test_context_in_windows_reads_no_neighbour_though_its_first_window_leaves_room():
    task = QuestionAnswering(context_words=24, overlap=2)
    long = read(task, question="w1", context=" ".join(f"w{number}" for number in range(2, 24)))
    (first,) = encode_inputs(Split([long]), reader(task))
    room = {name: values[:6] for name, values in first.items() if name != MORE} | {MORE: first[MORE]}
    passages = Passages(reader(task), Corpus([Document("0", "w40")]), 8, "{text}", show_labels=False)
    assert passages.beside(long, room, [0]) == room | {READ: []}


def test_neighbours_behind_an_answer_are_explained():
    task = QuestionAnswering(context_words=24)
    given = read(task, question="w20", context="w21 w3", answers=answers(("w21", 0)))
    (said,) = model(task, ConcatFusion(k=2)).predict([given], explain=True)
    assert len(said.neighbours) == 2
    assert all(math.isfinite(one.effect) for one in said.neighbours)
    assert said.without_retrieval is not None


def test_fusion_that_reads_an_input_in_one_piece_says_so():
    task = QuestionAnswering(context_words=24, overlap=2)
    long = read(task, question="w1", context=" ".join(f"w{number}" for number in range(2, 24)))
    made = model(task, ProjectorFusion(k=1), max_length=20)
    with pytest.raises(ConfigError, match=r"a.jsonl line 7: has more than .* reads an input in one piece"):
        made.encode(Split([long], Neighbours.of_rows([[(0, 0.9)]])))


def test_documents_cannot_vote():
    assert not TASK.votes
    with pytest.raises(RetrievalError, match="document 'd': cannot vote"):
        TASK.example_of(Document("d", "Ada"), "corpus 'c' document 'd'")


def test_answers_shown_to_a_reader_are_texts():
    assert TASK.shown_labels(Document("d", "who?\nAda", ("Ada @0", "a Da @12"))) == "Ada, a Da"
    assert TASK.shown_labels(Document("d", "rain", ("weather",))) == "weather"


def test_bare_text_is_a_question_and_its_context():
    assert TASK.as_example("who?\nAda and Bob.", "1") == Example("1", read().text, spans=read().spans)
    with pytest.raises(DataError, match="text 1: holds no context"):
        TASK.as_example("who?", "1")


def test_settings_survive_json_and_every_question_takes_one_decision():
    assert QuestionAnswering.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK
    assert Decisions.on(TASK, [read(), read()]).counts == [1, 1]


def questions(count, seed):
    """Return questions for the metal of a sentence, of which a quarter name none."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        words = draw.choices(FILLER, k=6)
        if number % 4:
            words.insert(draw.randrange(7), draw.choice(WORDS["metal"]))
        context = " ".join(words)
        given = [(match[0], match.start()) for match in re.finditer("|".join(WORDS["metal"]), context)]
        found.append({"id": f"{seed}-{number}", "question": "metal", "context": context, "answers": answers(*given)})
    return found


def test_command_line_trains_predicts_and_evaluates(tmp_path, tiny_bert, capsys, monkeypatch):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    paths = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", questions(size, size))
        for name, size in (("train", 120), ("test", 40))
    }
    flags = [f"--{name}={path}" for name, path in paths.items()]
    flags += [
        "--task=question-answering",
        "--task.context_words=16",
        f"--backbone={tiny_bert}",
        f"--encoder={tiny_bert}",
    ]
    flags += ["--max_length=32", "--method=full", "--learning_rate=1e-2", "--num_train_epochs=4", "--disable_tqdm"]
    out = tmp_path / "out"
    assert main(["train", *flags, f"--output={tmp_path / 'knn'}"]) == 2
    assert "lets the labels of documents vote" in capsys.readouterr().err
    long = ["--fusion=none", "--long_inputs=within_document", f"--output={tmp_path / 'long'}"]
    assert main(["train", *flags, *long]) == 2
    assert "judges parts of a text" in capsys.readouterr().err
    assert main(["train", *flags, "--fusion=none", f"--output={out}"]) == 0
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["after"]["f1"] > max(0.8, measured["before"]["f1"])
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", paths["test"], "--output", str(tmp_path / "scores.json")]) == 0
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again["f1"]["value"] == pytest.approx(measured["after"]["f1"])
    capsys.readouterr()
    assert main(["predict", str(out), paths["test"]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = questions(40, 40)
    assert len(lines) == 40
    assert set(lines[0]) == {"text", "answer", "start", "end", "probability"}
    for line, one in zip(lines, asked, strict=True):
        if line["answer"]:
            assert one["context"][line["start"] : line["end"]] == line["answer"]
    right = sum(line["answer"] == "".join(one["answers"]["text"]) for line, one in zip(lines, asked, strict=True))
    assert right / 40 == pytest.approx(measured["after"]["exact_match"])


def test_example_run_file_and_its_data_can_be_read(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    config = from_mapping(read_yaml("examples/question-answering.yaml"))
    splits = read_data(config)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (51, 14)
    everything = [*splits.train, *splits.validation, *splits.test]
    assert splits.task.notes(everything) == []
    assert sum(not example.labels for example in everything) == 8

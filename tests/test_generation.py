"""Texts that a model writes: their likelihood and their neighbours against plain loops, and how they are decoded."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.cli import main
from peft_rag.cli.writing import decoding_of
from peft_rag.corpus import Corpus, Document
from peft_rag.decisions import Decisions
from peft_rag.errors import BackboneError, ConfigError, DataError
from peft_rag.fusion.base import Memory, Outputs, Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.generation import write
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_generation import TextGeneration
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import word_tokenizer
from tests.conftest import write_jsonl

CORPUS = Corpus(
    [Document("0", "w20 w21", ("w22",)), Document("1", "w23", ("w24 w25",)), Document("2", "w26 w27", ("w28",))]
)


def tokenizer():
    words = word_tokenizer()
    words.eos_token = "[SEP]"
    return words


def model_of(backbone, task, fusion=None, method="lora", knowledge=True, **options):
    torch.manual_seed(0)
    known = Knowledge(CORPUS, ExactRetriever(WordEncoder()), "exact", "words") if knowledge else None
    plain = as_backbone(TINY_BACKBONES[backbone](), tokenizer(), backbone)
    model = RetrievalAugmentedModel(plain, task, fusion, known, max_length=32)
    model.progress_bars = False
    model.attach(method, **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def record(**fields):
    return Record(fields, "data/a.jsonl", 7)


def examples_of(model, *pairs):
    return model.task.read([record(source=source, target=target, id=source) for source, target in pairs])


def loop_log_probs(model, example):
    """log p of each right token, by a pass of its own over prompt and answer."""
    prompt = model.tokenizer(example.text)["input_ids"]
    answer = model.task.response_ids(example)
    with torch.no_grad():
        if model.decoder_start is not None:
            begun = torch.tensor([[model.decoder_start, *answer[:-1]]])
            logits = model.backbone(input_ids=torch.tensor([prompt]), decoder_input_ids=begun).logits[0]
        else:
            logits = model.backbone(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            logits = logits[-len(answer) - 1 : -1]
    return [float(row.log_softmax(-1)[token]) for row, token in zip(logits, answer, strict=True)]


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "adapter"])
@pytest.mark.parametrize("backbone", ["gpt2", "llama", "gemma3", "t5", "bart", "encoder_decoder"])
def test_likelihood_equals_a_plain_loop(backbone, method):
    model = model_of(backbone, Text2Text(target_length=6), method=method)
    examples = examples_of(model, ("w1 w2 w3", "w4 w5"), ("w6", "w7"))
    found = model.outputs(Split(examples))
    expected = [value for example in examples for value in loop_log_probs(model, example)]
    assert found.log_probs.tolist() == pytest.approx(expected, abs=1e-5)
    scores = model.task.evaluate(found.log_probs, model.task.targets(examples), resamples=0)
    assert scores["perplexity"].value == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-5)
    assert scores["likelihood"].value == pytest.approx(1 / scores["perplexity"].value)


def test_loss_is_on_the_answer_alone():
    model = model_of("gpt2", Text2Text(target_length=6))
    examples = examples_of(model, ("w1 w2 w3", "w4 w5"))
    (row,) = model.encode(Split(examples))
    assert row["gold"] == [*model.tokenizer("w4 w5", add_special_tokens=False)["input_ids"], 2]
    assert [pool for decision in row["pools"] for pool in decision] == [[4], [5], [6]]
    loss = model(**model.collate([row]))["loss"].item()
    assert loss == pytest.approx(-sum(loop_log_probs(model, examples[0])) / 3, abs=1e-5)


def test_a_long_answer_is_cut_and_keeps_its_end():
    model = model_of("gpt2", Text2Text(target_length=3))
    (example,) = examples_of(model, ("w1", "w2 w3 w4 w5"))
    assert model.tokenizer.decode(model.task.response_ids(example)) == "w2 w3 [SEP]"


def test_a_prompt_that_would_lose_its_end_is_an_error_with_file_and_line():
    model = model_of("gpt2", Text2Text(target_length=6))
    long = examples_of(model, (" ".join(["w1"] * 40), "w2"))
    message = "a.jsonl line 7: the prompt has 42 tokens, but max_length leaves 26 beside an answer of 6"
    with pytest.raises(DataError, match=re.escape(message)):
        model.encode(Split(long))


def test_a_source_of_an_encoder_decoder_is_cut_to_its_window():
    model = model_of("t5", Text2Text(target_length=6))
    (row,) = model.encode(Split(examples_of(model, (" ".join(["w1"] * 40), "w2"))))
    assert len(row["input_ids"]) == 32


def test_passages_stand_before_the_prompt_and_leave_room_for_the_answer():
    model = model_of("gpt2", Text2Text(target_length=6), ConcatFusion(k=2))
    examples = examples_of(model, ("w1 w2", "w3"))
    split = Split(examples, Neighbours.of_rows([[(0, 0.9), (1, 0.5)]]))
    (row,) = model.encode(split)
    words = model.tokenizer.decode(row["input_ids"]).split()
    assert words == ["[CLS]", "w20", "w21", "w22", "w23", "w24", "w25", "w1", "w2", "[SEP]", "w3"]
    assert row["read"] == [0, 1]
    assert [pool for decision in row["pools"] for pool in decision] == [[9], [10]]
    filled = Split(examples_of(model, (" ".join(["w1"] * 20), "w3")), split.neighbours)
    (row,) = model.encode(filled)
    assert row["read"] == [0]
    assert len(row["input_ids"]) - 1 <= 26


def test_neighbours_of_tokens_equal_a_plain_loop():
    """log p = log(λ·Σ_z π_z·[y_z = y] + (1-λ)·p(y)) for the right token y, z over remembered states."""
    draw = torch.Generator().manual_seed(1)
    task = Text2Text(target_length=6).with_tokenizer(tokenizer())
    documents = [task.example_of(document, "corpus") for document in CORPUS]
    memory = Memory(task.targets(documents), torch.randn(7, 4, generator=draw), Decisions.on(task, documents))
    tokens = memory.targets[:, 0].tolist()
    assert len(tokens) == 7
    (asked,) = task.read([record(source="w1", target="w25 w24")])
    own = torch.randn(3, generator=draw).sigmoid().log()
    states = torch.randn(3, 4, generator=draw)
    outputs = Outputs(own, states, decisions=Decisions.on(task, [asked]))
    fusion = KnnFusion(k=3, temperature=0.1, weight=0.4)
    fused = fusion.combine(outputs, Split([asked]), memory, task)
    votes = []
    for row, token in enumerate(task.response_ids(asked)):
        cosines = [float(torch.cosine_similarity(states[row], key, dim=0)) for key in memory.features]
        nearest = sorted(range(7), key=lambda place: -cosines[place])[:3]
        raised = {place: math.exp(cosines[place] / 0.1) for place in nearest}
        votes.append(sum(raised[place] for place in nearest if tokens[place] == token) / sum(raised.values()))
        assert math.exp(fused[row]) == pytest.approx(0.4 * votes[row] + 0.6 * math.exp(own[row]), abs=1e-5)
    assert any(votes)


def test_neighbours_tokens_are_mixed_into_the_whole_distribution():
    memory = Memory(torch.tensor([[5, 1], [6, 0], [5, 0]]), torch.eye(3))
    mixed = NeighbourTokens(memory, k=2, temperature=0.5, weight=0.3)
    mixed.states = torch.tensor([[1.0, 0.2, 0.1]])
    logits = torch.randn(1, 8)
    found = mixed(torch.tensor([[1]]), logits)
    raised = {place: math.exp(value / 0.5) for place, value in ((5, 1.0 / 1.05**0.5), (6, 0.2 / 1.05**0.5))}
    for token in range(8):
        vote = raised.get(token, 0.0) / sum(raised.values())
        expected = 0.3 * vote + 0.7 * float(logits.softmax(-1)[0, token])
        assert math.exp(found[0, token]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_writing_with_neighbours_follows_them_where_they_rule(backbone):
    """With λ = 1 the nearest remembered state says each token: what is written is a remembered answer's beginning."""
    model = model_of(backbone, Text2Text(target_length=4), KnnFusion(k=1, temperature=0.1, weight=1.0))
    examples = examples_of(model, ("w23", "w1"))
    ((text, probability),) = write(model, examples)
    assert set(text.split()) <= {"w22", "w24", "w25", "w28"}
    assert probability == pytest.approx(1.0)
    plain = write(model, examples, fusion=KnnFusion(k=1, temperature=0.1, weight=0.0))
    assert plain == write(model, examples, fusion=ConcatFusion(k=1), split=Split(examples, Neighbours.of_rows([[]])))


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_only_choices_are_written_and_their_probability_is_that_of_their_tokens(backbone):
    model = model_of(backbone, Text2Text(target_length=6, choices=("w1 w2", "w1 w3", "w4")))
    examples = examples_of(model, *((f"w{number}", "w4") for number in range(5, 15)))
    for decoding in ({}, {"num_beams": 3}):
        written = write(model, examples, **decoding)
        assert {text for text, _ in written} <= {"w1 w2", "w1 w3", "w4"}
        assert all(0 < probability <= 1 for _, probability in written)


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 2}])
def test_documents_that_a_text_must_not_see_say_none_of_its_tokens(backbone, decoding):
    """With λ = 1 each token is a neighbour's: of the first text those of document 1, of the second of all but that."""
    model = model_of(backbone, Text2Text(target_length=4), KnnFusion(k=2, temperature=0.1, weight=1.0))
    examples = examples_of(model, ("w23", "w1"), ("w23 w23", "w1"))
    split = Split(examples, forbidden=[{0, 2}, {1}])
    (first, _), (second, _) = write(model, examples, split=split, batch_size=2, **decoding)
    assert set(first.split()) <= {"w24", "w25"}
    assert set(second.split()) <= {"w22", "w28"}
    assert set(write(model, examples)[1][0].split()) & {"w24", "w25"}


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 3}])
def test_choices_are_kept_where_neighbours_speak_for_other_tokens(backbone, decoding):
    task = Text2Text(target_length=6, choices=("w1 w2", "w4"))
    model = model_of(backbone, task, KnnFusion(k=1, temperature=0.1, weight=0.99))
    written = write(model, examples_of(model, *((f"w{number}", "w4") for number in range(5, 15))), **decoding)
    assert {text for text, _ in written} <= {"w1 w2", "w4"}


def test_the_frozen_backbones_states_are_neither_kept_nor_taken_for_the_tuned_ones(tmp_path):
    model = model_of("gpt2", Text2Text(target_length=4), KnnFusion(k=2, temperature=0.1, weight=0.5))
    model.knowledge = replace(model.knowledge, cache=tmp_path)
    tuned = model.memory().features
    model.forget()
    model.saved_as[model.adapter] = "sha256:of what was saved"
    with model.disable_adapter():
        assert not torch.allclose(model.memory().features, tuned, atol=1e-3)
    assert list(tmp_path.iterdir()) == []
    assert torch.allclose(model.memory().features, tuned, atol=1e-6)
    assert list(tmp_path.iterdir())


def test_another_corpus_is_remembered_anew():
    model = model_of("gpt2", Text2Text(target_length=4), KnnFusion(k=2, temperature=0.1, weight=0.5))
    before = model.memory()
    model.knowledge = replace(model.knowledge, corpus=Corpus(list(CORPUS)[:2]))
    assert len(model.memory().targets) < len(before.targets)


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_decoding_options_reach_transformers(backbone):
    model = model_of(backbone, Text2Text(target_length=6))
    examples = examples_of(model, ("w1 w2", "w3"), ("w4", "w5"))
    assert all(len(text.split()) <= 2 for text, _ in write(model, examples, max_new_tokens=2))
    assert len(write(model, examples, num_beams=3)) == 2
    torch.manual_seed(3)
    sampled = write(model, examples, do_sample=True, temperature=5.0)
    torch.manual_seed(3)
    assert sampled == write(model, examples, do_sample=True, temperature=5.0)


def test_merged_and_unmerged_adapters_write_the_same():
    model = model_of("gpt2", Text2Text(target_length=6))
    examples = examples_of(model, ("w1 w2", "w3"), ("w4", "w5"))
    before = [text for text, _ in write(model, examples)]
    model.merge()
    assert [text for text, _ in write(model, examples)] == before


def test_unknown_decoding_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown way of decoding 'num_beam'\. Did you mean 'num_beams'\?"):
        Text2Text(decoding={"num_beam": 3})
    with pytest.raises(ConfigError, match="unknown way of decoding 'beams'"):
        decoding_of(["--decoding.beams", "3"])
    assert decoding_of(["--decoding.num_beams=3", "--x"]) == (["--x"], {"num_beams": 3})


def test_prompts_must_show_what_they_are_about():
    with pytest.raises(ConfigError, match=re.escape("task.prompt is 'hello', which does not show {source}")):
        Text2Text(prompt="hello")


def test_backbones_that_cannot_write_say_so():
    for backbone, task, message in (
        ("bert", Text2Text(), "without the head by which it writes"),
        ("t5", TextGeneration(), "is an encoder-decoder, but the task writes on"),
    ):
        with pytest.raises(BackboneError, match=message):
            model_of(backbone, task)


TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


def test_dialogues_are_written_by_the_tokenizers_template_or_plainly():
    task = TextGeneration().with_tokenizer(tokenizer())
    (example,) = task.read([record(messages=TURNS)])
    assert (example.text, example.labels) == ("User: w1\nAssistant:", ("w2",))
    assert task.read([record(messages=TURNS)], labelled=False)[0].text == example.text
    task.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    assert task.read([record(messages=TURNS)])[0].text == "<user>w1<go>"
    plain = TextGeneration(chat_template="plain").with_tokenizer(task.tokenizer)
    assert plain.read([record(messages=TURNS)])[0].text == "User: w1\nAssistant:"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"other": "x"}, "has none of the fields prompt, messages, text (found: other)"),
        ({"prompt": "x"}, "field 'response' is missing"),
        ({"prompt": "x", "response": " "}, "field 'response' is empty"),
        ({"prompt": "x", "response": []}, "field 'response' is empty"),
        ({"prompt": "x", "response": ["a", ""]}, "field 'response' is empty"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": TURNS[:1]}, "ends with a turn of 'user'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "turn 1 is"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "turn 2 is"),
    ],
)
def test_bad_records_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        TextGeneration().with_tokenizer(tokenizer()).read([record(**fields)])
    assert str(error.value).startswith("a.jsonl line 7")


def test_several_right_answers_are_read_from_lists_and_from_squads_form():
    (example,) = Text2Text().read([record(source="q", target={"text": ["a", "b"], "answer_start": [0, 3]})])
    assert example.labels == ("a", "b")
    scores = Text2Text().score_texts(["b"], [example], resamples=0)
    assert (scores["exact_match"].value, scores["f1"].value) == (1.0, 1.0)


def test_plain_language_modelling_judges_every_token_of_a_text():
    model = model_of("gpt2", TextGeneration(target_length=8))
    examples = model.task.read([record(text="w1 w2 w3")])
    assert model.task.with_labels_of(examples).form == "text"
    (row,) = model.encode(Split(examples))
    assert row["gold"] == [*model.tokenizer("w1 w2 w3", add_special_tokens=False)["input_ids"], 2]


def test_settings_survive_json_without_the_tokenizer():
    task = Text2Text(choices=["w1", "w2"], decoding={"num_beams": 2}).with_tokenizer(tokenizer())
    assert Text2Text.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_perplexity_is_no_percentage():
    task = Text2Text(target_length=4).with_tokenizer(tokenizer())
    targets = task.targets(task.read([record(source="w1", target="w2")]))
    score = task.evaluate(torch.full((2,), math.log(0.1)), targets, resamples=0)["perplexity"]
    assert str(score) == "10.0 [10.0, 10.0]"
    assert np.isclose(score.to_dict()["value"], 10)


@pytest.fixture
def tiny_writer(tmp_path):
    """Save a tiny model of a family with a tokenizer, as a user has it."""

    def save(family):
        folder = tmp_path / family
        TINY_BACKBONES[family]().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return str(folder)

    return save


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
@pytest.mark.parametrize(
    ("family", "fusion"),
    [("gpt2", "knn"), ("gpt2", "concat"), ("t5", "fid"), ("llama", "none"), ("gpt2", "projector")],
)
def test_a_model_that_writes_is_trained_saved_and_asked(
    tiny_writer, tiny_bert, tmp_path, capsys, monkeypatch, family, fusion
):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    data = {}
    for name, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = [{"source": f"w{n} w{n + 1}", "target": f"w{n + 2}", "id": f"{name}{n}"} for n in range(count)]
        data[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    words = [f"--{name}={path}" for name, path in data.items()]
    out = tmp_path / "out"
    words += ["--task", "text2text", "--backbone", tiny_writer(family), "--encoder", tiny_bert, "--fusion", fusion]
    words += ["--task.target_length", "6", "--max_length", "32", "--max_steps", "4", "--eval_strategy", "no"]
    words += ["--fallback", "false", "--disable_tqdm", "true"]
    assert main(["train", *words, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    assert "exact_match" in printed
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["arms"]["without_retrieval"]["perplexity"]["value"] > 1

    assert main(["predict", str(out), data["test"], "--decoding.num_beams", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(line) for line in lines] == [{"text", "answer", "probability"}] * 4
    assert main(["evaluate", str(out), "--data", data["test"]]) == 0
    evaluated = capsys.readouterr().out
    assert evaluated.startswith("in percent (perplexity as it is) on 4 examples")
    shown = {line.split()[0]: line.split()[1] for line in evaluated.splitlines()[1:]}
    scale = {name: 1 if name == "perplexity" else 100 for name in measured["after"]}
    assert {name: f"{scale[name] * value:.1f}" for name, value in measured["after"].items()} == {
        name: shown[name] for name in measured["after"]
    }
    card = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(card.replace("this-folder-or-hub-id", str(out)), {})
    assert main(["predict", str(out), data["test"], "--stream"]) == 0
    streamed = capsys.readouterr().out
    assert not streamed.startswith("{")
    assert main(["predict", str(out), data["test"], "--stream", "--output", str(tmp_path / "said.jsonl")]) == 2
    assert "--stream writes to standard output" in capsys.readouterr().err
    assert main(["predict", str(out), data["test"], "--stream", "--explain"]) == 2
    assert "Leave one out" in capsys.readouterr().err
    assert main(["predict", str(out), data["test"], "--explain", "--html", str(tmp_path / "why.html")]) == 0
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert bool(line["neighbours"]) == bool(line["without_retrieval"]) == (fusion != "none")
        assert not any("answer_without" in one for one in line["neighbours"])
    assert "Why the model answered" in (tmp_path / "why.html").read_text()

"""Multiple choice by how likely the backbone writes each choice."""

import json
import math
import random

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.cli import main
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, DataError
from peft_rag.fusion.base import Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.multiple_choice import MultipleChoice
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import word_tokenizer
from tests.conftest import write_jsonl

DOCUMENTS = [Document("0", "w20 w21", ("w22",)), Document("1", "w23", ("w24 w25",)), Document("2", "w26 w27")]
RECORDS = [
    {"question": "w1 w2", "choices": ["w3", "w4 w5 w6", "w7"], "label": 1},
    {"question": "w8", "choices": ["w9 w10", "w11"], "label": "w11"},
]


def task(**options):
    return MultipleChoice(by="likelihood", choice_tokens=6, labels=("A", "B", "C"), **options)


def read(given, *fields):
    return given.read([Record(one, "data/a.jsonl", 7) for one in fields])


def model_of(given, fusion=None, backbone="gpt2"):
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "[SEP]"
    known = Knowledge(Corpus(DOCUMENTS), ExactRetriever(WordEncoder()), "exact", "words")
    plain = as_backbone(TINY_BACKBONES[backbone](), tokenizer, backbone)
    model = RetrievalAugmentedModel(plain, given, fusion, known, max_length=32)
    model.progress_bars = False
    model.attach("lora")
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def by_loop(model, prompt, choices, length):
    """log p of each choice over its length, each by a pass of its own, normalised over the choices."""
    scores = []
    for choice in choices:
        ids, answer = (
            model.tokenizer(prompt)["input_ids"],
            model.tokenizer(choice, add_special_tokens=False)["input_ids"],
        )
        with torch.no_grad():
            if model.decoder_start is None:
                logits = model.backbone(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 :]
            else:
                begun = torch.tensor([[model.decoder_start, *answer]])
                logits = model.backbone(input_ids=torch.tensor([ids]), decoder_input_ids=begun).logits[0]
        total = sum(float(logits[place].log_softmax(-1)[token]) for place, token in enumerate(answer))
        scores.append(total / {"tokens": len(answer), "characters": len(choice), "none": 1}[length])
    norm = math.log(sum(math.exp(score) for score in scores))
    return [score - norm for score in scores]


@pytest.mark.parametrize("length", ["tokens", "characters", "none"])
@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_choices_are_as_likely_as_a_plain_loop_finds_them(backbone, length):
    given = task(length=length)
    model = model_of(given, backbone=backbone)
    examples = read(model.task, *RECORDS)
    found = model.outputs(Split(examples)).log_probs
    for row, fields in zip(found.tolist(), RECORDS, strict=True):
        expected = by_loop(model, fields["question"], fields["choices"], length)
        assert row[: len(expected)] == pytest.approx(expected, abs=1e-4)
        assert row[len(expected) :] == [-100.0] * (3 - len(expected))
    assert model.task.targets(examples).tolist() == [1, 1]
    (said, probability), _ = model.task.decode(found, examples)
    assert probability == pytest.approx(math.exp(found[0].max()))
    assert model.task.answer(examples[0], said) == {
        "label": "ABC"[int(found[0].argmax())],
        "choice": RECORDS[0]["choices"][int(found[0].argmax())],
    }


def test_a_prompt_is_written_around_the_question_and_choices_do_not_stand_in_it():
    (example, _) = read(task(prompt="ask {question} answer"), *RECORDS)
    assert example.text == "ask w1 w2 answer"
    assert example.choices == ("w3", "w4 w5 w6", "w7")
    assert example.labels == ("w4 w5 w6",)


def test_neighbours_stand_before_the_question_with_their_right_choices():
    model = model_of(task(), ConcatFusion(k=2))
    examples = read(model.task, RECORDS[0])
    found = model.outputs(Split(examples, Neighbours.of_rows([[(0, 0.9), (1, 0.5)]]))).log_probs[0].tolist()
    prompt = "w20 w21 w22\n\nw23 w24 w25\n\nw1 w2"
    assert found == pytest.approx(by_loop(model, prompt, RECORDS[0]["choices"], "tokens"), abs=1e-4)


def test_neighbours_are_summed_out_as_a_plain_loop_does():
    model = model_of(task(), MarginalFusion(k=2))
    examples = read(model.task, *RECORDS)
    scores = [[(0, 0.9), (1, 0.5)], [(2, 0.4)]]
    found = model.outputs(Split(examples, Neighbours.of_rows(scores))).log_probs.exp()
    tau = float(model.fusion_module.log_temperature.detach().exp())
    texts = {0: "w20 w21 w22", 1: "w23 w24 w25", 2: "w26 w27"}
    for row, fields, near in zip(found.tolist(), RECORDS, scores, strict=True):
        total = sum(math.exp(score / tau) for _, score in near)
        expected = [0.0] * len(fields["choices"])
        for place, score in near:
            each = by_loop(model, f"{texts[place]}\n\n{fields['question']}", fields["choices"], "tokens")
            for number, value in enumerate(each):
                expected[number] += math.exp(score / tau) / total * math.exp(value)
        assert row[: len(expected)] == pytest.approx(expected, abs=1e-5)
        assert sum(row) == pytest.approx(1, abs=1e-5)


def test_bad_options_and_records_say_what_to_do():
    for options, message in (
        ({"by": "guess"}, "task.by is 'guess'. Choose state, likelihood"),
        ({"length": "words"}, "task.length is 'words'"),
        ({"choice_tokens": 0}, "task.choice_tokens is 0"),
        ({"prompt": "Answer:"}, "does not show {question}"),
    ):
        with pytest.raises(ConfigError) as error:
            MultipleChoice(**options)
        assert message in str(error.value)
    model = model_of(task())
    long = {"question": "w1", "choices": ["w2", "w3 " * 7], "label": 0}
    with pytest.raises(DataError, match=r"choice 'w3 w3 .*' has 7 tokens, but must have 1 to 6"):
        model.encode(Split(read(model.task, long)))
    with pytest.raises(DataError, match=r"the prompt has 42 tokens, but max_length leaves 26 .*--task.choice_tokens"):
        model.encode(Split(read(model.task, {**RECORDS[0], "question": "w1 " * 40})))


def pairs(count, seed):
    """Return questions whose right choice follows the question's last word."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        word = draw.randrange(0, 12)
        wrong = draw.choice([other for other in range(12) if other != word])
        choices = [f"w{20 + word}", f"w{20 + wrong}"]
        draw.shuffle(choices)
        question = f"w{draw.randrange(12, 20)} w{word}"
        rows.append({"id": f"{seed}-{number}", "question": question, "choices": choices, "label": f"w{20 + word}"})
    return rows


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
def test_command_line_answers_untrained_and_trained(tmp_path, tiny_bert, capsys, monkeypatch):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    folder = tmp_path / "gpt2"
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "[SEP]"
    TINY_BACKBONES["gpt2"]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", pairs(count, count))
        for name, count in (("train", 96), ("test", 24))
    }
    flags = [f"--train={data['train']}", f"--validation={data['test']}", f"--test={data['test']}", "--max_length=32"]
    flags += ["--task=multiple-choice", "--task.by=likelihood", "--task.choice_tokens=4", "--disable_tqdm=true"]
    flags += [f"--encoder={tiny_bert}"]
    decoder = [f"--backbone={folder}"]

    for wrong, message in (
        ([*decoder, "--fusion=knn"], "says nothing of another example"),
        ([*decoder, "--fusion=projector"], "Use --fusion concat, marginal or none"),
        ([f"--backbone={tiny_bert}", "--fusion=none"], "which reads text and cannot write it"),
    ):
        assert main(["train", *flags, *wrong, f"--output={tmp_path / 'wrong'}"]) == 2
        assert message in capsys.readouterr().err

    out = tmp_path / "untrained"
    assert main(["train", *flags, *decoder, "--fusion=none", "--method=head", f"--output={out}"]) == 0
    assert "leaves nothing to train" in capsys.readouterr().out
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["arms"]["untrained"] == measured["arms"]["without_retrieval"]
    assert measured["steps"] == 0

    out = tmp_path / "out"
    training = ["--method=full", "--num_train_epochs=6", "--learning_rate=1e-2", "--fusion=none"]
    assert main(["train", *flags, *decoder, *training, f"--output={out}"]) == 0
    trained = json.loads((out / "metrics.json").read_text())
    assert trained["arms"]["untrained"] == measured["arms"]["untrained"]
    assert trained["test"]["accuracy"] > 0.9 > measured["test"]["accuracy"]
    capsys.readouterr()
    assert main(["predict", str(out), data["test"]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = pairs(24, 24)
    assert set(lines[0]) == {"text", "label", "choice", "probability"}
    assert [one["choices"]["AB".index(line["label"])] for line, one in zip(lines, asked, strict=True)] == [
        line["choice"] for line in lines
    ]
    right = sum(line["choice"] == one["label"] for line, one in zip(lines, asked, strict=True))
    assert right / 24 == pytest.approx(trained["test"]["accuracy"])

"""Every installed task keeps its promises on every kind of backbone, under several methods."""

from dataclasses import dataclass

import pytest

from peft_rag.errors import BackboneError, ConformanceError
from peft_rag.registry import TASKS, load, names
from peft_rag.tasks.multiple_choice import MultipleChoice
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing import TINY_BACKBONES, check_task

RECORDS = {
    "text-classification": [
        {"text": "w1 w2 w3", "label": "odd"},
        {"text": "w4", "label": "even"},
        {"text": "w5 w6 w7 w8 w9", "label": "odd"},
        {"text": "w10 w11", "label": "even"},
    ],
    "token-classification": [
        {"tokens": ["w1", "w2", "w3"], "tags": ["B-a", "I-a", "O"]},
        {"tokens": ["w4"], "tags": ["B-b"]},
        {"tokens": ["w5", "w6", "w7", "w8", "w9"], "tags": ["O", "B-a", "B-b", "I-b", "O"]},
        {"tokens": ["w1", "w11"], "tags": ["B-a", "O"]},
    ],
    "question-answering": [
        {"question": "w1 w2", "context": "w3 w4 w5", "answers": {"text": ["w4 w5"], "answer_start": [3]}},
        {"question": "w6", "context": "w7", "answers": {"text": [], "answer_start": []}},
        {"question": "w8", "context": "w9 " * 40 + "w10", "answers": {"text": ["w10"], "answer_start": [120]}},
        {"question": "w11", "context": "w12 w13", "answers": {"text": ["w12"], "answer_start": [0]}},
    ],
    "text2text": [
        {"source": "w1 w2 w3", "target": "w4"},
        {"source": "w5", "target": ["w6 w7 w8", "w9"]},
        {"source": "w10 w11", "target": "w12 w13"},
    ],
    "text-generation": [
        {"prompt": "w1 w2 w3", "response": "w4"},
        {"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 w7 w8"}]},
        {"prompt": "w10 w11", "response": "w12 w13"},
    ],
    "multiple-choice": [
        {"question": "w1 w2", "choices": ["w3", "w4 w5", "w6"], "label": 0},
        {"question": "w7", "choices": ["w8 w9", "w3"], "label": "w3"},
        {"question": "w10 w11", "choices": ["w12", "w3 w2", "w14"], "label": "B"},
        {"question": "w2", "choices": ["w15", "w16"], "label": 1},
    ],
    "relation-extraction": [
        {"tokens": ["w1", "w2", "w3"], "head": [0, 1], "tail": [2], "label": "odd"},
        {"tokens": ["w4", "w6"], "head": 0, "tail": 1, "label": "even"},
        {"text": "w5 w6 w7 w8 w9", "head": [0, 2], "tail": {"start": 6, "end": 14}, "label": "odd"},
        {"tokens": ["w10", "w11", "w1", "w2"], "head": [3], "tail": [1, 2], "label": "even"},
    ],
}
OPTIONS = {"text2text": {"target_length": 6}, "text-generation": {"target_length": 6}}
DECODERS = ("gpt2", "llama", "gemma", "gemma3", "qwen")
WRITERS = {"text2text": {*DECODERS, "t5", "bart", "encoder_decoder"}, "text-generation": DECODERS}


def make(task):
    return load(TASKS, task)(**OPTIONS.get(task, {}))


MARKED = [
    {"tokens": ["w1", "w2", "w3"], "position": 1, "label": "odd"},
    {"tokens": ["w4"], "position": [0], "label": "even"},
    {"text": "w5 w6 w7 w8 w9", "position": [3, 8], "label": "odd"},
    {"tokens": ["w10", "w11"], "position": [0, 1], "label": "even"},
]


def test_every_installed_task_has_records_to_be_checked_with():
    assert set(names(TASKS)) == RECORDS.keys()


@pytest.mark.parametrize("backbone", TINY_BACKBONES)
@pytest.mark.parametrize("task", RECORDS)
def test_task_conforms_on_a_backbone_or_says_that_it_cannot(task, backbone):
    if backbone in WRITERS.get(task, TINY_BACKBONES):
        assert check_task(make(task), RECORDS[task], TINY_BACKBONES[backbone]).checked
    else:
        with pytest.raises(BackboneError, match="but the task writes"):
            check_task(make(task), RECORDS[task], TINY_BACKBONES[backbone])


@pytest.mark.parametrize("method", ["head", "adapter", "bitfit", "prompt-tuning", "ia3", "full"])
@pytest.mark.parametrize("task", RECORDS)
def test_task_conforms_under_a_method(task, method):
    if task in WRITERS and method == "head":
        pytest.skip("a task that writes has no head to train")
    backbone = TINY_BACKBONES["gpt2" if task in WRITERS else "bert"]
    assert check_task(make(task), RECORDS[task], backbone, method).checked


@pytest.mark.parametrize("backbone", ["bert", "llama", "t5"])
def test_classification_of_one_marked_part_conforms(backbone):
    assert check_task(TextClassification(span_field="position"), MARKED, TINY_BACKBONES[backbone]).checked


LIKELY = MultipleChoice(by="likelihood", choice_tokens=6)


@pytest.mark.parametrize("backbone", [*DECODERS, "t5", "bart"])
def test_choices_by_likelihood_conform_on_backbones_that_write(backbone):
    assert check_task(LIKELY, RECORDS["multiple-choice"], TINY_BACKBONES[backbone]).checked


@pytest.mark.parametrize("method", ["adapter", "bitfit", "prompt-tuning"])
def test_choices_by_likelihood_conform_under_a_method(method):
    assert check_task(LIKELY, RECORDS["multiple-choice"], TINY_BACKBONES["gpt2"], method).checked


def test_choices_by_likelihood_need_a_backbone_that_writes():
    with pytest.raises(BackboneError, match="judges it by how likely it is"):
        check_task(LIKELY, RECORDS["multiple-choice"], TINY_BACKBONES["bert"])


@dataclass(frozen=True)
class Doubling(TextClassification):
    def loss(self, log_probs, targets):
        return 2 * super().loss(log_probs, targets)


@dataclass(frozen=True)
class Forgetting(TextClassification):
    def to_dict(self):
        return {}


@dataclass(frozen=True)
class Muddling(TextClassification):
    def decode(self, log_probs, examples):
        return super().decode(log_probs.flip(0), examples)


@dataclass(frozen=True)
class Leaking(TextClassification):
    def features(self, hidden, mask):
        return super().features(hidden, mask) + 0.01 * len(hidden)


@dataclass(frozen=True)
class Deaf(TextClassification):
    def features(self, hidden, mask):
        return super().features(hidden, mask).detach()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Doubling(), "the loss is the mean"),
        (Forgetting(), "settings and labels survive JSON"),
        (Muddling(), "right answers score 1"),
        (Leaking(), "does not depend on what it is batched with"),
        (Deaf(), "every trained tensor receives a gradient"),
    ],
)
def test_a_task_that_breaks_a_promise_is_found(task, message):
    with pytest.raises(ConformanceError, match=message):
        check_task(task, RECORDS["text-classification"], TINY_BACKBONES["bert"])

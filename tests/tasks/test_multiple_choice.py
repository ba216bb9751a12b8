import json
import math
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from peft_rag.corpus import Document
from peft_rag.errors import DataError
from peft_rag.fusion.marginal import marginalised
from peft_rag.fusion.mixing import mix
from peft_rag.records import Record
from peft_rag.tasks.multiple_choice import MultipleChoice

TASK = MultipleChoice(labels=("A", "B", "C"))


def record(question="Where?", choices=("Rome", "Oslo"), **fields):
    return Record({"question": question, "choices": list(choices), **fields}, "data/a.jsonl", 7)


def read(**fields):
    return TASK.read([record(**fields)])[0]


@pytest.mark.parametrize(
    ("label", "letter"), [(1, "B"), ("Oslo", "B"), ("A", "A"), (0, "A"), (" Rome ", "A"), ("B", "B")]
)
def test_question_and_choices_become_one_text_with_a_span_for_each_choice(label, letter):
    given = read(label=label)
    assert given.text == "Where? A. Rome B. Oslo"
    assert [given.text[slice(*span)] for span in given.spans] == ["Rome", "Oslo"]
    assert given.labels == (letter,)


def test_a_choice_that_reads_like_the_letter_of_another_is_meant_itself():
    assert read(choices=["B", "A"], label="B").labels == ("A",)
    assert read(choices=["1", "2", "3"], label="2").labels == ("B",)
    assert read(choices=["0", "1", "9"], label=1).labels == ("B",)
    assert read(choices=["10", "20"], label=1).labels == ("B",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ""}, "field 'question' is empty"),
        ({"choices": ["Rome"], "label": 0}, "field 'choices' has 1 of them. Give two to 26"),
        ({"choices": [], "label": 0}, "field 'choices' has 0 of them"),
        ({"choices": [str(number) for number in range(27)], "label": 0}, "field 'choices' has 27 of them"),
        ({"choices": ["Rome", ""], "label": 0}, "field 'choices' must be a list of texts, none of them empty"),
        ({"choices": ["Rome", 5], "label": 0}, "field 'choices' must be a list of texts"),
        ({"choices": ["Rome", " Rome"], "label": 0}, "choice 'Rome' is there twice"),
        ({"label": 2}, "field 'label' is 2, which is none of the 2 choices"),
        ({"label": -1}, "field 'label' is -1, which is none"),
        ({"label": True}, "field 'label' is True, which is none"),
        ({"label": "C"}, "field 'label' is 'C', which is none of the 2 choices"),
        (
            {"choices": ["1", "2", "3"], "label": 2},
            "is 2, which is a choice, and the position of another. Give the text",
        ),
        ({"label": "Paris"}, "its letter (A to B) or its position (0 to 1)"),
        ({}, "field 'label' is None"),
    ],
)
def test_bad_records_are_refused_with_file_and_line(fields, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(**fields)
    assert str(error.value).startswith("a.jsonl line 7")


def test_training_data_says_how_many_choices_there_are_at_most():
    examples = [read(label=0), read(choices=["x", "y", "z", "w"], label=0)]
    assert MultipleChoice().with_labels_of(examples).labels == ("A", "B", "C", "D")
    message = "a.jsonl line 7: has 4 choices, but no question of the training data has more than 3"
    with pytest.raises(DataError, match=message):
        TASK.targets(examples)
    with pytest.raises(DataError, match=message):
        TASK.pools(examples[1], [(0, 3)])


def test_missing_choices_have_pools_without_tokens():
    assert TASK.pools(read(label=0), [None, (0, 5), (7, 9), (10, 12), (12, 14), (15, 17), (18, 22), None]) == [
        [[3, 4], [6], []]
    ]


def test_a_choice_beyond_the_window_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"a\.jsonl line 7: choice B \('Oslo'\) lies beyond the window"):
        TASK.pools(read(label=0), [None, (0, 5), (10, 14), None])


def features(seed=0, questions=5):
    """Unit vectors of 2 or 3 choices a question in 4 dimensions, zeros for the third where there are 2."""
    draw = torch.Generator().manual_seed(seed)
    pools = torch.randn(3 * questions, 4, generator=draw)
    pools[2::6] = 0
    return TASK.pooled(pools)


def test_probabilities_equal_a_plain_loop_over_the_choices_that_are_there():
    head, given = TASK.make_head(4), features()
    log_probs = TASK.log_probs(head(given)).detach()
    weight = head.score.weight.detach()[0].tolist()
    for row, vector in enumerate(given.tolist()):
        choices = [vector[4 * place : 4 * place + 4] for place in range(3)]
        raised = [
            math.exp(sum(w * x for w, x in zip(weight, choice, strict=True))) if any(choice) else 0.0
            for choice in choices
        ]
        assert (raised[2] == 0) == (row % 2 == 0)
        for place in range(3):
            assert math.exp(log_probs[row, place]) == pytest.approx(raised[place] / sum(raised), abs=1e-6)


def test_gradients_are_numbers_where_choices_are_missing_even_through_mixtures():
    pools = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    pools[2] = 0
    pools.requires_grad_()
    head = TASK.make_head(4)
    given = TASK.pooled(pools)
    log_probs = TASK.log_probs(head(given))
    fused = marginalised(log_probs, given, torch.tensor([[0, 1]]), torch.zeros(1, 2)).log_probs
    (TASK.loss(log_probs, torch.tensor([1, 2])) + TASK.loss(fused, torch.tensor([0]))).backward()
    assert pools.grad.isfinite().all()
    assert head.score.weight.grad.isfinite().all()
    assert pools.grad[2].eq(0).all()
    assert mix(log_probs.detach(), log_probs.detach(), 0.5).isfinite().all()


def test_gradient_of_the_loss_equals_finite_differences():
    head = TASK.make_head(4).double()
    given, targets = features().double(), torch.tensor([1, 2, 0, 1, 1])
    TASK.loss(head(given).log_softmax(-1), targets).backward()
    step, weight = 1e-5, head.score.weight
    for place in range(4):
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[0, place] += sign * step
                moved.append(TASK.loss(head(given).log_softmax(-1), targets).item())
                weight[0, place] -= sign * step
        assert float(weight.grad[0, place]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-6)


def test_fitted_head_is_scikit_learns_on_choices_moved_by_the_mean_of_their_question():
    given, targets = features(3, 40), torch.arange(40) % 2
    head = TASK.make_head(4)
    TASK.fit_head(head, given, targets, 2.0)
    moved, right = [], []
    for row, vector in enumerate(given.numpy().astype(float)):
        choices = [vector[4 * place : 4 * place + 4] for place in range(3)]
        there = [place for place, choice in enumerate(choices) if choice.any()]
        mean = sum(choices[place] for place in there) / len(there)
        moved += [choices[place] - mean for place in there]
        right += [int(place == targets[row]) for place in there]
    centred = np.array(moved) - np.mean(moved, axis=0)
    spread = math.sqrt((centred**2).sum(axis=1).mean())
    expected = LogisticRegression(C=2.0, max_iter=1000).fit(centred / spread, right).coef_[0] / spread
    assert head.score.weight[0].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_answer_names_letter_and_text():
    examples = [read(label=0), read(choices=["x", "y", "z"], label=2)]
    log_probs = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]]).clamp(min=1e-40).log()
    said = TASK.decode(log_probs, examples)
    assert [labels for labels, _ in said] == [("A",), ("C",)]
    assert [probability for _, probability in said] == pytest.approx([0.7, 0.8])
    assert TASK.answer(examples[0], ("A",)) == {"label": "A", "choice": "Rome"}
    assert TASK.answer(examples[1], ("C",)) == {"label": "C", "choice": "z"}


def test_neighbours_show_the_text_of_their_right_choice():
    given = read(label=1)
    assert TASK.shown_labels(Document("d", given.text, ("B",), spans=given.spans)) == "Oslo"
    assert TASK.shown_labels(Document("d", "a fact", ("geography",))) == "geography"
    assert TASK.shown_labels(Document("d", "a fact")) == ""


def test_a_bare_text_has_no_choices():
    with pytest.raises(DataError, match=r"a bare text has no choices\. Give records with 'question' and 'choices'"):
        TASK.as_example("Where?", "1")


def test_evaluate_gives_accuracy_and_calibration():
    log_probs = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]]).clamp(min=1e-40).log()
    found = TASK.evaluate(log_probs, torch.tensor([0, 1]), resamples=0)
    assert {name: score.value for name, score in found.items()} == pytest.approx({"accuracy": 0.5, "ece": 0.55})


def test_settings_survive_json():
    assert MultipleChoice.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK

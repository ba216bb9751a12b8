import pytest
import torch

from peft_rag.evaluation.overlap import overlap_lines, scores_by_overlap
from peft_rag.retrieval.overlap import EXACT, NEAR, Overlap, OverlapReport
from peft_rag.tasks.text_classification import TextClassification

SINGLE = TextClassification(labels=("a", "b", "c"))
MULTI = TextClassification(labels=("a", "b"), multi_label=True)


def report(exact, near, queries, threshold=0.95):
    pairs = [Overlap(row, 0, EXACT, 1.0) for row in exact] + [Overlap(row, 1, NEAR, 0.96) for row in near]
    return OverlapReport(queries, 9, threshold, tuple(pairs))


def test_accuracy_of_every_arm_is_split_as_plain_loops_split_it():
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (40,))
    answers = {arm: torch.randn(40, 3).log_softmax(-1) for arm in ("without_retrieval", "with_retrieval")}
    overlapping = {0, 3, 7, 12, 39}
    found = scores_by_overlap(SINGLE, answers, targets, report([0, 3, 7], [3, 12, 39], 40))
    assert (found["examples"], found["exact"], found["near"], found["metric"]) == (40, 3, 2, "accuracy")
    for arm, given in answers.items():
        right = [int(given[row].argmax()) == int(targets[row]) for row in range(40)]
        inside = [right[row] for row in range(40) if row in overlapping]
        outside = [right[row] for row in range(40) if row not in overlapping]
        assert found["arms"][arm] == {
            "all": pytest.approx(sum(right) / 40),
            "overlapping": pytest.approx(sum(inside) / 5),
            "clean": pytest.approx(sum(outside) / 35),
        }


def test_metric_is_the_tasks_own():
    targets = torch.tensor([[1, 0], [0, 1], [1, 1]])
    given = MULTI.log_probs(torch.tensor([[3.0, -3.0], [3.0, 3.0], [-3.0, 3.0]]))
    found = scores_by_overlap(MULTI, {"shipped": given}, targets, report([0], [], 3, None))
    assert (found["metric"], found["near"], found["threshold"]) == ("micro_f1", None, None)
    scores = found["arms"]["shipped"]
    assert scores["overlapping"] == 1.0
    assert scores["clean"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["all"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))


def test_no_overlap_leaves_no_line_and_all_overlap_no_clean_score():
    targets, given = torch.tensor([0, 1]), torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]).log()
    none = scores_by_overlap(SINGLE, {"x": given}, targets, report([], [], 2))
    assert none["arms"]["x"] == {"all": 0.5, "overlapping": None, "clean": 0.5}
    assert overlap_lines(none) == []
    every = scores_by_overlap(SINGLE, {"x": given}, targets, report([0], [1], 2))
    assert every["arms"]["x"]["clean"] is None
    assert overlap_lines(every) == [
        "2 of 2 texts stand in the corpus too (1 word for word, 1 nearly): accuracy 50.0 on these"
    ]


def test_line_does_not_count_what_was_not_looked_for():
    targets, given = torch.tensor([0, 1]), torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]).log()
    (line,) = overlap_lines(scores_by_overlap(SINGLE, {"x": given}, targets, report([0], [], 2, None)))
    assert line == "1 of 2 texts stand in the corpus too (1 word for word): accuracy 100.0 on these, 0.0 on the others"

"""Which setting neighbours vote by: the rule on its own, where few examples speak against the usual one."""

import numpy as np
import pytest
import torch

from peft_rag.fusion.knn_choice import Setting, Settings, choose_setting, convincing
from peft_rag.tasks.base import LEAST_LOG_PROB, Example
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification

CLASSES = 4
TASK = TextClassification(labels=("a", "b", "c", "d"))
OPEN = Settings.open(None, None, None, 60)


def test_what_is_given_is_not_chosen_and_no_more_vote_than_there_are():
    assert OPEN.usual == Setting(16, 0.05, 0.3)
    assert OPEN.ks == [1, 2, 4, 8, 16, 32]
    given = Settings.open(40, 0.3, 0.7, 100)
    assert (given.ks, given.temperatures, given.weights, given.usual) == ([40], [0.3], [0.7], Setting(40, 0.3, 0.7))
    assert Settings.open(None, None, None, 5).usual.k == 4


def world(seed, few, held=300, documents=60, noise=0.5, knowing=3.0):
    """Answers of a good model and votes of noisy neighbours, on few examples to choose by and on many held back."""
    draw = np.random.default_rng(seed)

    def drawn(count):
        classes = draw.integers(0, CLASSES, count)
        vectors = torch.tensor(np.eye(CLASSES, 8)[classes] + noise * draw.normal(size=(count, 8)))
        return torch.nn.functional.normalize(vectors, dim=-1), torch.tensor(classes)

    (known, labels), (vectors, classes) = drawn(documents), drawn(few + held)
    wanted = torch.nn.functional.one_hot(classes, CLASSES)
    own = (1.5 * (torch.tensor(draw.normal(size=wanted.shape)) + knowing * wanted)).log_softmax(-1)
    scores, places = (vectors @ known.T).topk(32, dim=-1)
    bearers = torch.nn.functional.one_hot(labels[places], CLASSES).double()

    def votes(k, temperature):
        shares = (scores[:, :k] / temperature).softmax(-1)
        return (shares[..., None] * bearers[:, :k]).sum(1).log()

    return own, votes, classes


def merits_of(own, votes, classes):
    """Accuracy and mean log-likelihood of every setting."""
    weights, rows, merits = torch.tensor(OPEN.weights)[:, None, None].double(), torch.arange(len(classes)), {}
    for k in OPEN.ks:
        for temperature in OPEN.temperatures:
            mixed = weights * votes(k, temperature).exp() + (1 - weights) * own.exp()
            right = (mixed.argmax(-1) == classes).double().mean(-1).tolist()
            likely = mixed[:, rows, classes].log().clamp(min=LEAST_LOG_PROB).mean(-1).tolist()
            for weight, *merit in zip(OPEN.weights, right, likely, strict=True):
                merits[Setting(k, temperature, weight)] = tuple(merit)
    return merits


def test_where_the_usual_setting_does_harm_only_its_weight_is_chosen():
    """Against the best of all settings on eight examples: within half a point as right, and likelier."""
    few, held, usual = slice(0, 8), slice(8, None), OPEN.usual
    kept = {"best of all": [], "weight alone": []}
    for seed in range(10):
        own, votes, classes = world(seed, 8)
        parts = [
            (own[part], lambda *one, part=part, votes=votes: votes(*one)[part], classes[part]) for part in (few, held)
        ]
        merits, later = (merits_of(*part) for part in parts)
        if merits[usual] >= merits[usual._replace(weight=0.0)]:
            continue
        chosen = choose_setting(OPEN, parts[0][0], parts[0][1], TASK, classes[few], ())
        assert chosen[:2] == usual[:2]
        assert merits[chosen] == max(merits[usual._replace(weight=weight)] for weight in OPEN.weights)
        best = max(merits, key=lambda setting, merits=merits: merits[setting])
        kept["best of all"].append(later[best])
        kept["weight alone"].append(later[chosen])
    assert len(kept["weight alone"]) > 5
    (right, likely), (right_of_all, likely_of_all) = (
        np.mean(kept[name], axis=0) for name in ("weight alone", "best of all")
    )
    assert right > right_of_all - 0.005
    assert likely > likely_of_all


@pytest.mark.parametrize(
    ("gains", "said"), [([1, 0, 0, 0], False), ([1] * 9 + [0], True), ([], False), ([5], False), ([-1, -1], False)]
)
def test_gains_convince_by_two_standard_errors(gains, said):
    assert convincing(torch.tensor(gains, dtype=torch.float)) == said


@pytest.mark.parametrize(("examples", "convinced"), [(1, False), (30, True)])
def test_words_of_one_text_convince_no_more_than_the_text(examples, convinced):
    """A setting is right about all 30 words of texts, the usual one about none: one text of them, or 30 of one word."""
    words = 30 // examples
    task = TokenClassification(labels=("O", "B-x"))
    texts = [Example(str(n), "x " * words, ("B-x",) * words, spans=((0, 1),) * words) for n in range(examples)]
    texts.append(Example("last", "x", ("O",), spans=((0, 1),)))
    targets = task.targets(texts)
    own = torch.tensor([[0.9, 0.1]] * 31).double().log()
    settings = Settings([1, 2], [0.1], [0.5], Setting(1, 0.1, 0.5))

    def votes(k, temperature):
        return torch.tensor([[0.0, 1.0] if k == 2 else [1.0, 0.0]] * 30 + [[1.0, 0.0]]).double().log()

    assert choose_setting(settings, own, votes, task, targets, texts).k == (2 if convinced else 1)

import math

import pytest
import torch

from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_ROWS, PASSAGE_SCORES
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.query_tower.losses import answer_log_likelihood, emdr2, pdist
from peft_rag.tasks.text_classification import TextClassification

NONE = -math.inf
# Three neighbours; one; two of equal score; none at all; four, the scores far apart.
LOGITS = torch.tensor(
    [
        [2.0, 0.5, -1.0, NONE],
        [0.3, NONE, NONE, NONE],
        [1.0, NONE, 1.0, NONE],
        [NONE, NONE, NONE, NONE],
        [9.0, -8.0, 0.0, 0.1],
    ],
    dtype=torch.float64,
)
LIKELIHOODS = torch.tensor(
    [
        [-0.1, -3.0, -7.0, -1.0],
        [-2.0, -9.0, -9.0, -9.0],
        [-1.0, -5.0, -4.0, -0.5],
        [-1.0, -2.0, -3.0, -4.0],
        [-60.0, -0.2, -0.3, -30.0],
    ],
    dtype=torch.float64,
)


def there(row):
    return [place for place, logit in enumerate(row) if logit > NONE]


def softmax(values):
    raised = [math.exp(value) for value in values]
    return [one / sum(raised) for one in raised]


def looped_pdist(logits, likelihoods, temperature):
    """Sum q·(log q - log π) over the neighbours that are there, in plain loops, over the batch's size."""
    total = 0.0
    for given, reader in zip(logits.tolist(), likelihoods.tolist(), strict=True):
        places = there(given)
        wanted = softmax([reader[place] / temperature for place in places]) if places else []
        found = softmax([given[place] for place in places]) if places else []
        total += sum(q * (math.log(q) - math.log(p)) for q, p in zip(wanted, found, strict=True))
    return total / len(logits)


def looped_emdr2(logits, likelihoods):
    total = 0.0
    for given, reader in zip(logits.tolist(), likelihoods.tolist(), strict=True):
        places = there(given)
        if places:
            prior = softmax([given[place] for place in places])
            total -= math.log(sum(p * math.exp(reader[place]) for p, place in zip(prior, places, strict=True)))
    return total / len(logits)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_pdist_equals_plain_loops(temperature):
    assert float(pdist(LOGITS, LIKELIHOODS, temperature)) == pytest.approx(
        looped_pdist(LOGITS, LIKELIHOODS, temperature), abs=1e-9
    )


def test_emdr2_equals_plain_loops():
    assert float(emdr2(LOGITS, LIKELIHOODS)) == pytest.approx(looped_emdr2(LOGITS, LIKELIHOODS), abs=1e-9)


def test_pdist_is_zero_where_the_retriever_ranks_as_the_reader_does():
    logits = torch.where(LOGITS.isneginf(), LOGITS, LIKELIHOODS / 2.0 + 3.0)
    assert abs(float(pdist(logits, LIKELIHOODS, 2.0))) < 1e-12


@pytest.mark.parametrize("loss", [pdist, emdr2])
def test_gradient_equals_finite_differences_and_no_place_is_nan(loss):
    missing = LOGITS == NONE

    def of_scores(scores):
        return loss(scores.masked_fill(missing, NONE), LIKELIHOODS)

    scores = LOGITS.masked_fill(missing, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(of_scores, scores)
    (gradient,) = torch.autograd.grad(of_scores(scores), scores)
    assert gradient.isfinite().all()
    assert (gradient[missing] == 0).all()
    assert gradient[1].abs().max() < 1e-15  # a single neighbour
    assert (gradient[3] == 0).all()  # none
    assert (gradient[0, :3] != 0).all()


@pytest.mark.parametrize("loss", [pdist, emdr2])
def test_nothing_is_learned_through_the_readers_likelihood(loss):
    likelihoods, logits = LIKELIHOODS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss(logits, likelihoods).backward()
    assert likelihoods.grad is None
    assert logits.grad is not None


def test_gradient_of_emdr2_is_prior_less_posterior():
    logits = LOGITS[:1, :3].clone().requires_grad_()
    emdr2(logits, LIKELIHOODS[:1, :3]).backward()
    prior = softmax(LOGITS[0, :3].tolist())
    joint = [p * math.exp(reader) for p, reader in zip(prior, LIKELIHOODS[0, :3].tolist(), strict=True)]
    wanted = [p - one / sum(joint) for p, one in zip(prior, joint, strict=True)]
    assert logits.grad[0].tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("form", ["token", "sequence"])
def test_mixture_carries_the_gradient_of_its_loss_to_the_scores(form):
    """Five decisions on two texts; a missing neighbour and one alone among them."""
    torch.manual_seed(0)
    rows = torch.tensor([[0, 1, 2], [3, 4, 5], [6, -1, -1], [7, -1, -1], [8, -1, -1]])
    missing = torch.tensor([[False, False, True], [False, True, True]])
    owners = torch.tensor([0, 0, 1, 1, 1])
    rows[:2, 2] = -1
    log_probs, features = -torch.rand(9, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64)
    module = MarginalFusion().make_module(None, 0).double()

    def loss(scores):
        live = scores.masked_fill(missing, NONE)[owners]
        batch = {PASSAGE_ROWS: rows, PASSAGE_SCORES: live, PASSAGE_EXAMPLES: owners}
        return -MarginalFusion(form=form).run(lambda: (log_probs, features), batch, module).log_probs.mean()

    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, scores)
    (gradient,) = torch.autograd.grad(loss(scores), scores)
    assert (gradient[0, :2] != 0).all()
    assert (gradient[missing] == 0).all()
    assert gradient[1].abs().max() < 1e-15  # a single neighbour


@pytest.mark.parametrize("loss", [pdist, emdr2])
def test_batch_in_which_nothing_was_found_costs_nothing(loss):
    logits = torch.full((2, 3), NONE, requires_grad=True)
    value = loss(logits, torch.zeros(2, 3))
    value.backward()
    assert float(value.detach()) == 0.0
    assert (logits.grad == 0).all()


def test_likelihood_of_an_answer_is_summed_over_its_decisions():
    """Three decisions on the first example, none on the second, one on the third; two neighbours, two classes."""
    torch.manual_seed(0)
    each = torch.randn(4, 2, 2, dtype=torch.float64).log_softmax(-1)
    labels, owners = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 0, 2])
    found = answer_log_likelihood(each, labels, owners, 3, TextClassification(labels=("a", "b")))
    wanted = [[0.0, 0.0] for _ in range(3)]
    for decision, (label, owner) in enumerate(zip(labels.tolist(), owners.tolist(), strict=True)):
        for neighbour in range(2):
            wanted[owner][neighbour] += float(each[decision, neighbour, label])
    assert found.tolist() == [pytest.approx(row, abs=1e-9) for row in wanted]

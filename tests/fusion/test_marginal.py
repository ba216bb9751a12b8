import math

import pytest
import torch

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import PASSAGES, READ, SCORES, Outputs, Reader, Split
from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_ROWS, PASSAGE_SCORES, collate, tokens_in
from peft_rag.fusion.marginal import MarginalFusion, marginalised
from peft_rag.fusion.none import NoFusion
from peft_rag.tasks.base import Example
from tests.fusion.test_concat import CORPUS, found


def looped(log_probs, features, rows, scores, temperature):
    """Average answers by softmax weights, in plain loops over examples, neighbours and classes."""
    answers, pooled, shares = [], [], []
    for mine, given in zip(rows.tolist(), scores.tolist(), strict=True):
        raised = [math.exp(score / temperature) if row >= 0 else 0.0 for row, score in zip(mine, given, strict=True)]
        weights = [one / sum(raised) for one in raised]
        answer = [0.0] * log_probs.shape[1]
        vector = [0.0] * features.shape[1]
        for row, weight in zip(mine, weights, strict=True):
            for c in range(len(answer)):
                answer[c] += weight * math.exp(float(log_probs[row, c])) if row >= 0 else 0.0
            for d in range(len(vector)):
                vector[d] += weight * float(features[row, d]) if row >= 0 else 0.0
        answers.append([math.log(value) for value in answer])
        pooled.append(vector)
        shares.append(weights)
    return torch.tensor(answers), torch.tensor(pooled), torch.tensor(shares)


pytestmark = pytest.mark.usefixtures("in_double_precision")


# Three neighbours; one; two of equal score; four, the scores far apart.
ROWS = torch.tensor([[0, 1, 2, -1], [3, -1, -1, -1], [4, 5, -1, -1], [6, 7, 8, 9]])
SIMILARITIES = torch.tensor(
    [
        [0.9, 0.7, 0.1, -math.inf],
        [0.4, -math.inf, -math.inf, -math.inf],
        [0.5, 0.5, -math.inf, -math.inf],
        [1.0, 0.2, -0.3, -1.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
def test_mixture_equals_plain_loops(temperature):
    torch.manual_seed(0)
    log_probs, features = torch.randn(10, 5).log_softmax(-1), torch.randn(10, 3)
    fused = marginalised(log_probs, features, ROWS, SIMILARITIES / temperature)
    for ours, theirs in zip(
        (fused.log_probs, fused.features, fused.weights),
        looped(log_probs, features, ROWS, SIMILARITIES, temperature),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.log_probs.logsumexp(-1), torch.zeros(4), rtol=0, atol=1e-12)
    torch.testing.assert_close(fused.log_probs[1], log_probs[3], rtol=0, atol=1e-12)


def test_mixture_of_pairs_sums_to_one_for_each_class():
    torch.manual_seed(0)
    log_probs = torch.randn(10, 5, 2).log_softmax(-1)
    fused = marginalised(log_probs, torch.randn(10, 3), ROWS, SIMILARITIES)
    torch.testing.assert_close(fused.log_probs.logsumexp(-1), torch.zeros(4, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["token", "sequence"])
def test_gradients_of_a_run_equal_finite_differences(form):
    """For a sequence two texts of two tokens each, whose tokens are read with as many neighbours."""
    torch.manual_seed(0)
    logits = torch.randn(10, 5, requires_grad=True)
    features = torch.randn(10, 3, requires_grad=True)
    module = MarginalFusion().make_module(None, 0)
    rows, scores = ROWS[[0, 0, 3, 3]], SIMILARITIES[[0, 0, 3, 3]]
    batch = {PASSAGE_ROWS: rows, PASSAGE_SCORES: scores, PASSAGE_EXAMPLES: torch.tensor([0, 0, 1, 1])}
    if form == "token":
        batch = {PASSAGE_ROWS: ROWS, PASSAGE_SCORES: SIMILARITIES, PASSAGE_EXAMPLES: torch.arange(4)}

    def answer(logits, features, log_temperature):
        module.log_temperature = log_temperature
        log_probs = logits.log_softmax(-1)
        given = log_probs if form == "token" else log_probs[:, 0]
        fused = MarginalFusion(form=form).run(lambda: (given, features), batch, module)
        return fused.log_probs, fused.features

    del module.log_temperature
    assert torch.autograd.gradcheck(answer, (logits, features, torch.tensor(-1.0, requires_grad=True)))


def test_answers_of_classes_are_one_decision_each_and_no_text():
    """Mixing whole texts or tokens is the same where an example takes one decision."""
    log_probs, features = torch.randn(10, 5).log_softmax(-1), torch.randn(10, 3)
    batch = {PASSAGE_ROWS: ROWS, PASSAGE_SCORES: SIMILARITIES, PASSAGE_EXAMPLES: torch.arange(4)}
    module = MarginalFusion().make_module(None, 0)
    token, sequence = (
        MarginalFusion(form=form).run(lambda: (log_probs, features), batch, module) for form in ("token", "sequence")
    )
    assert torch.equal(token.log_probs, sequence.log_probs)
    assert torch.isfinite(sequence.log_probs).all()


def test_encode_reads_each_neighbour_by_itself(make_tokenizer):
    tokenizer = make_tokenizer()
    split = Split([Example("0", "w1 w2"), Example("1", "w3")], found([3, 1, 2], []))
    rows = MarginalFusion(k=2).encode(split, CORPUS, Reader(tokenizer, 32))
    tokens = [" ".join(tokenizer.convert_ids_to_tokens(one["input_ids"])) for one in rows[0][PASSAGES]]
    assert tokens == ["[CLS] w1 w2 [SEP] b : w40 [SEP]", "[CLS] w1 w2 [SEP] a , b : w20 w21 w22 [SEP]"]
    assert rows[0][READ] == [3, 1]
    assert rows[0][SCORES] == pytest.approx([1.0, 0.9])
    assert tokens_in(rows[0]) == 8 + 12
    (alone,) = NoFusion().encode(Split([Example("1", "w3")]), None, Reader(tokenizer, 32))
    assert rows[1] == alone | {READ: []}


def test_neighbours_without_room_or_tokens_are_left_out(make_tokenizer):
    corpus = Corpus([Document("d0", "w1 w2 w3 w4 w5 w6"), Document("d1", "w7"), Document("d2", "\u200b")])
    split = Split([Example("0", "w1 w2")], found([0, 2, 1]))
    (row,) = MarginalFusion().encode(split, corpus, Reader(make_tokenizer(), 8))
    assert row[READ] == [1]
    assert row[SCORES] == pytest.approx([0.8])


def test_batch_says_which_inputs_are_whose(make_tokenizer):
    tokenizer = make_tokenizer()
    split = Split([Example("0", "w1"), Example("1", "w2"), Example("2", "w3")], found([3, 0], [], [1]))
    rows = MarginalFusion().encode(split, CORPUS, Reader(tokenizer, 32))
    batch = collate(rows, 0)
    assert batch["input_ids"].shape == (4, 11)
    assert batch[PASSAGE_ROWS].tolist() == [[0, 1], [2, -1], [3, -1]]
    assert batch[PASSAGE_SCORES].tolist() == [[1.0, pytest.approx(0.9)], [0.0, -math.inf], [1.0, -math.inf]]


def test_batch_without_any_neighbour_is_read_as_it_is(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = MarginalFusion().encode(Split([Example("0", "w1 w2")], found([])), CORPUS, Reader(tokenizer, 32))
    answer = (torch.randn(1, 3), torch.randn(1, 2))
    fused = MarginalFusion().run(lambda **batch: answer, collate(rows, 0), None)
    assert (fused.log_probs, fused.features, fused.weights) == (*answer, None)


def test_shown_are_the_neighbours_read_with_their_weights():
    split = Split([Example("0", "x"), Example("1", "y")], found([3, 1, 2], [0]))
    outputs = Outputs(torch.zeros(2, 3), torch.zeros(2, 2), [[3, 1], [0]], [[0.75, 0.25], [1.0]])
    shown = MarginalFusion(k=2).shown(outputs, split, None)
    assert [[(one.position, one.weight) for one in row] for row in shown] == [[(3, 0.75), (1, 0.25)], [(0, 1.0)]]
    assert [one.score for one in shown[0]] == pytest.approx([1.0, 0.9])


def test_mistakes_say_what_to_do(make_tokenizer):
    with pytest.raises(ConfigError, match=r"needs k of at least 1, got k=0. Use --fusion none"):
        MarginalFusion(k=0)
    with pytest.raises(ConfigError, match=r"fusion.temperature is 0.0; it must be above 0"):
        MarginalFusion(temperature=0.0)
    with pytest.raises(ConfigError, match=r"names \{label\}. It may name \{labels\} and \{text\}"):
        MarginalFusion(template="{label}: {text}")
    with pytest.raises(ConfigError, match=r"does not show \{text\}"):
        MarginalFusion(template="{labels}")
    with pytest.raises(ConfigError, match="expected '}'"):
        MarginalFusion(template="{text")
    with pytest.raises(RetrievalError, match="fusion 'marginal' was given no neighbours"):
        MarginalFusion().encode(Split([Example("0", "w1")]), CORPUS, Reader(make_tokenizer(), 32))

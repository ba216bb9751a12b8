"""What soft tokens learn from the text that they stand for, against plain loops."""

import math
from dataclasses import replace

import pytest
import torch

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import READ
from peft_rag.fusion.batching import TAUGHT, TEACHER
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.fusion.teaching import divergence
from tests.fusion.models import batch_of, make_model, split_of, stirred
from tests.fusion.writers import case

TAUGHT_BY_TEXT = ProjectorFusion(k=3, tokens=2, width=4, distill=2.0)


pytestmark = pytest.mark.usefixtures("in_double_precision")


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def teacher_of(model, split):
    """What the same model answers beside the passages as text, each example by itself."""
    model.eval()
    return [model.outputs(split.of([n]), fusion=ConcatFusion(k=3)).log_probs for n in range(len(split))]


def test_divergence_equals_a_loop():
    torch.manual_seed(0)
    p, q = torch.randn(5, 3).log_softmax(-1), torch.randn(5, 3).log_softmax(-1)
    loop = sum(math.exp(a) * (a - b) for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / 5
    assert float(divergence(p, q)) == pytest.approx(loop, abs=1e-12)
    assert float(divergence(p, p)) == 0
    pairs = [(float(a.exp()), float(b.exp())) for a, b in zip(p[:, 0], q[:, 0], strict=True)]
    right = sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in pairs) / 5
    assert float(divergence(p[:, 0], q[:, 0])) == pytest.approx(right, abs=1e-12)
    assert float(divergence(p[:, 0], q[:, 0])) <= loop


def test_divergence_and_its_gradient_stay_finite_where_probabilities_are_0_or_1():
    sure = torch.tensor([[0.0, -math.inf], [-1e-30, -70.0], [-math.inf, 0.0]])
    student = sure.flip(-1).nan_to_num(neginf=-200.0).requires_grad_()
    loss = divergence(sure, student) + divergence(sure[:, 0], student[:, 0])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_loss_is_that_of_the_answers_and_twice_the_divergence_from_the_text(make_tokenizer, family):
    model = without_dropout(make_model(make_tokenizer(), family, TAUGHT_BY_TEXT, "lora"))
    stirred(model.fusion_module)
    with torch.no_grad():
        model.head.weight.mul_(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    split = split_of()
    batch, teacher = batch_of(model, split), teacher_of(model, split)
    with torch.no_grad():
        plain = model(**batch)  # in evaluation the loss is that of the answers
        taught = model.train()(**batch)
    student = plain["log_probs"].tolist()
    pairs = [(teacher[n][0].tolist(), student[n]) for n in (0, 1, 3)]  # the third has no neighbour, and no text
    kl = sum(math.exp(a) * (a - b) for p, q in pairs for a, b in zip(p, q, strict=True)) / 3
    nll = -sum(student[n][label] for n, label in enumerate((0, 1, 0, 1))) / 4
    assert kl > 1e-3
    # Classes' log-probabilities are in single precision, whatever the backbone computes in.
    assert float(plain["loss"]) == pytest.approx(nll, abs=1e-6)
    assert float(taught["loss"]) == pytest.approx(nll + 2 * kl, abs=1e-6)


@pytest.mark.parametrize("backbone", ["gpt2", "t5"])
def test_written_texts_are_taught_by_the_probability_of_each_right_token(backbone):
    model, split = case(backbone, TAUGHT_BY_TEXT)
    without_dropout(model)
    batch, teacher = model.collate(model.encode(split)), teacher_of(model, split)
    with torch.no_grad():
        plain = model(**batch)
        taught = model.train()(**batch)
    counts = [model.task.decisions(one) for one in split.examples]
    student = plain["log_probs"].split(counts)
    terms = []
    for place in (0, 1, 3):
        for a, b in zip(teacher[place].exp().tolist(), student[place].exp().tolist(), strict=True):
            terms.append(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)))
    nll = -float(plain["log_probs"].mean())
    assert float(plain["loss"]) == pytest.approx(nll, abs=1e-9)
    assert float(taught["loss"]) == pytest.approx(nll + 2 * sum(terms) / len(terms), abs=1e-9)


def test_no_gradient_reaches_the_teacher(make_tokenizer):
    model = without_dropout(make_model(make_tokenizer(), "bert", TAUGHT_BY_TEXT, "lora"))
    stirred(model.fusion_module)
    split = split_of()
    batch, teacher = batch_of(model, split), torch.cat(teacher_of(model, split))
    model.train()
    model(**batch)["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    fixed = {name: tensor for name, tensor in batch.items() if not name.startswith((TEACHER, TAUGHT))}
    given = model(**fixed)
    kept = [0, 1, 3]
    (given["loss"] + 2 * divergence(teacher[kept], given["log_probs"][kept])).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_teacher_reads_undisturbed(make_tokenizer):
    model = make_model(make_tokenizer(), "bert", TAUGHT_BY_TEXT, "lora").train()
    flags = [module.training for module in model.modules()]
    with model.fusion_module.undisturbed():
        assert not any(module.training for module in model.source.model.modules())
    assert [module.training for module in model.modules()] == flags
    seen = []
    read = model.read

    def noted(**inputs):
        answer = read(**inputs)
        seen.append((torch.is_grad_enabled(), model.source.model.training, answer[0]))
        return answer

    batch = {name: tensor for name, tensor in batch_of(model, split_of()).items() if name != "labels"}
    model.fusion.run(noted, batch, model.fusion_module)
    model.fusion.run(noted, batch, model.fusion_module)
    assert [(graded, training) for graded, training, _ in seen] == [(True, True), (False, False)] * 2
    assert torch.equal(seen[1][2], seen[3][2])


def test_nothing_is_taught_unless_asked_or_where_answers_are_unknown(make_tokenizer):
    tokenizer = make_tokenizer()
    off = make_model(tokenizer, "bert", ProjectorFusion(k=3, width=4))
    assert not any(TEACHER in row for row in off.encode(split_of()))
    model = make_model(tokenizer, "bert", TAUGHT_BY_TEXT)
    rows = model.encode(split_of())
    assert [TEACHER in row for row in rows] == [True, True, False, True]
    assert rows[0][TEACHER][READ] == [3, 1, 2]
    assert not any(TEACHER in row for row in model.encode(split_of(), fusion=NoFusion()))
    bare = replace(split_of(), examples=[replace(one, labels=None) for one in split_of().examples])
    assert not any(TEACHER in row for row in model.encode(bare))
    with pytest.raises(ConfigError, match=r"fusion\.distill is -1; it is a weight"):
        ProjectorFusion(distill=-1)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_rag.backbone import as_backbone
from peft_rag.fusion.base import PASSAGES, READ, SCORES, Split
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.generation import write
from peft_rag.methods import resolve
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.query_tower.candidates import ASKED, ranked
from peft_rag.query_tower.options import RetrieverTraining
from peft_rag.query_tower.tower import QueryTower
from peft_rag.tasks.base import Example
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_generation import TextGeneration
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import backbone_fingerprint, train_steps, word_tokenizer
from peft_rag.training import train, training_arguments
from tests.query_tower.problem import examples, helpful, knowledge_of, make_model, teach_to_read
from tests.query_tower.test_tower import moved

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

LOSSES = ("marginal", "pdist", "emdr2")


def searched(model: RetrievalAugmentedModel, asked: list[Example], k: int = 8) -> Split:
    """Return examples with what the frozen encoder finds."""
    assert model.knowledge is not None
    return model.knowledge.split(asked, k, name="x", exclude_duplicates=False)


def gradients(model: RetrievalAugmentedModel, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the gradient of each trained tensor, 0 where there is none."""
    model.zero_grad()
    model(**batch)["loss"].backward()
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in model.named_parameters()
        if one.requires_grad
    }


# Choosing


def test_step_of_a_fresh_tower_is_that_of_the_frozen_retriever(encoder_folder: str) -> None:
    model = make_model(encoder_folder)
    split = searched(model, examples(6, 1))
    live = model(**model.collate(model.candidates(split)))
    plain = model(**model.collate(model.encode(split)))
    assert torch.equal(live["loss"], plain["loss"])
    assert torch.equal(live["weights"], plain["weights"])
    assert torch.equal(live["log_probs"], plain["log_probs"])


def test_the_best_under_the_live_tower_are_read_best_first(encoder_folder: str) -> None:
    model = make_model(encoder_folder, k=3)
    assert model.tower is not None
    moved(model.tower)
    split = searched(model, examples(5, 1))
    rows = model.candidates(split)
    assert all(len(row[PASSAGES]) == 8 for row in rows)
    chosen = ranked(model.tower, rows, 3)
    tuned = model.split(split.examples).neighbours
    assert tuned is not None
    for number, row in enumerate(chosen.rows):
        wanted = tuned.row(number)
        assert row[READ] == [place for place, _ in wanted]
        assert row[SCORES] == pytest.approx([score for _, score in wanted], abs=1e-6)
        places = [rows[number][READ].index(place) for place in row[READ]]
        assert row[PASSAGES] == [rows[number][PASSAGES][place] for place in places]
        assert ASKED not in row
    assert chosen.scores.shape == (5, 3)
    assert any(row[READ] != list(given[READ][:3]) for row, given in zip(chosen.rows, rows, strict=True))


def test_examples_with_other_counts_and_without_any_are_ranked_together(encoder_folder: str) -> None:
    """Eight candidates, two, none at all, and passages whose scores are given."""
    model = make_model(encoder_folder, k=4)
    assert model.tower is not None
    split = searched(model, examples(4, 1))
    assert split.neighbours is not None
    found = [split.neighbours.row(n)[:count] for n, count in enumerate((8, 2, 0, 3))]
    rows = model.candidates(replace(split, neighbours=type(split.neighbours).of_rows(found)))
    del rows[3][ASKED]
    chosen = ranked(model.tower, rows, 4)
    assert [len(row.get(READ, ())) for row in chosen.rows] == [4, 2, 0, 3]
    assert (~chosen.scores.isneginf()).sum(-1).tolist() == [4, 2, 1, 3]
    assert chosen.scores[2, 0] == 0
    assert chosen.scores[3, :3].tolist() == rows[3][SCORES]
    outputs = model(**model.collate(rows))
    alone = model(**model.collate(model.encode(Split([split.examples[2]]), fusion=NoFusion())))
    torch.testing.assert_close(outputs["log_probs"][2], alone["log_probs"][0])
    assert outputs["loss"].isfinite()


def test_answer_does_not_depend_on_the_batch(encoder_folder: str) -> None:
    model = make_model(encoder_folder, k=3)
    assert model.tower is not None
    moved(model.tower)
    rows = model.candidates(searched(model, examples(6, 1)))
    together = model(**model.collate(rows))["log_probs"]
    for number, row in enumerate(rows):
        torch.testing.assert_close(model(**model.collate([row]))["log_probs"][0], together[number], atol=1e-5, rtol=0)


# Gradients


def with_loss(model: RetrievalAugmentedModel, loss: str, **options: Any) -> RetrievalAugmentedModel:
    assert model.tower is not None
    model.tower.options = RetrieverTraining(loss, **options)
    return model


def test_own_losses_reach_the_tower_alone_and_the_readers_loss_does_not(encoder_folder: str) -> None:
    model = make_model(encoder_folder)
    assert model.tower is not None
    moved(model.tower)
    batch = model.collate(model.candidates(searched(model, examples(6, 1))))
    through = gradients(model, batch)
    for loss in ("pdist", "emdr2"):
        once = gradients(with_loss(model, loss), batch)
        thrice = gradients(with_loss(model, loss, weight=3.0), batch)
        for name, value in once.items():
            if name.startswith("towers."):
                torch.testing.assert_close(thrice[name], 3 * value, atol=1e-6, rtol=1e-4)
            else:
                assert torch.equal(thrice[name], value), name
                torch.testing.assert_close(value, through[name], atol=1e-7, rtol=1e-4)
    assert bool(through["fusion_modules.default.log_temperature"] != 0)


def test_emdr2_teaches_the_tower_what_the_mixture_does_where_an_answer_is_one_decision(encoder_folder: str) -> None:
    model = make_model(encoder_folder)
    assert model.tower is not None
    moved(model.tower)
    batch = model.collate(model.candidates(searched(model, examples(6, 1))))
    through, own = gradients(model, batch), gradients(with_loss(model, "emdr2"), batch)
    for name, value in through.items():
        if name.startswith("towers."):
            torch.testing.assert_close(own[name], value, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_single_neighbour_and_none_give_the_tower_no_gradient(encoder_folder: str, loss: str) -> None:
    model = with_loss(make_model(encoder_folder, k=1), loss)
    assert model.tower is not None
    moved(model.tower)
    split = searched(model, examples(4, 1))
    assert split.neighbours is not None
    rows = [split.neighbours.row(0), split.neighbours.row(1), [], []]
    batch = model.collate(model.candidates(replace(split, neighbours=type(split.neighbours).of_rows(rows))))
    found = gradients(model, batch)
    assert all(value.abs().max() < 1e-7 for name, value in found.items() if name.startswith("towers."))
    assert any(bool(value.ne(0).any()) for name, value in found.items() if not name.startswith("towers."))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_training_reaches_every_trained_tensor_and_changes_nothing_frozen(
    encoder_folder: str, method: str, family: str, loss: str
) -> None:
    model = with_loss(make_model(encoder_folder, method=method, family=family, temperature=0.05), loss)
    split = searched(model, examples(5, 1))
    frozen = {name: one.detach().clone() for name, one in model.named_parameters() if not one.requires_grad}
    before, documents = backbone_fingerprint(model), stored(model)
    silent = train_steps(model, split, resolve(method).learning_rate)
    assert silent == []
    assert backbone_fingerprint(model) == before
    assert np.array_equal(stored(model), documents)
    assert any(name.startswith("towers.") for name in frozen)
    now = dict(model.named_parameters())
    assert all(torch.equal(one, now[name]) for name, one in frozen.items())


def stored(model: RetrievalAugmentedModel) -> np.ndarray[Any, Any]:
    assert model.knowledge is not None
    return np.array(model.knowledge.retriever.vectors)  # type: ignore[attr-defined]


# Tags and written texts


def writer(encoder: str, task: Any, family: str, form: str, loss: str) -> RetrievalAugmentedModel:
    backbone = as_backbone(TINY_BACKBONES[family](), word_tokenizer(), "tiny")
    torch.manual_seed(0)
    knowledge = knowledge_of(encoder)
    model = RetrievalAugmentedModel(backbone, task, MarginalFusion(k=3, form=form), knowledge, max_length=32)  # type: ignore[arg-type]
    model.attach("lora")
    model.search_with(QueryTower.attached(knowledge, "lora", RetrieverTraining(loss)))
    model.eval()
    assert model.tower is not None
    moved(model.tower)
    return model


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", ["token", "sequence"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_written_texts_teach_the_tower_in_both_forms(encoder_folder: str, family: str, form: str, loss: str) -> None:
    goes_on = family == "gpt2"
    task: Any = TextGeneration(target_length=8) if goes_on else Text2Text(target_length=8)
    model = writer(encoder_folder, task, family, form, loss)
    asked = [replace(one, labels=("w5 w6 w7",) if n % 2 else ("w8",)) for n, one in enumerate(examples(4, 1))]
    batch = model.collate(model.candidates(searched(model, asked)))
    found = gradients(model, batch)
    assert all(
        bool(value.ne(0).any()) for name, value in found.items() if name.startswith("towers.") and "lora_B" in name
    )
    assert float(model(**batch)["loss"].detach()) == pytest.approx(looped_loss(model, batch, form, loss), abs=1e-5)


def test_text_is_written_from_what_the_tuned_query_finds(encoder_folder: str) -> None:
    model = writer(encoder_folder, TextGeneration(target_length=4), "gpt2", "token", "marginal")
    asked = [replace(one, labels=None) for one in examples(4, 1)]
    assert model.knowledge is not None
    tuned = model.knowledge.split(asked, 3, name="x", exclude_duplicates=False, tower=model.tower)
    assert write(model, asked) == write(model, asked, split=tuned)
    assert write(model, asked) != write(model, asked, split=searched(model, asked, 3))


def looped_loss(model: RetrievalAugmentedModel, batch: dict[str, Any], form: str, loss: str) -> float:
    """Compute the loss of a step of a writer from single answers, in plain loops over texts, tokens and neighbours."""
    import math

    assert model.tower is not None
    assert model.fusion_module is not None
    chosen = ranked(model.tower, batch["unranked"].rows, 3)
    tau = float(model.fusion_module.log_temperature.detach().exp())
    reader, own, tokens = 0.0, 0.0, 0
    for row in chosen.rows:
        raised = [math.exp(score / tau) for score in row[SCORES]]
        prior = [one / sum(raised) for one in raised]
        each = [alone(model, one) for one in row[PASSAGES]]
        if form == "token":
            reader -= sum(
                math.log(sum(p * math.exp(one[t]) for p, one in zip(prior, each, strict=True)))
                for t in range(len(each[0]))
            )
        else:
            reader -= math.log(sum(p * math.exp(sum(one)) for p, one in zip(prior, each, strict=True)))
        tokens += len(each[0])
        whole = [math.exp(sum(one)) for one in each]
        if loss == "emdr2":
            own -= math.log(sum(p * one for p, one in zip(prior, whole, strict=True)))
        if loss == "pdist":
            wanted = [one / sum(whole) for one in whole]
            own += sum(q * math.log(q / p) for q, p in zip(wanted, prior, strict=True))
    return reader / tokens + own / len(chosen.rows)


def alone(model: RetrievalAugmentedModel, one: dict[str, Any]) -> list[float]:
    """Return log p of each right token where a text is read beside one passage."""
    from peft_rag.fusion.batching import collate

    batch = collate([one], 0)
    with torch.no_grad():
        log_probs, _ = model.read(**batch)
    return [float(value) for value in log_probs]


@pytest.mark.parametrize("loss", LOSSES)
def test_tags_teach_the_tower(encoder_folder: str, loss: str) -> None:
    from peft_rag.records import Record

    task = TokenClassification()
    records = [Record({"tokens": one.text.split(), "tags": ["O", "B-x", "I-x"]}, "t", 1) for one in examples(4, 1)]
    asked = task.read(records)
    task = task.with_labels_of(asked)
    model = make_model(encoder_folder)
    knowledge, tower = model.knowledge, model.tower
    tagger = RetrievalAugmentedModel(
        model.source, task, MarginalFusion(k=3, show_labels=False), knowledge, max_length=32
    )
    tagger.progress_bars = False
    assert tower is not None
    tagger.search_with(tower)
    with_loss(tagger, loss)
    moved(tower)
    found = gradients(tagger.eval(), tagger.collate(tagger.candidates(searched(tagger, asked))))
    assert all(bool(value.ne(0).any()) for name, value in found.items() if name.startswith("towers."))


# End to end


@pytest.mark.parametrize("loss", LOSSES)
def test_tower_learns_to_prefer_the_helpful_documents(encoder_folder: str, tmp_path: Path, loss: str) -> None:
    training = RetrieverTraining(loss, temperature=0.5, learning_rate=0.02)
    model = make_model(encoder_folder, training, k=8, temperature=0.05)
    asked, held_out = examples(32, 1), examples(32, 2)
    learned, checked = searched(model, asked), searched(model, held_out)
    assert helpful(checked) < 0.3
    teach_to_read(model, asked)
    settings = {
        "max_steps": 25,
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "steps",
        "eval_steps": 25,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = training_arguments(tmp_path, 1e-4, settings, metric="accuracy", early_stopping_patience=0)
    lines: list[str] = []
    train(model, learned, checked, arguments, say=lines.append)
    tuned = model.split(held_out)
    assert helpful(tuned) > 0.9
    accuracy = model.evaluate(held_out)["accuracy"].value
    assert accuracy > 0.9
    assert sum(line.startswith("retrieval: ") for line in lines) == 1

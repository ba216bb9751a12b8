"""Retrieval dropout, a minimum score and the fallback, each through a whole run of fusions that read neighbours."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_rag.artefact import load
from peft_rag.benchmark.controls import control_arms
from peft_rag.config import from_mapping
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import READ, Split
from peft_rag.fusion.none import NoFusion
from peft_rag.job import Prepared, prepare, run, with_voters
from peft_rag.measuring import kept_lines
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.prediction import Prediction
from peft_rag.retrieval.base import Neighbours
from peft_rag.rows import RetrievalDropout, Rows
from peft_rag.training import train
from tests.conftest import toy_records, write_jsonl
from tests.test_job import cut_off_after_two_epochs, finish, settings

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

READERS = ["concat", "marginal", "projector", "cross-attention"]


def prepared(tiny_bert: str, data: dict[str, str], folder: Path, **changes: Any) -> Prepared:
    """Make everything a run needs, without training."""
    config = from_mapping(settings(tiny_bert, data, folder / "out", **{"fusion": "concat", **changes}))
    return with_voters(prepare(config, folder / "working", lambda line: None))


# Retrieval dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_dropped_examples_is_that_asked_for(share: float) -> None:
    count = 5000
    rows = Rows(
        [{"at": n, "alone": False} for n in range(count)], [{"at": n, "alone": True} for n in range(count)], share
    )
    torch.manual_seed(3)
    epochs = [[rows[n]["alone"] for n in range(count)] for _ in range(2)]
    # Five standard deviations of a binomial: one seed in a million falls outside.
    bound = 5 * math.sqrt(count * share * (1 - share))
    for epoch in epochs:
        assert abs(sum(epoch) - count * share) < bound
    assert epochs[0] != epochs[1]
    assert [rows[n]["at"] for n in range(count)] == list(range(count))
    torch.manual_seed(3)
    assert [rows[n]["alone"] for n in range(count)] == epochs[0]


def test_share_of_nothing_is_the_examples_themselves_and_draws_nothing(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    given = prepared(tiny_bert, toy_data, tmp_path)
    before = torch.get_rng_state()
    rows = RetrievalDropout().rows(given.model, given.train)
    assert all(row[READ] for row in rows.rows)
    assert [_plain(rows[n]) for n in range(len(rows))] == [_plain(row) for row in given.model.encode(given.train)]
    assert torch.equal(torch.get_rng_state(), before)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in row.items()}


@pytest.mark.parametrize("fusion", READERS)
def test_share_of_all_trains_as_without_retrieval(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_rag.examples_trainer import ExamplesTrainer

    losses: list[float] = []
    step = ExamplesTrainer.training_step

    def noted(self: Any, *arguments: Any) -> torch.Tensor:
        loss = step(self, *arguments)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(ExamplesTrainer, "training_step", noted)
    # The last weights are kept: which are best is asked of validation, where a fusion reads its neighbours.
    # BitFit starts from nothing drawn, so that what a fusion draws for its own parameters changes nothing here.
    same = {"method": "bitfit", "head_init": "random", "head_refit": False, "load_best_model_at_end": False}
    finish(tiny_bert, toy_data, tmp_path / "none", fusion="none", **same)
    alone = losses.copy()
    losses.clear()
    finish(tiny_bert, toy_data, tmp_path / "all", fusion=fusion, retrieval_dropout=1, **same)
    assert len(alone) == 6
    assert losses == alone
    names = ["adapter_model.safetensors", *(["head.safetensors"] if fusion == "concat" else [])]
    for name in names:
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()
    losses.clear()
    finish(tiny_bert, toy_data, tmp_path / "half", fusion=fusion, retrieval_dropout=0.5, **same)
    assert losses != alone


def test_random_documents_are_drawn_once_and_never_forbidden_ones(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    records = [{**record, "page": f"p{number % 3}"} for number, record in enumerate(toy_records(30, 4))]
    data = {**toy_data, "train": write_jsonl(tmp_path / "pages.jsonl", records)}
    given = prepared(tiny_bert, data, tmp_path, group_field="page", max_length=64, **{"fusion.k": 2})
    found = {row: [place for place, _ in given.train.neighbours.row(row)[:2]] for row in range(30)}  # type: ignore[union-attr]
    drawn = [RetrievalDropout(0.5, "random", seed).rows(given.model, given.train).others for seed in (7, 7, 8)]
    reads = [[row[READ] for row in rows] for rows in drawn]
    assert reads[0] == reads[1] != reads[2]
    for row, positions in enumerate(reads[0]):
        assert len(set(positions)) == 2
        assert not set(positions) & set(given.train.forbidden[row])
        assert {place % 3 for place in positions} <= {0, 1, 2} - {row % 3}
    assert sum(positions != found[row] for row, positions in enumerate(reads[0])) > 20
    wholly = RetrievalDropout(1, "random", 7).rows(given.model, given.train)
    assert [wholly[n][READ] for n in range(30)] == reads[0]


def test_interrupted_run_with_dropout_resumes_to_the_same_weights(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = {"fusion": "concat", "retrieval_dropout": 0.4, "retrieval_dropout_by": "random"}
    finish(tiny_bert, toy_data, tmp_path / "whole", **dropped)
    with cut_off_after_two_epochs(monkeypatch):
        finish(tiny_bert, toy_data, tmp_path / "out", **dropped)
    finish(tiny_bert, toy_data, tmp_path / "out", **dropped, resume=True)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("share", "by"), [(-0.1, "none"), (1.5, "none"), (math.nan, "none"), (0.5, "noise")])
def test_dropout_out_of_range_is_refused_where_it_is_made(share: float, by: str) -> None:
    with pytest.raises(ConfigError, match=r"retrieval_dropout(_by)? is"):
        RetrievalDropout(share, by)


def test_dropout_leaves_that_of_the_method_to_its_own_option(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    given = prepared(tiny_bert, toy_data, tmp_path, dropout=0.2, **{"method.lora_dropout": 0.4})
    shares = {name: module.p for name, module in given.model.named_modules() if isinstance(module, torch.nn.Dropout)}
    own = {name for name in shares if ".lora_dropout." in name}
    assert own
    assert {shares[name] for name in own} == {0.4}
    assert {share for name, share in shares.items() if name not in own} == {0.2}


# Minimum score


@pytest.mark.parametrize("retriever", ["exact", "bm25"])
def test_neighbours_below_the_minimum_are_none_in_every_split(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, retriever: str
) -> None:
    same = {"retriever": retriever, "fusion.k": 4}
    every = prepared(tiny_bert, toy_data, tmp_path, **same)
    scores = every.train.neighbours.scores  # type: ignore[union-attr]
    least = float(np.median(scores))
    some = prepared(tiny_bert, toy_data, tmp_path, min_score=least, **same)
    for name in ("train", "validation", "test"):
        before, after = (getattr(one, name).neighbours for one in (every, some))
        for row in range(len(before)):
            assert after.row(row) == [pair for pair in before.row(row) if pair[1] >= least]
        assert ((after.positions == -1) == np.isneginf(after.scores)).all()
    counts = [len(some.train.neighbours.row(row)) for row in range(60)]  # type: ignore[union-attr]
    whole, none = counts.count(4), counts.count(0)
    assert kept_lines(some) == [
        f"min_score {least:g}: of 60 train examples {whole} keep all 4 neighbours, {60 - whole - none} some, "
        f"{none} none ({sum(counts) / 60:.1f} on average)"
    ]
    assert kept_lines(every) == []


def test_minimum_that_nothing_reaches_is_a_warning_and_an_answer_without_retrieval(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    lines: list[str] = []
    changes = {"fusion": "concat", "retriever": "bm25", "min_score": 1000, "num_train_epochs": 1}
    result = run(from_mapping(settings(tiny_bert, toy_data, tmp_path / "out", **changes)), say=lines.append)
    assert "warning: no train example has any neighbour; lower --min_score, or use --fusion none" in lines
    assert result.answers is not None
    answers = result.answers.log_probs
    assert torch.equal(answers["with_retrieval"], answers["without_retrieval"])
    assert result.metrics["gate"] == 0.0  # of equals the cheapest


def test_vote_of_the_retrievers_neighbours_keeps_to_the_minimum(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    changes = {"fusion": "knn", "fusion.space": "retriever", "fusion.weight": 0.5, "min_score": 0.9}
    given = prepared(tiny_bert, toy_data, tmp_path, **changes)
    (line,) = kept_lines(given)
    assert line.startswith("min_score 0.9: of 30 validation examples")
    assert given.validation.neighbours is not None
    assert (given.validation.neighbours.scores[given.validation.neighbours.positions >= 0] >= 0.9).all()


@pytest.mark.parametrize("fusion", READERS)
def test_artefact_remembers_the_minimum(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str) -> None:
    every = prepared(tiny_bert, toy_data, tmp_path)
    least = float(np.median(every.test.neighbours.scores[:, :2]))  # type: ignore[union-attr]
    changes = {"fusion": fusion, "fusion.k": 2, "min_score": least, "fallback": False, "max_length": 64}
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", **changes)
    model = load(str(tmp_path / "out"))
    assert model.knowledge is not None
    assert model.knowledge.min_score == least
    texts = [record["text"] for record in toy_records(30, 3)]
    shown = [[one.score for one in said.neighbours] for said in model.predict(texts, explain=True)]
    assert all(score >= least for row in shown for score in row)
    assert {len(row) for row in shown} > {0}
    again = model.evaluate(model.task.read(_records(toy_data["test"])))
    assert {name: score.value for name, score in again.items()} == pytest.approx(metrics["test"], abs=1e-6)

    manifest = json.loads((tmp_path / "out/peft_rag.json").read_text())
    del manifest["knowledge"]["min_score"], manifest["sha256"]
    (tmp_path / "out/peft_rag.json").write_text(json.dumps(manifest))
    older = load(str(tmp_path / "out"))
    assert older.knowledge is not None
    assert older.knowledge.min_score is None
    assert all(len(said.neighbours) == 2 for said in older.predict(texts, explain=True))


def _records(path: str) -> Any:
    from peft_rag.records import read_records

    return read_records(path)


# Fallback


@pytest.mark.parametrize("fusion", READERS)
def test_shipped_model_is_no_worse_on_validation_than_without_retrieval(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str
) -> None:
    lines: list[str] = []
    seen: list[Prepared] = []
    config = from_mapping(
        settings(tiny_bert, toy_data, tmp_path / "out", fusion=fusion, max_length=64, num_train_epochs=1)
    )
    result = run(config, say=lines.append, observe=lambda given, answers: seen.append(given))
    model, split, task = seen[0].model, seen[0].validation, seen[0].splits.task
    targets = task.targets(split.examples)
    shipped = model.answer(model.split(split.examples))
    alone = model.outputs(split, fusion=NoFusion()).log_probs
    gained, without = task.merit(shipped, targets), task.merit(alone, targets)
    assert gained[0] > without[0] or (gained[0] == without[0] and gained[1] >= without[1] - 1e-5)

    gate = model.gate
    assert result.metrics["gate"] == gate
    assert json.loads((tmp_path / "out/metrics.json").read_text())["gate"] == gate
    assert json.loads((tmp_path / "out/peft_rag.json").read_text())["fusion"]["gate"] == gate
    (line,) = (line for line in lines if line.startswith("retrieval counts"))
    assert line.startswith(f"retrieval counts {gate:.0%} (validation accuracy {100 * without[0]:.1f} without, ")
    card = (tmp_path / "out/README.md").read_text()
    assert f"`{fusion}`, and count {gate:.0%} beside the answer without them, as validation decided." in card


@pytest.mark.parametrize("fusion", READERS)
def test_run_without_fallback_counts_neighbours_in_full(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str
) -> None:
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", fusion=fusion, fallback=False, num_train_epochs=1)
    assert metrics["gate"] is None
    assert "gate" not in json.loads((tmp_path / "out/peft_rag.json").read_text())["fusion"]
    assert load(str(tmp_path / "out")).gate == 1.0
    assert ", and count" not in (tmp_path / "out/README.md").read_text()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each pass of a model over a split, by the fusion that reads it."""
    noted: list[str] = []
    outputs = RetrievalAugmentedModel.outputs

    def counted(self: Any, split: Any, *, fusion: Any = None, **options: Any) -> Any:
        noted.append(type(fusion or self.effective_fusion).__name__)
        return outputs(self, split, fusion=fusion, **options)

    monkeypatch.setattr(RetrievalAugmentedModel, "outputs", counted)
    return noted


def effects(said: Prediction) -> list[float]:
    return [one.effect for one in said.neighbours]


def expected_effects(
    model: RetrievalAugmentedModel, split: Split, row: int, gate: float, alone: torch.Tensor
) -> list[float]:
    """Leave each neighbour of an example out of the mixture in turn, and compare log p of what was predicted."""
    assert split.neighbours is not None
    pairs = split.neighbours.row(row)[:2]
    kept = [pairs, *([pair for pair in pairs if pair is not left_out] for left_out in pairs)]
    asked = Split([split.examples[row]] * len(kept), Neighbours.of_rows(kept))
    mixed = gate * model.outputs(asked).log_probs.double().exp() + (1 - gate) * alone
    predicted = int(mixed[0].argmax())
    return [math.log(mixed[0, predicted] / other[predicted]) for other in mixed[1:]]


@pytest.mark.parametrize("fusion", READERS)
def test_gate_is_saved_and_mixes_answers_weights_and_controls(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str, passes: list[str]
) -> None:
    seen: list[Prepared] = []
    changes = {"fusion": fusion, "fusion.k": 2, "fallback": False, "num_train_epochs": 1, "max_length": 64}
    config = from_mapping(settings(tiny_bert, toy_data, tmp_path / "out", **changes))
    run(config, say=lambda line: None, observe=lambda given, answers: seen.append(given))
    model, split = seen[0].model, seen[0].test
    assert model.gate == 1.0
    outputs = model.outputs(split)
    alone, fused = (one.log_probs.double().exp() for one in (model.outputs(split, fusion=NoFusion()), outputs))
    wanted = ["random", "shuffled", "oracle", "filler"]
    controls = control_arms(model, split, outputs, wanted, seed=1)
    whole = [sum(one.weight for one in row) for row in model.fusion.shown(outputs, split, None)]
    assert 0 < min(whole) <= max(whole) <= 1 + 1e-6
    reader = type(model.fusion).__name__

    for gate in (0.0, 0.25, 1.0):
        model.gates["default"] = gate
        model.save_pretrained(tmp_path / f"gated-{gate}")
        again = load(str(tmp_path / f"gated-{gate}"))
        assert again.gate == gate
        passes.clear()
        answers = again.answer(again.split(split.examples)).double().exp()
        assert passes == {0.0: ["NoFusion"], 0.25: [reader, "NoFusion"], 1.0: [reader]}[gate]
        for row in range(len(split)):
            for label in range(3):
                expected = gate * float(fused[row, label]) + (1 - gate) * float(alone[row, label])
                assert float(answers[row, label]) == pytest.approx(expected, abs=1e-5)
        said = again.predict([example.text for example in split.examples], explain=True)
        shares = [sum(one.weight for one in answer.neighbours) for answer in said]
        assert shares == pytest.approx([gate * share for share in whole])
        assert [answer.probability for answer in said] == pytest.approx(answers.amax(-1).tolist(), abs=1e-6)
        for row in range(3 if gate else 0):
            assert effects(said[row]) == pytest.approx(expected_effects(again, split, row, gate, alone[row]), abs=1e-4)
        for arm, given in control_arms(model, split, outputs, wanted, seed=1).items():
            mixture = gate * controls[arm].double().exp() + (1 - gate) * alone
            assert torch.allclose(given.double().exp(), mixture, atol=1e-6), arm


def test_gate_of_nothing_needs_no_corpus_and_searches_nothing(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Prepared] = []
    config = from_mapping(settings(tiny_bert, toy_data, tmp_path / "out", fusion="concat", num_train_epochs=1))
    run(config, say=lambda line: None, observe=lambda given, answers: seen.append(given))
    model = seen[0].model
    model.gates["default"] = 0.0
    model.save_pretrained(tmp_path / "closed")
    Path(toy_data["train"]).unlink()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was searched")

    monkeypatch.setattr("peft_rag.knowledge.precompute_neighbours", refuse)
    assert model.split(seen[0].test.examples).neighbours is None
    closed = load(str(tmp_path / "closed")).to(model.device)
    assert closed.knowledge is None
    texts = [example.text for example in seen[0].test.examples]
    assert closed.predict(texts, explain=True) == closed.predict(texts) == model.predict(texts, explain=True)
    closed.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/peft_rag.json").read_text())["fusion"]["gate"] == 0.0


def test_another_fusion_has_no_gate_of_the_last(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> None:
    model = prepared(tiny_bert, toy_data, tmp_path).model
    model.gates["default"] = 0.0
    assert isinstance(model.effective_fusion, NoFusion)
    model.fusion = replace(model.fusion)
    assert model.gate == 1.0
    model.gates["default"] = 0.5
    model.fusions["default"] = NoFusion()
    assert model.gate == 1.0


def test_training_on_begins_without_a_gate_and_reads_neighbours(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    given = prepared(tiny_bert, toy_data, tmp_path, max_steps=1, eval_strategy="no", save_strategy="no")
    given.model.gates["default"] = 0.0
    train(given.model, given.train, given.validation, given.arguments, say=lambda line: None)
    assert given.model.gate == 1.0
    assert all(row[READ] for row in given.model.encode(given.train))


def test_damaged_gate_is_refused(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> None:
    finish(tiny_bert, toy_data, tmp_path / "out", fusion="concat", num_train_epochs=1)
    manifest = json.loads((tmp_path / "out/peft_rag.json").read_text())
    manifest["fusion"]["gate"] = 7
    del manifest["sha256"]
    (tmp_path / "out/peft_rag.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"the gate of a fusion is 7; it is a share from 0"):
        load(str(tmp_path / "out"))

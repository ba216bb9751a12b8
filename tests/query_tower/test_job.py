from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peft_rag.artefact import PUBLISHED, load, read_manifest
from peft_rag.config import from_mapping
from peft_rag.errors import ArtefactError, ConfigError, UnknownMethodError
from peft_rag.fusion.base import Split
from peft_rag.job import Answers, Prepared, prepare, run
from peft_rag.query_tower.tower import QueryTower
from peft_rag.retrieval.base import Neighbours
from tests.conftest import write_jsonl
from tests.query_tower.problem import TEMPLATE, corpus, examples

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


def records(count: int, seed: int) -> list[dict[str, str]]:
    return [{"id": one.id, "text": one.text, "label": one.labels[0]} for one in examples(count, seed) if one.labels]


def data_in(folder: Path, encoder_folder: str) -> dict[str, Any]:
    documents = [{"id": one.id, "text": one.text, "label": one.labels[0]} for one in corpus()]
    return {
        "train": write_jsonl(folder / "train.jsonl", records(32, 1)),
        "validation": write_jsonl(folder / "validation.jsonl", records(16, 2)),
        "test": write_jsonl(folder / "test.jsonl", records(16, 3)),
        "corpus": write_jsonl(folder / "corpus.jsonl", documents),
        "backbone": encoder_folder,
        "encoder": encoder_folder,
        "retriever": "exact",
        "max_length": 32,
        "fusion": "marginal",
        "fusion.k": 3,
        "fusion.temperature": 0.05,
        "fusion.template": TEMPLATE,
        "query_method": "lora",
        "query_learning_rate": 0.02,
        "learning_rate": 0.001,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "disable_tqdm": True,
        "output": str(folder / "out"),
    }


@pytest.fixture
def data(tmp_path: Path, encoder_folder: str) -> dict[str, Any]:
    return data_in(tmp_path, encoder_folder)


def finish(data: dict[str, Any], **changes: Any) -> tuple[Prepared, dict[str, Any], list[str]]:
    seen: list[Prepared] = []
    lines: list[str] = []

    def observe(prepared: Prepared, answers: Answers) -> None:
        seen.append(prepared)

    result = run(from_mapping({**data, **changes}), say=lines.append, observe=observe)
    return seen[0], dict(result.metrics), lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> Prepared:
    """One run that several tests look at."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_RAG_CACHE", str(folder / "cache"))
        return finish(data_in(folder, encoder_folder), fallback=False)[0]


@pytest.fixture
def artefact(finished: Prepared, tmp_path: Path) -> Path:
    return finished.model.save_pretrained(tmp_path / "artefact")


@pytest.mark.parametrize("loss", ["marginal", "pdist", "emdr2"])
def test_run_trains_a_tower_and_saves_what_answers_the_same(data: dict[str, Any], tmp_path: Path, loss: str) -> None:
    prepared, metrics, lines = finish(data, retriever_loss=loss, fallback=False)
    model, tower = prepared.model, prepared.model.tower
    assert tower is not None
    assert sum(line.startswith("query tower: lora") for line in lines) == 1
    assert sum(line.startswith("retrieval: ") for line in lines) == 2
    assert metrics["trainable_parameters"] > tower.report.trainable_parameters > 0

    manifest = read_manifest(tmp_path / "out")
    assert manifest["query_tower"]["method"]["name"] == "lora"
    assert set(manifest["files"]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "query_tower/adapter_config.json",
        "query_tower/adapter_model.safetensors",
    }
    assert set(manifest["files"]) < set(PUBLISHED)
    assert metrics["config"]["retriever_loss"] == loss
    assert ", found by queries tuned with the PEFT method `lora`." in (tmp_path / "out/README.md").read_text()
    weights = load_file(tmp_path / "out/query_tower/adapter_model.safetensors")
    assert all(bool(one.ne(0).any()) for one in weights.values())

    again = load(str(tmp_path / "out")).to(model.device)
    assert isinstance(again.tower, QueryTower)
    assert again.trained_state() == {}
    texts = [one.text for one in prepared.test.examples]
    assert np.array_equal(again.tower.encode(texts), tower.encode(texts))
    answers = again.answer(again.split(prepared.test.examples))
    torch.testing.assert_close(answers, model.answer(model.split(prepared.test.examples)), atol=1e-6, rtol=0)
    score = again.evaluate(prepared.test.examples)["accuracy"].value
    assert score == pytest.approx(metrics["test"]["accuracy"], abs=1e-9)
    again.save_pretrained(tmp_path / "again")
    assert read_manifest(tmp_path / "again")["files"] == manifest["files"]


def test_explanation_shows_what_the_tuned_query_found_with_its_weights_and_effects(
    finished: Prepared, artefact: Path
) -> None:
    model = load(str(artefact))
    assert model.tower is not None
    assert model.fusion_module is not None
    texts = [one.text for one in finished.test.examples]
    documents = model.knowledge.retriever.encoder.encode(corpus().texts)  # type: ignore[union-attr]
    cosines = model.tower.encode(texts) @ documents.T
    tau = float(model.fusion_module.log_temperature.exp())
    for row, said in enumerate(model.predict(texts, explain=True)):
        nearest = np.argsort(-cosines[row])[:3]
        assert [one.id for one in said.neighbours] == [f"d{place}" for place in nearest]
        assert [one.score for one in said.neighbours] == pytest.approx(cosines[row][nearest].tolist(), abs=1e-5)
        weights = np.exp(cosines[row][nearest] / tau)
        assert [one.weight for one in said.neighbours] == pytest.approx((weights / weights.sum()).tolist(), abs=1e-4)
        pairs = [(int(place), float(cosines[row][place])) for place in nearest]
        place = model.task.labels.index(said.labels[0])  # type: ignore[attr-defined]
        for number, one in enumerate(said.neighbours):
            kept = [pairs, [pair for other, pair in enumerate(pairs) if other != number]]
            asked = Split([finished.test.examples[row]] * 2, Neighbours.of_rows(kept))
            known, without = model.outputs(asked).log_probs[:, place].tolist()
            assert one.effect == pytest.approx(known - without, abs=1e-4)


def test_what_is_shipped_is_measured_and_chosen_on_tuned_neighbours(finished: Prepared) -> None:
    model = finished.model
    assert model.knowledge is not None
    for split in (finished.train, finished.validation, finished.test):
        tuned = model.knowledge.split(split.examples, 3, name="x", exclude_duplicates=True, tower=model.tower)
        frozen = model.knowledge.split(split.examples, 3, name="x", exclude_duplicates=True)
        assert split.neighbours is not None
        assert tuned.neighbours is not None
        assert np.array_equal(split.neighbours.positions, tuned.neighbours.positions)
        assert not np.array_equal(tuned.neighbours.scores, frozen.neighbours.scores)  # type: ignore[union-attr]


def test_training_data_as_corpus_never_shows_an_example_itself(data: dict[str, Any]) -> None:
    del data["corpus"]
    prepared, _, _ = finish(data, rerank=8)
    assert prepared.train.neighbours is not None
    for row, example in enumerate(prepared.train.examples):
        read = [prepared.splits.corpus[place].text for place, _ in prepared.train.neighbours.row(row)]
        assert read
        assert example.text not in read


def test_frozen_encoder_finds_as_many_as_are_to_be_ranked(data: dict[str, Any], tmp_path: Path) -> None:
    for rerank, expected in ((0, 8), (5, 5)):
        given = prepare(from_mapping({**data, "rerank": rerank}), tmp_path / "work", lambda line: None)
        assert given.train.neighbours is not None
        assert given.train.neighbours.k == expected  # 4 times k is more than the corpus holds
        assert all(len(row["passages"]) == expected for row in given.model.candidates(given.train))


def test_tower_has_a_step_size_of_its_own(data: dict[str, Any], tmp_path: Path) -> None:
    from peft_rag.examples_trainer import ExamplesTrainer
    from peft_rag.rows import Rows

    given = prepare(from_mapping(data), tmp_path / "work", lambda line: None)
    rows = Rows(given.model.candidates(given.train))
    trainer = ExamplesTrainer(model=given.model, args=given.arguments, train_dataset=rows, eval_dataset=rows)
    optimizer = trainer.create_optimizer()
    assert given.model.tower is not None
    own = {id(one) for one in given.model.tower.parameters() if one.requires_grad}
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    trained = {id(one) for one in given.model.parameters() if one.requires_grad}
    assert rates == {one: 0.02 if one in own else 0.001 for one in trained}


def test_interrupted_run_resumes_to_the_same_tower(data: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    from tests.test_job import cut_off_after_two_epochs

    data["num_train_epochs"] = 3
    finish(data, output=str(tmp_path / "whole"), retriever_loss="pdist")
    with cut_off_after_two_epochs(monkeypatch):
        finish(data, retriever_loss="pdist")
    finish(data, retriever_loss="pdist", resume=True)
    for name in ("adapter_model.safetensors", "head.safetensors", "query_tower/adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("by", ["none", "random"])
def test_neighbours_are_dropped_beside_a_tower(data: dict[str, Any], by: str) -> None:
    prepared, _, _ = finish(data, retrieval_dropout=0.5, retrieval_dropout_by=by, num_train_epochs=1)
    assert prepared.model.tower is not None


@pytest.mark.parametrize("damage", ["altered", "missing", "pickle"])
def test_damaged_tower_is_refused(artefact: Path, damage: str) -> None:
    path = artefact / "query_tower/adapter_model.safetensors"
    if damage == "pickle":
        (path.parent / "adapter_model.bin").write_bytes(b"x")
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    message = {"altered": "truncated or altered", "missing": "misses query_tower/adapter", "pickle": "a pickle"}[damage]
    with pytest.raises(ArtefactError, match=message):
        load(str(artefact))


def test_artefact_whose_gate_is_closed_needs_no_tower(
    finished: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finished.model
    monkeypatch.setitem(model.gates, "default", 0.0)
    model.save_pretrained(tmp_path / "closed")
    closed = load(str(tmp_path / "closed")).to(model.device)
    assert closed.tower is None
    texts = [one.text for one in finished.test.examples]
    assert closed.predict(texts) == model.predict(texts)
    closed.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/peft_rag.json").read_text())["query_tower"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "concat"}, r"query_method is 'lora', but fusion 'concat' does not read neighbours one by one"),
        ({"fusion": "none"}, r"Use --fusion marginal"),
        ({"query_method": "", "retriever_loss": "pdist"}, r"retriever_loss is given, but the retriever stays frozen"),
        ({"query_method": "", "rerank": 5}, r"rerank is given, but the retriever stays frozen. Name a"),
        ({"query_method": "", "query_learning_rate": 1e-3}, r"query_learning_rate is given, but the retriever"),
        ({"query_method": "", "query_method.r": 4}, r"query_method.r is given, but the retriever stays frozen"),
        (
            {"retriever_loss_weight": 2},
            r"retriever_loss_weight is 2.0, but counts for nothing with retriever_loss 'mar",
        ),
        ({"retriever_loss": "emdr2", "retriever_loss_temperature": 2}, r"Leave it out, or take --retriever_loss pdist"),
        ({"rerank": 2}, r"rerank is 2, fewer than the 3 neighbours read"),
        ({"retriever_loss": "emdr"}, r"retriever_loss is 'emdr'. Did you mean 'emdr2'"),
        ({"min_score": 0.1}, r"min_score is 0.1, a similarity by the frozen encoder, but query_method 'lora' trains"),
        ({"retriever": "bm25"}, r"retriever 'bm25' does not compare sentence vectors"),
        ({"retriever": "hybrid"}, r"retriever 'hybrid' does not compare sentence vectors"),
        ({"query_method": "prompt-tuning"}, r"query_method 'prompt-tuning' changes query vectors before"),
        ({"query_method": "head"}, r"query_method 'head' trains nothing"),
        ({"query_method.rank": 4}, r"method 'lora' has no option 'rank'"),
    ],
)
def test_combination_that_cannot_learn_is_refused_before_a_backbone_is_loaded(
    data: dict[str, Any], tmp_path: Path, monkeypatch: Any, changes: dict[str, Any], message: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr("peft_rag.backbone.load_backbone", refuse)
    if changes.get("query_method") == "":
        data = {name: value for name, value in data.items() if name != "query_learning_rate"}
    if "fusion" in changes:
        data = {name: value for name, value in data.items() if not name.startswith("fusion.")}
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(from_mapping({**data, **changes}), tmp_path / "work", lambda line: None)
    assert "\n" not in str(caught.value)


def test_unknown_query_method_suggests_the_nearest(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnknownMethodError, match="Did you mean 'lora'"):
        prepare(from_mapping({**data, "query_method": "lorra"}), tmp_path / "work", lambda line: None)


def test_options_of_the_query_method_are_a_part_of_their_own(data: dict[str, Any], tmp_path: Path) -> None:
    given = prepare(from_mapping({**data, "query_method.r": 2, "method.r": 4}), tmp_path / "work", lambda line: None)
    assert given.model.tower is not None
    assert {one.shape[0] for name, one in given.model.tower.named_parameters() if "lora_A" in name} == {2}

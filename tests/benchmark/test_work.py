from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_rag.benchmark.costs import off_difference
from peft_rag.benchmark.pieces import (
    Piece,
    _cell_spec,
    cell_piece,
    needed_by,
    open_pieces,
    search_piece,
    spec_of,
    trial_pieces,
)
from peft_rag.benchmark.plan import make_plan
from peft_rag.benchmark.results import choose, read_result, why_stale, write_result
from peft_rag.benchmark.suite import Suite
from peft_rag.benchmark.work import command_of, described_arm, plain_targets
from peft_rag.benchmark.worker import do
from peft_rag.cli.flags import read_flags
from peft_rag.config import from_mapping
from peft_rag.errors import ArtefactError, ConfigError
from peft_rag.tasks.text_classification import TextClassification

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

MakeSuite = Callable[..., Suite]


def finish(piece: Piece, folder: Path) -> dict[str, Any]:
    """Do a piece in this process, after what it rests on."""
    for needed in needed_by(piece, folder):
        if read_result(needed.target) is None:
            finish(needed, folder)
    result = do(spec_of(piece, folder))
    write_result(piece.target, result)
    return result


@pytest.mark.parametrize(("fusion", "arms"), [("knn", set()), ("concat", {"filler"})])
def test_cell_file_holds_arms_costs_tuning_and_what_made_it(
    toy_suite: MakeSuite, tmp_path: Path, fusion: str, arms: set[str]
) -> None:
    options = {"fusion.weight": 0.5} if fusion == "knn" else {"fusion.k": 1, "max_length": 48}
    suite = toy_suite(fusions=["none", {"name": fusion, "options": options}])
    cells = {cell.name: cell for cell in make_plan(suite).cells}
    result = finish(cell_piece(cells[f"kinds-lora-{fusion}-s0"], tmp_path), tmp_path)

    assert result["status"] == "done", result["error"]
    assert result["cell"]["method"] == "lora"
    common = {"untrained", "retrieval_alone", "off", "retrieved", "random", "shuffled", "oracle"}
    assert result["arms"].keys() == common | arms
    assert len(result["targets"]) == 30
    for arm in result["arms"].values():
        right = [one == target for one, target in zip(arm["predictions"], result["targets"], strict=True)]
        assert arm["scores"]["accuracy"] == pytest.approx(sum(right) / 30)
    assert result["arms"]["oracle"]["scores"]["accuracy"] >= result["arms"]["shuffled"]["scores"]["accuracy"]
    assert [trial["settings"] for trial in result["tuning"]["trials"]] == cells[f"kinds-lora-{fusion}-s0"].study.points
    assert result["tuning"]["chosen"] in cells[f"kinds-lora-{fusion}-s0"].study.points
    assert result["audit"] == {"threshold": 0.95, "exact": [], "near": result["audit"]["near"]}

    costs = result["costs"]
    assert costs["off_difference"] == 0
    assert costs["steps"] == 6
    # LoRA r=8 on query and value of two layers of width 32, and a head of three classes; or half or twice the rank.
    rank = result["tuning"]["chosen"]["method.r"]
    assert costs["trainable_parameters"] == 2 * 2 * 2 * 32 * rank + 3 * 32 + 3
    assert sum(costs["tensor_bytes"].values()) == 4 * costs["trainable_parameters"]
    assert costs["artefact_bytes"] > sum(costs["tensor_bytes"].values())
    for name in ("peak_memory_bytes", "train_seconds", "examples_per_second", "tokens_per_second", "load_seconds"):
        assert costs[name] > 0
    if result["gate"] == 0:  # validation gained nothing by neighbours: nothing is searched any more
        assert (costs["index_bytes"], costs["index_seconds"]) == (0, 0.0)
    else:
        assert costs["index_bytes"] >= 60 * 32 * 4
        assert costs["index_seconds"] > 0
    for one in costs["latency_ms"].values():
        assert 0 < one["p50"] <= one["p95"]
    assert costs["latency_ms"].keys() == {"without", "with"}
    assert result["commit"] == "" or len(result["commit"]) == 40
    assert "peft_rag.job" in result["sources"]
    assert any(name.startswith("peft_rag_adapters") for name in result["sources"])
    assert not any(name.startswith(("peft_rag.cli", "peft_rag.benchmark.runner")) for name in result["sources"])
    json.dumps(result)


def test_index_of_a_row_with_a_retriever_of_its_own_is_its_own(toy_suite: MakeSuite, tmp_path: Path) -> None:
    own = {"fusion.k": 1, "max_length": 48, "retriever": "bm25"}
    fusions = ["none", {"name": "concat", "options": own}, {"name": "marginal", "options": {"fusion.k": 1}}]
    suite = toy_suite(fusions=fusions, methods=["head"], seeds=[0])
    cell = next(cell for cell in make_plan(suite).cells if cell.fusion.label == "concat")
    found = finish(search_piece(cell.search, tmp_path), tmp_path)
    assert [one is not None for one in found["own_indexes"]] == [False, True, False]
    for cell in make_plan(suite).cells:
        for trial in trial_pieces(cell.study, tmp_path):
            finish(trial, tmp_path)
        _, spec = _cell_spec(cell, tmp_path)
        searched = found["own_indexes"][1] if cell.fusion.label == "concat" else found
        assert spec["index"]["index_bytes"] == searched["index_bytes"]
    assert found["own_indexes"][1]["index_bytes"] != found["index_bytes"]


def test_command_of_a_cell_repeats_its_run(toy_suite: MakeSuite) -> None:
    cell = make_plan(toy_suite()).cells[2]
    settings = cell.settings({"learning_rate": 1e-3})
    flags = command_of(settings, "runs/x").removeprefix("peft-rag train ").split()
    again, original = from_mapping(read_flags(flags)), from_mapping({**settings, "output": "runs/x"})
    assert again == original


def test_leaks_are_found_by_place_in_the_test_split(
    toy_suite: MakeSuite, toy_data: dict[str, str], tmp_path: Path
) -> None:
    train = [json.loads(line) for line in Path(toy_data["train"]).read_text().splitlines()]
    test = Path(toy_data["test"])
    rows = test.read_text().splitlines()
    rows[4] = json.dumps({**train[7], "id": "copy", "text": train[7]["text"].upper()})
    test.write_text("\n".join(rows) + "\n")
    piece = cell_piece(make_plan(toy_suite()).cells[0], tmp_path)
    search = finish(needed_by(piece, tmp_path)[0], tmp_path)
    assert search["audit"]["exact"] == [4]
    assert 4 not in search["audit"]["near"]


def test_leaks_into_a_corpus_that_a_fusion_names_for_itself_are_found(
    toy_suite: MakeSuite, toy_data: dict[str, str], tmp_path: Path
) -> None:
    leaked = json.loads(Path(toy_data["test"]).read_text().splitlines()[2])
    corpus = tmp_path / "further.jsonl"
    corpus.write_text(json.dumps(leaked) + "\n" + Path(toy_data["train"]).read_text().replace('"id": "', '"id": "own-'))
    own = {"name": "knn", "label": "knn-further", "options": {"corpus": str(corpus)}}
    for fusions, found in ((["knn"], []), (["knn", own], [2])):
        piece = cell_piece(make_plan(toy_suite(fusions=fusions, methods=["head"], seeds=[0])).cells[0], tmp_path)
        search = finish(needed_by(piece, tmp_path / str(len(fusions)))[0], tmp_path / str(len(fusions)))
        assert search["audit"]["exact"] == found


def test_trial_that_diverges_says_so_and_a_cell_without_trials_cannot_run(toy_suite: MakeSuite, tmp_path: Path) -> None:
    from peft_rag.benchmark.pieces import CannotRun

    wild = {"learning_rate": [1e30, 1e29], "optim": ["sgd"], "max_grad_norm": [0.0]}
    suite = toy_suite(methods=[{"name": "lora", "search": wild}], budget={"max_steps": 6, "trials": 2})
    piece = cell_piece(make_plan(suite).cells[0], tmp_path)
    search, *trials = needed_by(piece, tmp_path)
    assert finish(search, tmp_path)["status"] == "done"
    for result in (finish(trial, tmp_path) for trial in trials):
        assert result["status"] == "diverged"
        assert "loss is" in result["error"]
    with pytest.raises(CannotRun, match=r"none of 2 trials ended well; the first: the (validation )?loss is"):
        spec_of(piece, tmp_path)


def test_failure_is_a_result_with_its_error(toy_suite: MakeSuite, tmp_path: Path) -> None:
    suite = toy_suite(fusions=[{"name": "knn", "options": {"fusion.k": 100}}], seeds=[0])
    result = finish(needed_by(cell_piece(make_plan(suite).cells[0], tmp_path), tmp_path)[0], tmp_path)
    assert result["status"] == "failed"
    assert "RetrievalError" in result["error"]
    assert "60 documents, fewer than the 100 neighbours" in result["error"]


def test_code_that_changes_while_a_piece_runs_makes_it_fail(
    toy_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = iter(["before", "after"])
    monkeypatch.setattr("peft_rag.benchmark.provenance.all_sources_hash", lambda packages: next(hashes))
    plan = make_plan(toy_suite(methods=["head"], seeds=[0]))
    result = finish(needed_by(cell_piece(plan.cells[0], tmp_path), tmp_path)[0], tmp_path)
    assert (result["status"], result["error"]) == ("failed", "the code changed while it ran; run it again with --redo")
    assert "audit" not in result


def test_best_trial_is_chosen_by_metric_then_loss_then_order() -> None:
    def trial(rate: float, accuracy: float, loss: float, status: str = "done") -> dict[str, Any]:
        about = {"settings": {"learning_rate": rate}, "status": status, "main_metric": "accuracy"}
        return about | {"validation": {"accuracy": accuracy, "loss": loss}}

    assert choose([trial(1, 0.5, 0.1), trial(2, 0.6, 0.9)]) == {"learning_rate": 2}
    assert choose([trial(1, 0.6, 0.2), trial(2, 0.6, 0.1)]) == {"learning_rate": 2}
    assert choose([trial(1, 0.6, 0.1), trial(2, 0.6, 0.1)]) == {"learning_rate": 1}
    assert choose([trial(1, 0.6, 0.1), trial(2, 0.9, 0.0, "failed")]) == {"learning_rate": 1}
    assert choose([trial(1, 0.6, 0.1, "diverged")]) is None


def test_result_counts_only_for_the_suite_and_the_code_that_made_it(toy_suite: MakeSuite, tmp_path: Path) -> None:
    plan = make_plan(toy_suite(methods=["head"], fusions=["knn"], seeds=[0]))
    piece = cell_piece(plan.cells[0], tmp_path)
    made = {"sources": {"peft_rag.errors": "0" * 16}, "status": "done", "suite_fingerprint": piece.fingerprint}
    write_result(piece.target, made)
    assert why_stale(made, piece.fingerprint) == "the code changed (peft_rag.errors)"
    with pytest.raises(
        ConfigError, match=r"1 of the results in .* 'kinds-head-knn-s0' first: the code changed .*--redo"
    ):
        open_pieces(plan, tmp_path, redo=False)
    assert [one.kind for one in open_pieces(plan, tmp_path, redo=True)] == ["search", "trial", "trial", "cell"]
    write_result(piece.target, {**made, "sources": {}})
    assert open_pieces(plan, tmp_path, redo=False) == []
    longer = make_plan(toy_suite(methods=["head"], fusions=["knn"], seeds=[0], budget={"max_steps": 7, "trials": 2}))
    with pytest.raises(ConfigError, match="the suite or its data changed"):
        open_pieces(longer, tmp_path, redo=False)
    write_result(piece.target, {**made, "sources": {}, "status": "failed"})
    assert open_pieces(plan, tmp_path, redo=False) == []
    assert open_pieces(plan, tmp_path, redo=True)[-1].name == "kinds-head-knn-s0"
    piece.target.write_text("{")
    with pytest.raises(ArtefactError, match=r"cannot be read .* Remove it"):
        open_pieces(plan, tmp_path, redo=False)


def test_arm_of_several_labels_lists_classes() -> None:
    task = TextClassification(labels=("a", "b", "c"), multi_label=True)
    targets = torch.tensor([[1, 0, 1], [0, 0, 0]])
    sure = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]], [[0.7, 0.3], [0.9, 0.1], [0.6, 0.4]]]).log()
    arm = described_arm(task, sure, targets)
    assert arm["predictions"] == [[0, 2], []] == plain_targets(task, targets)
    assert arm["tallies"] == [[2, 2, 2], [0, 0, 0]]
    assert arm["scores"]["accuracy"] == 1.0


def test_off_difference_sees_a_backbone_that_changed(tiny_bert: str) -> None:
    from peft_rag.backbone import load_backbone
    from peft_rag.model import RetrievalAugmentedModel

    model = RetrievalAugmentedModel(load_backbone(tiny_bert), TextClassification(labels=("a", "b")), max_length=32)
    model.attach("lora")
    texts = ["apple pear", "iron zinc tin"]
    assert off_difference(model, texts) == 0
    with torch.no_grad():
        model.backbone.get_base_model().embeddings.word_embeddings.weight *= -1
    assert off_difference(model, texts) > 1e-4


def test_cells_of_a_suite_leave_out_the_same_records_and_say_so(toy_suite: MakeSuite, tmp_path: Path) -> None:
    suite = toy_suite()
    test = Path(suite.data[0].sources["test"])
    test.write_text('{"text": "", "label": "metal"}\n' + test.read_text(), encoding="utf-8")
    skipping = toy_suite(options={**suite.options, "on_bad_record": "skip"})
    cells = {cell.name: cell for cell in make_plan(skipping).cells}
    result = finish(cell_piece(cells["kinds-head-knn-s0"], tmp_path), tmp_path)
    assert result["status"] == "done", result["error"]
    assert result["left_out"]["test"]["count"] == 1
    assert len(result["targets"]) == 30


@pytest.mark.parametrize("redo", [False, True])
def test_new_results_never_stand_beside_stale_ones_in_a_table(toy_suite: MakeSuite, tmp_path: Path, redo: bool) -> None:
    suite = toy_suite(methods=["head"], fusions=["knn"], seeds=[0, 1])
    plan, second = make_plan(suite), make_plan(suite, {"seed": frozenset({"1"})})
    old = cell_piece(plan.cells[0], tmp_path)
    made = {"sources": {}, "status": "done", "suite_fingerprint": old.fingerprint}
    write_result(old.target, made)
    assert [one.kind for one in open_pieces(second, tmp_path, redo=redo)] == ["search", "trial", "trial", "cell"]
    write_result(old.target, {**made, "sources": {"peft_rag.errors": "0" * 16}})
    with pytest.raises(
        ConfigError, match=r"1 of the results in .* that --only leaves out no longer count, 'kinds-head-"
    ):
        open_pieces(second, tmp_path, redo=redo)
    assert len(open_pieces(plan, tmp_path, redo=True)) == 6


def test_trial_that_other_code_made_is_not_run_again_unasked(toy_suite: MakeSuite, tmp_path: Path) -> None:
    plan = make_plan(toy_suite(methods=["head"], fusions=["knn"], seeds=[0]))
    trial = needed_by(cell_piece(plan.cells[0], tmp_path), tmp_path)[1]
    made = {"sources": {"peft_rag.errors": "0" * 16}, "status": "done", "suite_fingerprint": trial.fingerprint}
    write_result(trial.target, made)
    with pytest.raises(ConfigError, match=r"1 of the results in .* no longer count, 'kinds-head trial 1' first: the"):
        open_pieces(plan, tmp_path, redo=False)
    assert trial in open_pieces(plan, tmp_path, redo=True)

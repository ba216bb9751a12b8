import json

import numpy as np
import pytest

from peft_rag.benchmark.report.analysis import analyse, overall_ranks
from peft_rag.benchmark.report.checks import notices
from peft_rag.benchmark.report.grids import costs_grid, results_grid
from peft_rag.benchmark.report.markdown import markdown
from peft_rag.benchmark.report.results import RowKey, read_results
from peft_rag.benchmark.report.words import findings
from peft_rag.errors import ArtefactError
from tests.benchmark.report.simulated import write_results

SMALL = {"datasets": ("topics",), "methods": ("head", "lora"), "fusions": ("knn",), "examples": 60}


def read(folder, **about):
    return read_results(write_results(folder, **{**SMALL, **about}))[0]


def row_of(results, method, fusion):
    return next(row for row in results.rows if row.key == RowKey(method, fusion))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_row_without_retrieval_is_the_arm_of_the_cell_that_covers_it(tmp_path):
    results = read(tmp_path)
    assert {row.label for row in results.rows} == {"head + knn", "lora + knn", "head", "lora", "retrieval alone"}
    plain, retrieved = row_of(results, "lora", "none"), row_of(results, "lora", "knn")
    assert set(plain.arms.values()) == {"off"}
    assert set(retrieved.arms.values()) == {"retrieved"}
    content = json.loads((results.folder / "topics-lora-knn-s1.json").read_text())
    right = [
        float(one == target)
        for one, target in zip(content["arms"]["off"]["predictions"], content["targets"], strict=True)
    ]
    assert plain.tallies([1]).scores[0].tolist() == right


def test_a_cell_of_its_own_goes_before_a_covering_one(tmp_path):
    results = read(tmp_path, fusions=("knn", "none"))
    assert set(row_of(results, "lora", "none").arms.values()) == {"off"}
    assert all(cell.fusion == "none" for cell in row_of(results, "lora", "none").cells.values())


def test_a_knn_cell_stands_for_no_retrieval_where_the_file_does_not_say(tmp_path):
    changes = {f"topics-lora-knn-s{seed}": {"covers": []} for seed in range(3)}
    assert row_of(read(tmp_path, changes=changes), "lora", "none").complete


def test_retrieval_alone_is_that_of_one_fusion(tmp_path):
    lost = tuple(f"topics-{method}-concat-s1" for method in SMALL["methods"])
    results = read(tmp_path, fusions=("knn", "concat"), failed=lost)
    alone = row_of(results, "retrieval alone", "none")
    assert {seed: cell.fusion for seed, cell in alone.cells.items()} == {0: "knn", 1: "knn", 2: "knn"}


def test_a_reference_row_without_a_result_is_said_to_lack(tmp_path):
    results = read(tmp_path)
    (lacking,) = analyse(results, {"method": "head", "fusion": "plain"})
    (there,) = analyse(results, {"method": "head"})
    said = "No row is compared with a reference: the one that the suite names, or head, has no result here."
    assert said in findings(lacking)
    assert said not in findings(there)


def test_a_data_set_in_which_every_row_failed_has_a_report(tmp_path):
    lost = tuple(f"topics-{method}-knn-s{seed}" for method in SMALL["methods"] for seed in range(3))
    results = read(tmp_path, datasets=("topics", "other"), failed=lost)
    tables = analyse(results, {})
    assert {placing.ranks[1] for placing in overall_ranks(tables).values()} == {2.5}
    assert "No row has all its seeds yet." in markdown(results, tables)


def test_failed_and_diverged_cells_stay_rows_and_rank_last(tmp_path):
    results = read(tmp_path, failed=("topics-lora-knn-s0",), diverged=("topics-lora-knn-s2",))
    row = row_of(results, "lora", "knn")
    assert row.shortfall == "1 of 3 seeds, 1 failed, 1 diverged"
    [table] = analyse(results, {})
    assert [one.row.label for one in table.results[-2:]] == ["lora + knn", "lora"]
    assert [one.rank for one in table.results if one.row.key.method == "lora"] == [4.5, 4.5]
    assert "lora + knn" not in {one.row.label for one in table.alike}
    assert notices(results)[:2] == ["Runs diverged, 1: topics-lora-knn-s2.", "Runs failed, 1: topics-lora-knn-s0."]


def test_a_table_of_failures_alone_is_still_a_table(tmp_path):
    names = tuple(f"topics-{method}-knn-s0" for method in ("head", "lora"))
    results = read(tmp_path, seeds=(0,), failed=names)
    [table] = analyse(results, {})
    assert (table.examples, table.best, table.reference, table.alike) == (0, None, None, [])


def test_missing_cells_are_named_and_have_no_rank(tmp_path):
    folder = write_results(tmp_path, **{**SMALL, "datasets": ("topics", "intents")})
    (folder / "topics-lora-knn-s1.json").unlink()
    for seed in range(3):
        (folder / f"intents-head-knn-s{seed}.json").unlink()
    [results] = read_results(folder)
    assert results.missing == [
        "intents: head + knn, every seed",
        "intents: head, every seed",
        "topics: lora + knn, seed 1",
        "topics: lora, seed 1",
    ]
    tables = analyse(results, {})
    lora = next(one for one in tables[1].results if one.row.label == "lora + knn")
    assert (tables[1].label, lora.rank, lora.row.shortfall) == ("topics", None, "2 of 3 seeds, 1 missing")
    assert [key.label for key in overall_ranks(tables)] == ["retrieval alone"]


def test_a_known_effect_is_found_and_its_absence_too(tmp_path):
    results = read(tmp_path, methods=("head", "lora", "twin"), examples=400)
    for path in results.folder.glob("topics-twin-*.json"):
        lora = json.loads((results.folder / path.name.replace("twin", "lora")).read_text())
        edit(path, arms=lora["arms"])
    [results] = read_results(tmp_path)
    [table] = analyse(results, {"method": "lora", "fusion": "knn"})
    found = {one.row.label: one for one in table.results}
    assert table.reference == RowKey("lora", "knn")
    assert found["head"].against_reference.verdict == "worse"
    assert found["twin + knn"].against_reference.verdict == "no difference"
    assert found["lora + knn"].against_none.verdict == "better"
    assert found["lora + knn"].against_reference is None
    assert set(found["head"].mcnemar) == {0, 1, 2}
    assert found["lora + knn"].against_controls["oracle"].verdict == "worse"
    assert found["lora + knn"].against_controls["shuffled"].verdict == "better"


def test_values_equal_plain_means_of_the_files(tmp_path):
    results = read(tmp_path)
    [table] = analyse(results, {})
    files = [json.loads((results.folder / f"topics-lora-knn-s{seed}.json").read_text()) for seed in range(3)]
    scores = [file["arms"]["retrieved"]["scores"]["accuracy"] for file in files]
    one = next(one for one in table.results if one.row.label == "lora + knn")
    assert one.metrics["accuracy"].mean == pytest.approx(sum(scores) / 3)
    assert one.quality.value == pytest.approx(sum(scores) / 3)
    assert table.metric_is_tallied
    leaked, clean = {3, 17, 5, 20, 21}, []
    for file in files:
        pairs = list(zip(file["arms"]["retrieved"]["predictions"], file["targets"], strict=True))
        kept = [guess == target for place, (guess, target) in enumerate(pairs) if place not in leaked]
        clean.append(sum(kept) / len(kept))
    assert one.clean == pytest.approx(sum(clean) / 3)
    assert table.leaks.in_words().startswith("Of 60 test examples, 2 stand word for word in the training data")


def test_answers_of_several_classes_and_graded_ones_are_read(tmp_path):
    folder = write_results(tmp_path, **{**SMALL, "seeds": (0,), "methods": ("head",)})
    path = folder / "topics-head-knn-s0.json"
    arm = {"scores": {"micro_f1": 0.75}, "predictions": [[1, 0], [], ["b"]]}
    graded = {"scores": {"micro_f1": 0.5}, "example_scores": [0.5, 0.25, 1.0]}
    edit(path, main_metric="micro_f1", targets=[[0, 1], [2], ["b"]], arms={"off": arm, "retrieved": graded}, audit=None)
    [results] = read_results(folder)
    assert row_of(results, "head", "none").tallies().scores.tolist() == [[1.0, 0.0, 1.0]]
    assert row_of(results, "head", "knn").tallies().scores.tolist() == [[0.5, 0.25, 1.0]]
    [table] = analyse(results, {})
    assert not table.metric_is_tallied
    assert table.leaks.in_words() == "No leak audit was taken."
    assert [one.mcnemar for one in table.results] == [{}, {}]


def test_a_folder_of_suites_gives_one_result_set_each_and_other_files_are_left_alone(tmp_path):
    write_results(tmp_path, suite="first", **SMALL)
    write_results(tmp_path, suite="second", **SMALL)
    (tmp_path / "first" / "trials").mkdir()
    (tmp_path / "first" / "trials" / "a.json").write_text('{"format": 1, "trial": {}}')
    (tmp_path / "other.json").write_text('{"metrics": 1}')
    assert [results.suite for results in read_results(tmp_path)] == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "is of format 2, not 1"),
        ({"status": "lost"}, r"holds a value of the wrong kind \(status 'lost'\)"),
        ({"cell": {"dataset": "topics"}}, "lacks the field 'shots'"),
        ({"targets": [0, 1]}, "holds a value of the wrong kind"),
        ({"audit": {"threshold": 0.9, "exact": [60], "near": []}}, "an example beyond the 60 that there are"),
        ({"suite": "another"}, "holds cells of two suites, 'simulated' and 'another'"),
        (
            {"cell": {**dict.fromkeys(("dataset", "backbone"), "x"), "shots": "many", "method": "a", "fusion": "b"}},
            "wrong kind",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, changes, message):
    folder = write_results(tmp_path, **SMALL)
    edit(folder / "topics-lora-knn-s1.json", **changes)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_results(tmp_path)
    assert "topics-lora-knn-s1.json" in str(caught.value)


def test_cells_that_do_not_belong_together_are_refused(tmp_path):
    folder = write_results(tmp_path, **SMALL)
    path = folder / "topics-lora-knn-s1.json"
    content = json.loads(path.read_text())
    (folder / "copy.json").write_text(path.read_text())
    with pytest.raises(ArtefactError, match=r"copy.json and topics-lora-knn-s1.json are of the same cell"):
        read_results(tmp_path)
    (folder / "copy.json").unlink()
    edit(path, targets=[(one + 1) % 5 for one in content["targets"]])
    with pytest.raises(ArtefactError, match="were tested on different splits of 'topics'"):
        read_results(tmp_path)


def test_an_empty_folder_and_broken_json_are_one_line(tmp_path):
    with pytest.raises(ArtefactError, match="holds no results of a benchmark"):
        read_results(tmp_path)
    with pytest.raises(ArtefactError, match="holds no results"):
        read_results(tmp_path / "absent")
    (tmp_path / "half.json").write_text('{"format": 1, "ce')
    with pytest.raises(ArtefactError, match=r"half.json' cannot be read"):
        read_results(tmp_path)


def test_cells_made_differently_are_said_to_be(tmp_path):
    one, other = "topics-lora-knn-s1", "topics-head-knn-s2"
    results = read(tmp_path, changes={one: {"commit": "ffff", "dirty": True, "sources": {"peft_rag.training": "bb"}}})
    path = results.folder / f"{other}.json"
    content = json.loads(path.read_text())
    costs = {**content["costs"], "steps": 50, "off_difference": 0.1}
    tuning = {**content["tuning"], "chosen": {"learning_rate": 0.5}}
    edit(path, setting_fingerprint="sha256:cd", costs=costs, tuning=tuning)
    said = " ".join(notices(read_results(tmp_path)[0]))
    for sentence in (
        f"Cells made with uncommitted changes in the sources, 1: {one}.",
        "Commits differ: 0123456789 (5 cells), ffff (1 cell).",
        "topics: the suite's options or the data differ: ababababab (5 cells), cd (1 cell).",
        "Topics: methods with other settings from cell to cell, 1: head (",
        "or learning_rate 0.5).",
        "Sources differ between cells, 1: peft_rag.training.",
        "topics: training steps differ: 100 (5 cells), 50 (1 cell).",
        f"Cells whose backbone is not as it was, with its adapter off, 1: {other}.",
    ):
        assert sentence in said, said


def test_cells_made_alike_need_no_notice(tmp_path):
    assert notices(read(tmp_path)) == []


def test_rows_of_several_machines_say_which_one_they_were_measured_on(tmp_path):
    alone = analyse(read(tmp_path / "one"), {})[0]
    assert all(not result.machines for result in alone.results)
    assert "machine" not in [*results_grid(alone).titles, *costs_grid(alone).titles]

    moved = {"machine": {"processor": "Other", "cores": 1, "device": "NVIDIA H200"}}
    results = read(tmp_path / "two", changes={"topics-lora-knn-s1": moved})
    said = "Machines differ: #1 A processor, 2 cores (5 cells), #2 Other, 1 core, NVIDIA H200 (1 cell)."
    assert said in notices(results)
    table = analyse(results, {})[0]
    named = {result.row.label: result.machines for result in table.results}
    assert named["lora + knn"] == named["lora"] == ("#1", "#2")
    assert named["head"] == ("#1",)
    for grid in (results_grid(table), costs_grid(table)):
        column = grid.titles.index("machine")
        shown = {texts[0]: texts[column] for texts in grid.texts()}
        assert (shown["lora + knn"], shown["head"]) == ("#1, #2", "#1")


def test_a_peer_of_another_library_is_a_row_like_any_other(tmp_path):
    results = read(tmp_path)
    path = results.folder / "topics-head-knn-s0.json"
    content = json.loads(path.read_text())
    key = {**content["cell"], "method": "setfit", "fusion": "none", "external": True}
    (results.folder / "setfit.json").write_text(
        json.dumps({**content, "cell": key, "covers": [], "arms": {"off": content["arms"]["off"]}})
    )
    [results] = read_results(tmp_path)
    row = row_of(results, "setfit", "none")
    assert (row.external, row.label, row.done) == (True, "setfit", (0,))
    assert np.isin(row.tallies().scores, (0, 1)).all()


def test_tallies_make_the_metric_its_interval_and_the_score_without_leaks(tmp_path):
    folder = write_results(tmp_path, **{**SMALL, "methods": ("head", "lora")})
    draw, counts = np.random.default_rng(0), {}
    actual = draw.integers(0, 3, 60)
    for path in sorted(folder.glob("*.json")):
        content, arms = json.loads(path.read_text()), {}
        for name in content["arms"]:
            right = draw.binomial(actual, 0.8 if "lora" in path.stem else 0.5)
            tallies = np.stack([right, right + draw.binomial(1, 0.2, 60), actual], axis=1)
            counts[path.stem, name] = tallies
            f1 = 2 * tallies[:, 0].sum() / tallies[:, 1:].sum()
            arms[name] = {"scores": {"entity_f1": f1, "perplexity": 12.34}, "tallies": tallies.tolist()}
        edit(path, main_metric="entity_f1", statistic="f1", plain_scores=["perplexity"], written=7, arms=arms)
    [results] = read_results(folder)
    [table] = analyse(results, {"method": "head", "fusion": "knn"})
    assert table.metric_is_tallied
    found = {one.row.label: one for one in table.results}
    one, kept = found["lora + knn"], np.delete(np.arange(60), [3, 17, 5, 20, 21])
    of = [counts[f"topics-lora-knn-s{seed}", "retrieved"] for seed in range(3)]
    assert one.quality.value == pytest.approx(np.mean([2 * x[:, 0].sum() / x[:, 1:].sum() for x in of]))
    assert one.quality.low < one.quality.value < one.quality.high
    assert one.clean == pytest.approx(np.mean([2 * x[kept, 0].sum() / x[kept, 1:].sum() for x in of]))
    assert one.against_reference.verdict == "better"
    assert one.mcnemar == {}
    shown = markdown(results, [table])
    assert "| 12.3 ± 0.0 |" in shown
    assert "Scores of written texts rest on the first 7 test examples, entity\\_f1 on all." in shown


def test_cells_of_one_data_set_that_count_otherwise_are_refused(tmp_path):
    folder = write_results(tmp_path, **{**SMALL, "methods": ("head",), "seeds": (0, 1)})
    tallies = [[1, 1, 1]] * 60
    arms = {"off": {"scores": {"accuracy": 1.0}, "tallies": tallies}}
    edit(folder / "topics-head-knn-s1.json", statistic="f1", arms=arms)
    with pytest.raises(ArtefactError, match=r"s0.json and .*s1.json are judged by different metrics .*or counted"):
        read_results(folder)
    edit(folder / "topics-head-knn-s1.json", statistic="mean")
    with pytest.raises(
        ArtefactError, match=r"of the wrong kind \(answers of shape \(60, 3\) to 60 examples under 'mean'"
    ):
        read_results(folder)
    edit(folder / "topics-head-knn-s1.json", statistic="median")
    with pytest.raises(ArtefactError, match=r"of the wrong kind .*statistic 'median'"):
        read_results(folder)

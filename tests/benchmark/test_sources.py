"""Where a suite's data lies."""

from pathlib import Path

from peft_rag.benchmark.sources import content_hashes, why_absent
from peft_rag.benchmark.suite import DataSet


def test_some_records_of_a_file_are_there_as_its_file_is_and_change_as_it_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    sliced = DataSet("mine", train="${HERE}/a.jsonl[:2]", test="${HERE}/a.jsonl")
    assert why_absent(sliced) == "there is no file ${HERE}/a.jsonl[:2]"
    (tmp_path / "a.jsonl").write_text("{}")
    assert why_absent(sliced) == ""
    first = content_hashes(sliced)
    assert first["train"] == first["test"]
    (tmp_path / "a.jsonl").write_text("{} {}")
    assert content_hashes(sliced)["train"] != first["train"]


def test_a_folder_that_is_not_there_is_absent_and_demo_and_hub_data_are_not_looked_for(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    folder = tmp_path / "data"
    assert why_absent(DataSet("mine", train=str(folder), test="demo:wiki-topics/test")) == (
        f"there is no file or folder {folder}"
    )
    folder.mkdir()
    assert why_absent(DataSet("mine", train=str(folder), test="some/hub-data")) == ""
    assert why_absent(DataSet("mine", train="$NOWHERE/a", test="b")) == (
        "'$NOWHERE/a': the variable NOWHERE is not set. Set it to the folder that holds the data"
    )

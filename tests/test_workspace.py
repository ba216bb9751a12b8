import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from peft_rag.config import RunConfig
from peft_rag.errors import ArtefactError, ConfigError, TrainingError
from peft_rag.files import new_folder
from peft_rag.workspace import working_folder


@pytest.fixture
def config(tmp_path):
    return RunConfig(train="a.jsonl", output=str(tmp_path / "out"), options={"method": {"targets": ("q", "v")}})


def cut_off(config, error=KeyboardInterrupt):
    """Begin a run and end it with an error after its first checkpoint."""
    output = Path(config.output)

    def run():
        with working_folder(config, output, main=True) as working:
            (working / "checkpoint").write_text("weights")
            raise error("the run ended early")

    with pytest.raises(error):
        run()
    return output.with_name(f"{output.name}.partial")


def test_working_folder_lies_beside_the_output_and_vanishes_when_all_went_well(config, tmp_path):
    with working_folder(config, tmp_path / "out", main=True) as working:
        assert working == tmp_path / "out.partial"
        stored = json.loads((working / "run.json").read_text())
        assert stored["train"] == "a.jsonl"
        assert "resume" not in stored
    assert list(tmp_path.iterdir()) == []


def test_working_folder_vanishes_with_an_error_of_the_users(config, tmp_path):
    cut_off(config, TrainingError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_working_folder_outlives_an_interruption_and_a_fault(config, error):
    assert (cut_off(config, error) / "checkpoint").read_text() == "weights"


def test_working_folder_outlives_an_error_of_the_users_in_a_resumed_run(config):
    cut_off(config)
    assert (cut_off(replace(config, resume=True), TrainingError) / "checkpoint").exists()


def test_unfinished_run_is_not_overwritten(config):
    working = cut_off(config)
    with pytest.raises(ArtefactError) as caught, working_folder(config, Path(config.output), main=True):
        raise AssertionError("the run must not begin")
    assert str(caught.value) == (
        f"'{working}' holds an unfinished run. Go on with it by --resume, or remove that folder to start again."
    )
    assert (working / "checkpoint").read_text() == "weights"


def test_resumed_run_finds_its_checkpoints_also_where_json_made_lists_of_tuples(config):
    working = cut_off(config)
    with working_folder(replace(config, resume=True), Path(config.output), main=True) as again:
        assert again == working
        assert (again / "checkpoint").read_text() == "weights"
    assert not working.exists()


def test_resumed_run_of_another_configuration_is_refused_naming_what_differs(config):
    working = cut_off(config)
    other = replace(config, seed=1, method="bitfit", resume=True)
    with pytest.raises(ConfigError) as caught, working_folder(other, Path(config.output), main=True):
        raise AssertionError("the run must not begin")
    assert str(caught.value) == (
        f"cannot resume '{working}': method, seed changed since it was interrupted. "
        "Resume with the same configuration and data, or remove that folder to start again."
    )
    assert (working / "checkpoint").exists()


def test_resumed_run_over_data_that_has_changed_is_refused_naming_it(config, tmp_path):
    for name in ("a.jsonl", "c.jsonl", "index/manifest.json", "index/shard", "saved/one.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as it was")
    names = {"train": f"{tmp_path}/a.jsonl[0:5]", "corpus": f"{tmp_path}/c.jsonl", "test": f"{tmp_path}/saved"}
    config = replace(config, validation=f"{tmp_path}/index", **names)
    cut_off(config)
    resumed = replace(config, resume=True)
    (tmp_path / "index/shard").write_text("is vouched for by the manifest")
    cut_off(resumed)
    for changed, named in (
        ("a.jsonl", names["train"]),
        ("index/manifest.json", config.validation),
        ("saved/one.arrow", names["test"]),
    ):
        (tmp_path / changed).write_text("as it is now")
        message = re.escape(f"the content of {named} changed since it was interrupted")
        with pytest.raises(ConfigError, match=message), working_folder(resumed, Path(config.output), main=True):
            raise AssertionError("the run must not begin")
        (tmp_path / changed).write_text("as it was")
    with working_folder(resumed, Path(config.output), main=True) as again:
        assert (again / "checkpoint").exists()


@pytest.mark.parametrize("record", ["", "[1]", "{", None])
def test_resumed_run_whose_record_is_damaged_is_refused(config, record):
    working = cut_off(config)
    (working / "run.json").unlink()
    if record is not None:
        (working / "run.json").write_text(record)
    with (
        pytest.raises(ConfigError, match=r"cannot resume .*: backbone, .*corpus, .* changed since it was interrupted"),
        working_folder(replace(config, resume=True), Path(config.output), main=True),
    ):
        raise AssertionError("the run must not begin")
    assert (working / "checkpoint").exists()


def test_resume_without_an_unfinished_run_starts_one(config, tmp_path):
    with working_folder(replace(config, resume=True), tmp_path / "out", main=True) as working:
        assert (working / "run.json").is_file()


def test_output_that_holds_something_is_refused_before_anything_is_made(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/theirs").touch()
    with (
        pytest.raises(ArtefactError, match="already holds 1 file"),
        working_folder(config, tmp_path / "out", main=True),
    ):
        raise AssertionError("the run must not begin")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_where_nothing_can_be_made_is_refused_before_anything_is_trained(config, tmp_path):
    (tmp_path / "file").touch()
    for output, said in (
        (
            tmp_path / "file/out",
            "cannot be made: a file stands in its way. Name a folder in",
        ),
        (Path("/dev/null"), "'/dev/null' is there, and is no folder"),
    ):
        with pytest.raises(ArtefactError, match=said), working_folder(config, output, main=True):
            raise AssertionError("the run must not begin")
    with (
        pytest.raises(ArtefactError, match="a file stands in its way"),
        new_folder(tmp_path / "file/out"),
    ):
        raise AssertionError("the block must not begin")


def test_data_that_cannot_be_read_is_not_taken_for_an_output_that_cannot_be_made(config, tmp_path, monkeypatch):
    def fail(source):
        raise OSError(5, "Input/output error", source)

    monkeypatch.setattr("peft_rag.workspace.content_hash", fail)
    with (
        pytest.raises(OSError, match=r"Input/output error: 'a.jsonl'"),
        working_folder(config, tmp_path / "o", main=True),
    ):
        raise AssertionError("the run must not begin")


def test_output_may_be_the_current_folder_when_it_is_empty(config, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with working_folder(config, Path("."), main=True) as working:
        assert working == tmp_path / "here.partial"
    assert not working.exists()


def test_other_processes_neither_claim_nor_remove(config, tmp_path):
    with working_folder(config, tmp_path / "out", main=False) as working:
        assert not working.exists()
        working.mkdir()
    assert working.exists()
    with pytest.raises(TrainingError), working_folder(config, tmp_path / "out", main=False):
        raise TrainingError
    assert working.exists()

import hashlib
import json
import os
import stat

import pytest

from peft_rag.errors import ArtefactError
from peft_rag.files import new_folder, refuse_nonempty, sha256_of_file, sha256_of_json, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256_of_file_is_that_of_its_bytes_over_several_blocks(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert len(data) > 2 << 20
    assert sha256_of_file(tmp_path / "f") == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_sha256_of_json_depends_on_values_and_list_order_but_not_on_key_order():
    assert sha256_of_json({"a": [1, 2], "ä": None}) == sha256_of_json({"ä": None, "a": [1, 2]})
    different = [{"a": [1, 2]}, {"a": [2, 1]}, {"a": [1, "2"]}, {"b": [1, 2]}, {"a": [1, 2.5]}, {"a": [[1], 2]}]
    assert len({sha256_of_json(value) for value in different}) == len(different)


def test_write_json_reads_back_and_makes_missing_folders(tmp_path):
    value = {"z": 1, "a": ["ü", None, 0.1]}
    path = tmp_path / "deep/er/f.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text(encoding="utf-8").index('"z"') < path.read_text(encoding="utf-8").index('"a"')
    assert names(path.parent) == ["f.json"]


def test_write_text_gives_a_file_others_may_read(tmp_path):
    write_text(tmp_path / "f", "x")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_write_text_leaves_the_old_file_when_the_disk_fails(tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "f"
    write_text(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_write_text_leaves_nothing_when_interrupted_before_the_first_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "f", "new")
    assert names(tmp_path) == []


def test_write_text_leaves_the_old_file_when_the_text_cannot_be_encoded(tmp_path):
    write_text(tmp_path / "f", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "f", "\ud800")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("exists", [False, True])
def test_new_folder_appears_whole_at_the_end_and_not_before(tmp_path, exists):
    target = tmp_path / "parent/out"
    if exists:
        target.mkdir(parents=True)
    with new_folder(target) as working:
        (working / "inner").mkdir()
        (working / "inner/f").write_text("x")
        assert not target.exists() or not list(target.iterdir())
        assert working.parent == target.parent
    assert (target / "inner/f").read_text() == "x"
    assert names(target.parent) == ["out"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_new_folder_vanishes_when_its_block_fails(tmp_path, error):
    def fail():
        with new_folder(tmp_path / "out") as working:
            (working / "f").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_new_folder_refuses_what_came_into_its_place_meanwhile(tmp_path):
    target = tmp_path / "out"

    def collide():
        with new_folder(target) as working:
            (working / "ours").write_text("x")
            target.mkdir()
            (target / "theirs").write_text("y")

    with pytest.raises(ArtefactError, match=r"already holds 1 file \(theirs\)"):
        collide()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["theirs"]


def test_new_folder_follows_a_link_to_an_empty_folder(tmp_path):
    (tmp_path / "disk/empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk/empty")
    with new_folder(tmp_path / "out") as working:
        (working / "f").write_text("x")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk/empty") == ["f"]
    assert names(tmp_path / "disk") == ["empty"]


def test_refuse_nonempty_names_folder_and_content(tmp_path):
    target = tmp_path / "out"
    refuse_nonempty(target)
    target.mkdir()
    refuse_nonempty(target)
    for name in ("b", "a", "d", "c"):
        (target / name).touch()
    with pytest.raises(ArtefactError) as caught:
        refuse_nonempty(target)
    assert str(caught.value) == (
        f"output folder '{target}' already holds 4 files (a, b, c, …). Name another with --output, or remove it first."
    )


def test_new_folder_refuses_a_file_and_leaves_it(tmp_path):
    target = tmp_path / "out"
    target.write_text("precious")
    with pytest.raises(ArtefactError) as caught, new_folder(target):
        raise AssertionError("the block must not begin")
    assert str(caught.value) == f"output '{target}' is a file. Name a folder that does not exist yet."
    assert target.read_text() == "precious"

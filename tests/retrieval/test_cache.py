from pathlib import Path

import numpy as np
import pytest

from peft_rag.errors import RetrievalError
from peft_rag.places import cache_folder
from peft_rag.retrieval.cache import cached_arrays, keep_copy
from peft_rag.retrieval.storage import read_manifest, write_manifest


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("PEFT_RAG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/peft-rag")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/peft-rag")
    monkeypatch.setenv("PEFT_RAG_CACHE", "~/here")
    assert cache_folder() == Path("/home/someone/here")


def test_arrays_are_computed_once_and_read_as_read_only_maps(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(6).reshape(2, 3), "b": np.ones(2, dtype=np.float32)}

    for _ in range(2):
        arrays = cached_arrays(tmp_path / "deep" / "key", {"about": "it"}, compute)
    assert len(calls) == 1
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["b"].dtype == np.float32
    assert not arrays["a"].flags.writeable


def test_arrays_of_objects_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        cached_arrays(tmp_path / "key", {}, lambda: {"a": np.array([object()])})
    assert not (tmp_path / "key").exists()


def test_array_file_with_a_pickle_inside_is_never_loaded(tmp_path):
    folder = tmp_path / "key"
    folder.mkdir()
    np.save(folder / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    write_manifest(folder, {})
    assert cached_arrays(folder, {}, lambda: {"a": np.zeros(1)})["a"].tolist() == [0]


def intact(folder):
    try:
        return bool(read_manifest(folder))
    except RetrievalError:
        return False


def test_manifest_notices_every_changed_byte(tmp_path):
    (tmp_path / "data").write_bytes(b"12345")
    write_manifest(tmp_path, {"k": 3})
    assert read_manifest(tmp_path)["k"] == 3
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    survived = set()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        if intact(tmp_path):
            survived.add(content[place : place + 1])
    assert survived <= {b" ", b"\n"}


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"files": 3, "manifest": "x"}', b"\xff", b""])
def test_manifest_of_another_form_is_damaged(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RetrievalError, match=r"the file manifest\.json is missing or damaged"):
        read_manifest(tmp_path)


def test_copy_is_kept_whole_once_and_never_over_what_is_read(tmp_path):
    made, kept = tmp_path / "made", tmp_path / "kept" / "abc"
    made.mkdir()
    (made / "vectors.npy").write_bytes(b"first")
    keep_copy(made, kept)
    first = (kept / "vectors.npy").stat()
    (made / "vectors.npy").write_bytes(b"second")
    keep_copy(made, kept)
    assert (kept / "vectors.npy").read_bytes() == b"first"
    assert (kept / "vectors.npy").stat().st_ino == first.st_ino
    with pytest.raises(RetrievalError, match="cannot be written"):
        keep_copy(tmp_path / "absent", tmp_path / "kept" / "other")
    assert sorted(path.name for path in kept.parent.iterdir()) == ["abc", "abc.lock", "other.lock"]

"""Killed, corrupted, full: an index is what it was or what it was to be, or says what is wrong."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from peft_rag.corpus import Document
from peft_rag.errors import PeftRagError, RetrievalError
from peft_rag.retrieval.manifest import BUILDING, MANIFEST, StoreSettings
from peft_rag.retrieval.store import IndexStore

KILLS = {"build": 20, "add": 20, "delete": 14, "compact": 14}
SETTINGS = StoreSettings(exact_below=40, shard_size=16)
COMPACT = StoreSettings(exact_below=40, shard_size=16, ef=100, precision="int8", graph_dimensions=6)


class HashEncoder:
    """A point for each text, drawn by its hash."""

    name, fingerprint, dimension = "hash", "hash-8", 8

    def encode(self, texts, progress=None):
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]).astype(np.float32)


def documents(start, stop, mark="text"):
    return [Document(f"d{n}", f"{mark} {n}", (f"l{n % 3}",)) for n in range(start, stop)]


def change(doing, folder, after=lambda: None):
    """Do one of the four things that are killed; ``after`` is called once all is ready for it."""
    encoder = HashEncoder()
    if doing == "build":
        after()
        IndexStore.build(folder, documents(0, 150), encoder, SETTINGS)
        return
    store = IndexStore.open(folder, encoder)
    after()
    if doing == "add":
        store.update(documents(90, 190, "new"))
    elif doing == "delete":
        store.delete([f"d{n}" for n in range(51, 90)])
    else:
        store.compact()


def worker(doing, folder, steps):
    """Run in a process of its own: kill it at the given call of the system, or wait for its end."""
    from pathlib import Path

    left = [int(steps)]

    def counted(call):
        def stepping(*given, **named):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        return stepping

    def ready():
        print("ready", flush=True)
        if left[0]:
            for name in ("replace", "fsync", "open"):
                setattr(os, name, counted(getattr(os, name)))

    change(doing, Path(folder), ready)
    print("done", flush=True)


@pytest.fixture
def base(tmp_path, request):
    """An index with deletions, a graph and rows that are not in it yet."""
    settings = getattr(request, "param", SETTINGS)
    store = IndexStore.build(tmp_path / "base", documents(0, 100), HashEncoder(), settings)
    store.delete(["d0", "d50"])
    store.add(documents(100, 103))
    assert store.info()["graph"]["rows"] == 100
    return store.folder


def content(folder):
    """Return all documents of an index, after asking it for some of them by text."""
    store = IndexStore.open(folder, HashEncoder())
    held = list(store.documents())
    for document in held[:: max(1, len(held) // 5)]:
        assert store.search([document.text], 1)[0][0].document == document
    return {document.id: document for document in held}


def start(doing, folder, steps=0):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_faults; test_faults.worker(*sys.argv[2:])"
    words = [sys.executable, "-c", script, os.path.dirname(__file__), doing, str(folder), str(steps)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def states(doing, base, tmp_path):
    """Return the contents allowed after a kill, and how long the change takes."""
    before = {} if doing == "build" else content(base)
    finished = tmp_path / "finished"
    if doing != "build":
        shutil.copytree(base, finished)
    begun = time.perf_counter()
    change(doing, finished)
    return before, content(finished), time.perf_counter() - begun


def check_killed(doing, folder, before, after):
    """Check that a folder holds one of two contents, and that the same command then completes."""
    if doing == "build" and not (folder / MANIFEST).exists():
        if folder.exists():
            with pytest.raises(RetrievalError, match=r"holds (an unfinished|no) index"):
                IndexStore.open(folder)
        found = before
    else:
        found = content(folder)
    assert found in (before, after)
    if found == before and doing != "compact":
        change(doing, folder)
        assert content(folder) == after
    return found == after


@pytest.mark.slow
@pytest.mark.parametrize("doing", KILLS)
def test_killed_at_any_moment_the_index_is_the_old_or_the_new_one(doing, base, tmp_path):
    before, after, seconds = states(doing, base, tmp_path)
    draw = random.Random(f"kill {doing}")
    killed = 0
    for number in range(KILLS[doing]):
        folder = tmp_path / f"{doing}{number}"
        if doing != "build":
            shutil.copytree(base, folder)
        with start(doing, folder) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, seconds))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        check_killed(doing, folder, before, after)
        shutil.rmtree(folder, ignore_errors=True)
    assert killed >= KILLS[doing] * 3 // 4


@pytest.mark.slow
@pytest.mark.parametrize("base", [SETTINGS, COMPACT], ids=["plain", "compact"], indirect=True)
@pytest.mark.parametrize("doing", KILLS)
def test_killed_at_calls_of_the_system_the_index_is_the_old_or_the_new_one(doing, base, tmp_path):
    before, after, _ = states(doing, base, tmp_path)
    seen = []
    for steps in [1, 2, 3, 5, 8, 13, 16, 19, 22, 25, 28, 31, 34, 40, 60, 80, 100, 200]:
        folder = tmp_path / f"{doing}{steps}"
        if doing != "build":
            shutil.copytree(base, folder)
        with start(doing, folder, steps) as process:
            finished = process.stdout.read() == "ready\ndone\n"
        assert process.returncode == (0 if finished else -signal.SIGKILL)
        seen.append(check_killed(doing, folder, before, after))
        if finished:
            break
    assert seen[-1]
    assert doing == "compact" or not seen[0]


def damages(size, draw):
    """Yield for each region of a file of some size a flipped bit, a byte of noise, and a cut."""
    regions = min(10, size)
    for region in range(regions):
        place = draw.randrange(
            size * region // regions, max(size * region // regions + 1, size * (region + 1) // regions)
        )
        yield "flip", place
        yield "noise", place
        yield "cut", place


def apply(damage, place, data, draw):
    if damage == "cut":
        return data[:place]
    new = data[place] ^ (1 << draw.randrange(8)) if damage == "flip" else draw.randrange(256)
    return data[:place] + bytes([new]) + data[place + 1 :]


def opened(folder):
    """Return an index's content, or what is said to be wrong with it."""
    try:
        return content(folder), ""
    except PeftRagError as error:
        return None, str(error)


@pytest.mark.parametrize("base", [SETTINGS, COMPACT], ids=["plain", "compact"], indirect=True)
def test_any_damage_to_any_file_is_named_or_harmless(base):
    expected = content(base)
    draw = random.Random(7)
    cases, refused = 0, 0
    for path in sorted(base.iterdir()):
        data = path.read_bytes()
        for damage, place in damages(len(data), draw):
            broken = apply(damage, place, data, draw)
            if broken == data:
                continue
            cases += 1
            path.write_bytes(broken)
            if path.name == "lock":
                assert content(base) == expected
                continue
            found, problem = opened(base)
            if problem:
                refused += 1
                assert f"{path.name} is missing or damaged" in problem
            else:
                assert path.name == MANIFEST, f"{path.name} {damage} at byte {place:,} was not noticed"
                assert found == expected
        path.write_bytes(data)
    assert cases >= 300
    assert refused >= 300
    assert content(base) == expected


@pytest.mark.parametrize("base", [SETTINGS, COMPACT], ids=["plain", "compact"], indirect=True)
def test_a_missing_file_is_named_and_an_extra_byte_noticed(base):
    for path in sorted(base.glob("[sdgp]*-*")):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(RetrievalError, match=f"{path.name} is missing or damaged"):
            IndexStore.open(base)
        path.write_bytes(data + b"\0")
        with pytest.raises(RetrievalError, match=f"{path.name} is missing or damaged"):
            IndexStore.open(base)
        path.write_bytes(data)


def test_a_writer_refuses_a_damaged_index_and_changes_nothing(base):
    store = IndexStore.open(base, HashEncoder())
    graph = base / store.snapshot.manifest.graph.file
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    before = (base / MANIFEST).read_bytes()
    for change in (lambda: store.add(documents(500, 510)), lambda: store.delete(["d1"]), store.compact):
        with pytest.raises(RetrievalError, match="is missing or damaged"):
            change()
    assert (base / MANIFEST).read_bytes() == before


def test_damage_to_an_unfinished_build_never_reaches_the_index(tmp_path):
    class Interrupted(HashEncoder):
        calls = 0

        def encode(self, texts, progress=None):
            self.calls += 1
            if self.calls > 3:
                raise KeyboardInterrupt
            return super().encode(texts)

    unfinished = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        IndexStore.build(unfinished, documents(0, 100), Interrupted(), SETTINGS)
    draw = random.Random(3)
    for number, name in enumerate([BUILDING, *sorted(path.name for path in unfinished.glob("shard-*"))] * 2):
        folder = tmp_path / str(number)
        shutil.copytree(unfinished, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(apply(("flip", "cut")[number % 2], draw.randrange(len(data)), data, draw))
        IndexStore.build(folder, documents(0, 100), HashEncoder(), SETTINGS)
        assert content(folder) == {one.id: one for one in documents(0, 100)}


@pytest.mark.parametrize("doing", ["add", "delete", "compact"])
def test_a_full_disk_is_named_and_leaves_the_old_index(doing, base, monkeypatch):
    expected = content(base)
    real, left = os.fsync, [0]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    for after in range(3):
        left[0] = after
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(RetrievalError, match=r"cannot be written \(No space left on device\). What it held"):
                change(doing, base)
        assert content(base) == expected
    change(doing, base)
    assert IndexStore.open(base, HashEncoder()).verify()["files"] > 0


@pytest.mark.parametrize("doing", ["build", "add"])
def test_no_room_for_a_file_is_named_even_where_hnswlib_says_nothing(doing, base, tmp_path):
    folder = tmp_path / "small" if doing == "build" else base
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1]); import test_faults; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))\n"
        "try: test_faults.change(sys.argv[2], Path(sys.argv[3]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    for room in (600, 3000, 9000):
        words = [sys.executable, "-c", script, os.path.dirname(__file__), doing, str(folder), str(room)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("RetrievalError the index '"), done.stdout + done.stderr
        assert "cannot be written (" in done.stdout
        if doing == "add":
            assert "d1" in content(base)
            assert len(content(base)) == 101
    change(doing, folder)
    assert len(content(folder)) > 101


def write_on(folder, rounds):
    """Add, delete and compact, again and again, in a process of its own."""
    store = IndexStore.open(folder, HashEncoder())
    print("ready", flush=True)
    for _ in range(int(rounds)):
        store.add(documents(200, 230))
        store.delete([f"d{n}" for n in range(200, 230)])
        store.compact()


def test_readers_see_one_state_or_the_next_while_another_process_writes(base):
    few = content(base)
    many = few | {one.id: one for one in documents(200, 230)}
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_faults; test_faults.write_on(*sys.argv[2:])"
    words = [sys.executable, "-c", script, os.path.dirname(__file__), str(base), "25"]
    reads = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        while writer.poll() is None:
            assert content(base) in (few, many)
            reads += 1
    assert writer.returncode == 0
    assert reads >= 5
    assert content(base) == few

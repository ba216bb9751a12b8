import socket
import subprocess
import sys

import pytest

from peft_rag.hub import hub_forbidden, hub_reachable


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_hub_is_forbidden_when_the_environment_says_so(monkeypatch, value, forbidden):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_forbidden() is forbidden


def test_hub_is_reachable_when_its_name_resolves(monkeypatch, no_proxy):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: asked.append((host, port)))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:8080")
    assert hub_reachable()
    assert asked == [("hub.example", 8080)]


def test_hub_is_out_of_reach_when_its_name_does_not_resolve(monkeypatch, no_proxy):
    def fail(*_):
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not hub_reachable()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    assert hub_reachable()


def test_reading_and_retrieval_import_nothing_heavy():
    code = (
        "import sys, peft_rag.demo, peft_rag.corpus, peft_rag.retrieval.neighbours, "
        "peft_rag.retrieval.hnsw, peft_rag.retrieval.encoder\n"
        "heavy = {'numpy', 'torch', 'datasets', 'yaml', 'hnswlib', 'pyarrow', 'tqdm'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

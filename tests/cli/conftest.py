"""The command as a user calls it, within the tests' own process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peft_rag.cli import main

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def peft_rag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; returns its status and what it wrote to standard output and standard error."""
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(words))
        output = capsys.readouterr()
        return status, output.out, output.err

    return run

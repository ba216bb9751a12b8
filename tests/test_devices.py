"""A device that is not there is refused before anything is loaded, and none named is the best there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_rag.devices import accelerator_available, chosen_device, computing_for, computing_on, wait_for_everyone
from peft_rag.errors import ConfigError


def test_no_name_is_the_accelerator_if_there_is_one() -> None:
    assert (chosen_device().type != "cpu") == accelerator_available()


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_device_that_cannot_be_used_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' is not to be had here: .* Leave --device out"):
        chosen_device(name)


def test_encoders_and_runs_leave_an_accelerator_alone_that_was_not_named(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_rag.retrieval.encoder import SentenceEncoder

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen_device().type == "cuda"
    with computing_on("cpu"):
        assert chosen_device().type == "cpu"
        assert SentenceEncoder(tiny_bert).model.device.type == "cpu"
        with computing_on(None):
            assert chosen_device().type == "cuda"
        assert chosen_device().type == "cpu"
    assert chosen_device().type == "cuda"
    assert SentenceEncoder(tiny_bert, device="cpu").model.device.type == "cpu"


def test_a_device_that_is_refused_changes_nothing() -> None:
    before = chosen_device()
    with pytest.raises(ConfigError, match="not to be had here"), computing_on("cuda:99"):
        raise AssertionError("the block is not entered")
    assert chosen_device() == before


def test_training_arguments_say_whether_the_accelerator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for arguments, device in (({}, "cuda"), ({"use_cpu": True}, "cpu"), ({"use_cpu": False}, "cuda")):
        with computing_for(arguments):
            assert chosen_device().type == device


@pytest.mark.parametrize(
    ("device", "processes", "waits"),
    [("cpu", 2, "without a device"), ("cuda", 2, "as accelerate does"), ("cpu", 1, "as accelerate does")],
)
def test_processes_on_the_processor_wait_without_naming_an_accelerator(
    device: str, processes: int, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("torch.distributed.barrier", lambda **named: called.append(named or "without a device"))
    state: Any = SimpleNamespace(
        device=torch.device(device),
        num_processes=processes,
        wait_for_everyone=lambda: called.append("as accelerate does"),
    )
    wait_for_everyone(state)
    assert called == [waits]

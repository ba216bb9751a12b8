"""A device that is not there is refused before anything is loaded, and none named is the best there is."""

from __future__ import annotations

import pytest

from peft_rag.devices import accelerator_available, chosen_device
from peft_rag.errors import ConfigError


def test_no_name_is_the_accelerator_if_there_is_one() -> None:
    assert (chosen_device().type != "cpu") == accelerator_available()


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_device_that_cannot_be_used_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' is not to be had here: .* Leave --device out"):
        chosen_device(name)

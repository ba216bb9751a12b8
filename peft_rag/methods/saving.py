"""An adapter's weights as plain peft files."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel


def save_adapter(model: PeftModel, adapter_name: str, folder: Path) -> None:
    """Let peft write its two files, whatever the adapter's name, without asking a hub about the backbone."""
    model.save_pretrained(str(folder), selected_adapters=[adapter_name], save_embedding_layers=False)
    named = folder / adapter_name
    if adapter_name != "default":
        for path in named.iterdir():
            path.rename(folder / path.name)
        named.rmdir()

"""A tiny problem on which the frozen encoder is wrong, and what learns it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from peft_rag.testing.fusions import word_tokenizer


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder of one layer that tells texts apart by their words; the words are w0 … w35."""
    folder: Path = tmp_path_factory.mktemp("encoder")
    word_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.5}
    BertModel(BertConfig(vocab_size=40, **sizes, **more)).save_pretrained(folder)
    return str(folder)

"""Exact search: every document is compared."""

from __future__ import annotations

from typing import Any

from peft_rag.retrieval.base import Encoder
from peft_rag.retrieval.dense import DenseRetriever


class ExactRetriever(DenseRetriever):
    """Cosine similarity of sentence vectors, every document compared; right for up to some 100,000 documents.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084.
    """

    name = "exact"

    def __init__(self, encoder: Encoder) -> None:
        """Take the encoder.

        Args:
            encoder: what turns texts into vectors.
        """
        super().__init__(encoder)

    def settings(self) -> dict[str, Any]:
        return {}

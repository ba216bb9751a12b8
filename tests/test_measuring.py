"""What a run says of its retrieval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from peft_rag.corpus import Corpus, Document
from peft_rag.measuring import found_lines
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example


def test_a_chunk_that_is_found_counts_for_the_document_that_it_was_cut_from() -> None:
    def chunk(number: int) -> Document:
        return Document(f"a#{number}", "text", metadata={"document": "a", "start": 0, "end": 4})

    corpus = Corpus([chunk(1), chunk(2), Document("b", "text"), Document("c#1", "text")])
    wanted = [("a",), ("a#1",), ("b",), ("c",), ("x", "b"), ()]
    examples = [Example(str(row), "text", documents=names) for row, names in enumerate(wanted)]
    found = Neighbours(np.array([[1, 3], [1, 3], [2, -1], [3, 1], [2, 0], [2, 0]]), np.zeros((6, 2), np.float32))
    test = SimpleNamespace(examples=examples, neighbours=found)
    prepared: Any = SimpleNamespace(test=test, model=SimpleNamespace(knowledge=SimpleNamespace(corpus=corpus)))
    assert found_lines(prepared) == [
        "retrieval: 3 of 5 test examples (60.0%) find a document that their record names among 2 neighbours"
    ]

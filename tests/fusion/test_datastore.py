"""What is remembered of the tuned space is found by a loop's own answer, exactly or by a graph that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.adaptive_knn import AdaptiveKnnFusion
from peft_rag.fusion.base import Memory
from peft_rag.fusion.datastore import feature_index
from peft_rag.fusion.knn import KnnFusion
from peft_rag.retrieval.hnsw import GRAPH, HnswIndex

M, F, K = 600, 12, 5


@pytest.fixture(scope="module")
def known() -> Tensor:
    return torch.randn(M, F, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def asked() -> Tensor:
    return torch.randn(20, F, generator=torch.Generator().manual_seed(1))


def nearest_by_loop(query: Tensor, known: Tensor, forbidden: set[int]) -> list[int]:
    cosines = {
        place: float(query.double() @ one.double() / query.double().norm() / one.double().norm())
        for place, one in enumerate(known)
        if place not in forbidden
    }
    return sorted(cosines, key=lambda place: -cosines[place])[:K]


@pytest.mark.parametrize("search", ["exact", "hnsw"])
def test_nearest_decisions_are_those_of_a_loop_and_none_that_is_forbidden(
    known: Tensor, asked: Tensor, search: Any
) -> None:
    memory = Memory(torch.zeros(M, dtype=torch.long), known, index=feature_index(known, search))
    best = [nearest_by_loop(query, known, set()) for query in asked]
    forbidden = [{row[0], row[2]} for row in best]
    for exclude in (None, forbidden):
        found = memory.nearest(asked, K, exclude)
        banned = exclude or [set()] * len(asked)
        wanted = [nearest_by_loop(query, known, none) for query, none in zip(asked, banned, strict=True)]
        assert found.positions.tolist() == wanted
    cosine = torch.nn.functional.cosine_similarity(asked[0].double(), known[best[0][1]].double(), dim=0)
    assert memory.nearest(asked, K).scores[0, 1] == pytest.approx(float(cosine), abs=1e-6)


def test_features_without_an_index_are_searched_exactly_and_none_at_all_is_an_error(
    known: Tensor, asked: Tensor
) -> None:
    targets = torch.zeros(M, dtype=torch.long)
    bare, ready = Memory(targets, known), Memory(targets, known, index=feature_index(known))
    assert np.array_equal(bare.nearest(asked, K).positions, ready.nearest(asked, K).positions)
    with pytest.raises(RetrievalError, match="the corpus was not encoded"):
        Memory(targets).nearest(asked, K)


def test_graph_is_kept_and_built_again_where_it_is_damaged(
    known: Tensor, asked: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, built, build = tmp_path / "graphs/abc", [], HnswIndex.build

    def counted(*arguments: Any) -> HnswIndex:
        built.append(1)
        return build(*arguments)

    monkeypatch.setattr(HnswIndex, "build", counted)
    positions = []
    for damaged in (False, False, True):
        if damaged:
            graph = folder / GRAPH
            graph.write_bytes(graph.read_bytes()[:-100])
        index = feature_index(known, "hnsw", folder)
        positions.append(index.search(torch.nn.functional.normalize(asked).numpy(), K).positions)
    assert len(built) == 2
    assert np.array_equal(positions[0], positions[1])
    assert np.array_equal(positions[0], positions[2])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["abc", "abc.lock"]


@pytest.mark.parametrize("fusion", [KnnFusion, AdaptiveKnnFusion])
def test_search_goes_by_name_and_an_unknown_one_is_refused(fusion: type[KnnFusion]) -> None:
    assert fusion(search="hnsw").to_dict()["search"] == "hnsw"
    with pytest.raises(ConfigError, match=r"fusion.search is 'flat'. Choose exact or hnsw."):
        fusion(search="flat")  # type: ignore[arg-type]

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, FingerprintError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.knowledge import Knowledge
from peft_rag.methods import quiet_peft
from peft_rag.query_tower.options import RetrieverTraining
from peft_rag.query_tower.tower import QueryTower
from peft_rag.retrieval.bm25 import BM25Retriever
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever
from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.store_retriever import StoreRetriever
from peft_rag.retrieval.tuned import indexed
from peft_rag.testing import WordEncoder
from tests.query_tower.problem import corpus, examples, knowledge_of

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

UNCHANGED = ("lora", "adapter", "bitfit", "ia3", "full")


def tower_of(knowledge: Knowledge, method: str = "lora", **options: Any) -> QueryTower:
    torch.manual_seed(0)
    return QueryTower.attached(knowledge, method, **options)


def moved(tower: QueryTower) -> QueryTower:
    """Move every trained tensor, so that nothing can be right by being zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for one in tower.parameters():
            if one.requires_grad:
                one.add_(0.3 * torch.randn_like(one))
    return tower


@pytest.mark.parametrize("method", UNCHANGED)
def test_fresh_tower_gives_the_frozen_encoders_vectors_and_scores_bit_for_bit(encoder_folder: str, method: str) -> None:
    knowledge, asked = knowledge_of(encoder_folder), examples(20, 1)
    tower, texts = tower_of(knowledge, method), [one.text for one in asked]
    frozen = knowledge.retriever.encoder.encode(texts)  # type: ignore[attr-defined]
    assert np.array_equal(tower.encode(texts), frozen)
    before = knowledge.split(asked, 5, name="x", exclude_duplicates=False).neighbours
    after = knowledge.split(asked, 5, name="x", exclude_duplicates=False, tower=tower).neighbours
    assert before is not None
    assert after is not None
    assert np.array_equal(before.positions, after.positions)
    assert np.array_equal(before.scores, after.scores)
    vectors = indexed(knowledge.retriever, knowledge.corpus).vectors_of(before.positions.reshape(-1))  # type: ignore[arg-type]
    live = tower.train().scores(texts, vectors.reshape(20, 5, -1), np.ones((20, 5), bool))
    assert np.array_equal(live.detach().numpy(), before.scores)


@pytest.mark.parametrize("method", UNCHANGED)
def test_every_trained_tensor_receives_a_gradient_and_a_step_changes_no_other(encoder_folder: str, method: str) -> None:
    knowledge = knowledge_of(encoder_folder)
    tower = moved(tower_of(knowledge, method))
    frozen = {name: one.clone() for name, one in tower.named_parameters() if not one.requires_grad}
    stored = indexed(knowledge.retriever, knowledge.corpus).vectors_of(np.arange(8)).copy()  # type: ignore[arg-type]
    own = knowledge.retriever.encoder.model.state_dict()  # type: ignore[attr-defined]
    before = weights_fingerprint(own.items())
    texts = [one.text for one in examples(6, 1)]
    scores = tower.scores(texts, np.repeat(stored[None], 6, 0), np.ones((6, 8), bool))
    (scores * torch.randn(6, 8)).sum().backward()
    trained = [one for one in tower.parameters() if one.requires_grad]
    assert all(one.grad is not None and bool(one.grad.ne(0).any()) for one in trained)
    torch.optim.SGD(tower.parameters(), lr=0.1).step()
    assert frozen
    assert all(torch.equal(one, dict(tower.named_parameters())[name]) for name, one in frozen.items())
    assert np.array_equal(knowledge.retriever.vectors_of(np.arange(8)), stored)  # type: ignore[attr-defined]
    assert weights_fingerprint(own.items()) == before


def test_gradient_of_a_score_is_that_of_the_cosine(encoder_folder: str) -> None:
    knowledge = knowledge_of(encoder_folder)
    tower = moved(tower_of(knowledge)).double()
    documents = knowledge.retriever.encoder.encode(corpus().texts[:2])[None]  # type: ignore[attr-defined]
    tensor = next(one for name, one in tower.named_parameters() if "lora_B" in name)

    def cosines() -> torch.Tensor:
        vectors = tower(["w0 w4 w20"])
        return torch.nn.functional.normalize(vectors, dim=-1) @ torch.from_numpy(documents[0].T).double()

    scores = tower.scores(["w0 w4 w20"], documents, np.ones((1, 2), bool))
    (found,) = torch.autograd.grad(scores[0, 1], tensor)
    step = 1e-6
    with torch.no_grad():
        tensor[3, 2] += step
        above = cosines()[0, 1]
        tensor[3, 2] -= 2 * step
        below = cosines()[0, 1]
    assert float(found[3, 2]) == pytest.approx(float((above - below) / (2 * step)), rel=1e-4)


def test_missing_documents_have_no_score_and_no_gradient(encoder_folder: str) -> None:
    knowledge = knowledge_of(encoder_folder)
    tower = moved(tower_of(knowledge))
    documents = np.repeat(knowledge.retriever.encoder.encode(corpus().texts[:3])[None], 2, 0)  # type: ignore[attr-defined]
    mask = np.array([[True, True, False], [True, False, False]])
    scores = tower.scores(["w0", "w1 w2"], documents, mask)
    assert (scores.isneginf().numpy() == ~mask).all()
    scores.masked_fill(~torch.from_numpy(mask), 0.0).sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in tower.parameters() if one.grad is not None)


def test_order_of_the_texts_is_kept(encoder_folder: str) -> None:
    tower = moved(tower_of(knowledge_of(encoder_folder)))
    texts = ["w1", "w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11"]
    vectors = torch.nn.functional.normalize(tower(texts), dim=-1).detach().numpy()
    for text, vector in zip(texts, vectors, strict=True):
        assert np.allclose(tower.encode([text])[0], vector, atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "store"])
def test_tuned_queries_search_the_unchanged_index(encoder_folder: str, tmp_path: Path, kind: str) -> None:
    encoder, documents = SentenceEncoder(encoder_folder, device="cpu"), corpus()
    retriever: Any = {"exact": ExactRetriever, "hnsw": HnswRetriever}.get(kind, lambda encoder: None)(encoder)
    if kind == "store":
        IndexStore.build(tmp_path / "index", documents, encoder)
        retriever = StoreRetriever(encoder, folder=str(tmp_path / "index"))
    knowledge = Knowledge(documents, retriever, kind, encoder_folder)
    tower, asked = moved(tower_of(knowledge)), examples(10, 1)
    found = knowledge.split(asked, 3, name="x", exclude_duplicates=False, tower=tower).neighbours
    assert found is not None
    stored = retriever.vectors_of(np.arange(len(documents)))
    for row, query in enumerate(tower.encode([one.text for one in asked])):
        scores = stored @ query
        nearest = np.argsort(-scores)[:3]
        assert [place for place, _ in found.row(row)] == nearest.tolist()
        assert [score for _, score in found.row(row)] == pytest.approx(scores[nearest].tolist(), abs=1e-5)
    encoded: list[int] = []
    knowledge.retriever.encoder.encode = lambda texts, progress=None: encoded.append(len(texts))  # type: ignore[attr-defined]
    knowledge.split(asked, 3, name="x", exclude_duplicates=False, tower=tower)
    assert encoded == []


def test_each_tower_finds_its_own_neighbours_and_leaves_those_kept_on_disk_alone(encoder_folder: str) -> None:
    knowledge, asked = knowledge_of(encoder_folder), examples(10, 1)

    def found(tower: QueryTower | None) -> np.ndarray[Any, Any]:
        split = knowledge.split(asked, 8, name="x", exclude_duplicates=False, tower=tower)
        assert split.neighbours is not None
        return np.array(split.neighbours.scores)

    frozen = found(None)
    tower = tower_of(knowledge)
    assert np.array_equal(found(tower), frozen)
    first = found(moved(tower))
    assert not np.array_equal(first, frozen)
    second = found(moved(tower))
    assert not np.array_equal(first, second)
    assert np.array_equal(found(None), frozen)


def test_tuned_queries_see_nothing_that_is_forbidden_by_the_frozen_encoder(encoder_folder: str) -> None:
    """Leaks are told by text, group and the frozen cosine, never by a cosine that training has moved."""
    encoder = SentenceEncoder(encoder_folder, device="cpu")
    texts = ["w1 w2 w3", "w1 w2 w3 w9", "w1 w2 w4", "w20 w21", "w22", "w1 w2 w3"]
    documents = Corpus([Document(f"d{n}", text, group="g" if n == 3 else "") for n, text in enumerate(texts)])
    knowledge = Knowledge(documents, ExactRetriever(encoder), "exact", encoder_folder)
    (asked,) = examples(1, 1)
    asked = replace(asked, text="w1 w2 w3", group="g")
    cosines = encoder.encode(["w1 w2 w3"]) @ encoder.encode(texts).T
    threshold = float(np.sort(cosines[0])[-4]) - 1e-4  # the double, its copy and the two most alike
    knowledge = replace(knowledge, leak_threshold=threshold)
    tower = tower_of(knowledge)
    for _ in range(5):
        split = knowledge.split([asked], 6, name="x", exclude_duplicates=True, tower=moved(tower))
        assert split.neighbours is not None
        read = {place for place, _ in split.neighbours.row(0)}
        alike = {int(place) for place in np.flatnonzero(cosines[0] >= threshold)}
        assert {0, 5} <= alike
        assert split.forbidden[0] == alike | {3}
        assert read == set(range(6)) - alike - {3}


def test_look_alike_that_the_search_for_them_missed_is_left_out(
    encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge = replace(knowledge_of(encoder_folder), leak_threshold=0.9)
    (asked,) = examples(1, 1)
    asked = replace(asked, text=corpus().texts[2])
    monkeypatch.setattr("peft_rag.knowledge.with_similar", lambda forbidden, *arguments, **options: forbidden)
    monkeypatch.setattr("peft_rag.knowledge.forbidden_positions", lambda *arguments, **options: [frozenset()])
    split = knowledge.split([asked], 8, name="x", exclude_duplicates=True, tower=moved(tower_of(knowledge)))
    assert split.neighbours is not None
    own = knowledge.retriever.encoder.encode  # type: ignore[attr-defined]
    alike = {int(place) for place in np.flatnonzero(own([asked.text]) @ own(corpus().texts).T >= 0.9)}
    assert 2 in alike
    assert {place for place, _ in split.neighbours.row(0)} == set(range(8)) - alike


def test_saved_tower_comes_back_bit_for_bit_and_on_no_other_encoder(
    encoder_folder: str, tiny_bert: str, tmp_path: Path
) -> None:
    knowledge = knowledge_of(encoder_folder)
    tower = moved(tower_of(knowledge, "lora", r=4))
    tower.save(tmp_path / "tower")
    again = QueryTower.restored(knowledge, tower.to_dict(), tmp_path / "tower")
    texts = [one.text for one in examples(5, 1)]
    assert np.array_equal(again.encode(texts), tower.encode(texts))
    assert again.report == tower.report
    other = Knowledge(corpus(), ExactRetriever(SentenceEncoder(tiny_bert, device="cpu")), "exact", tiny_bert)
    with pytest.raises(FingerprintError, match=r"trained on an encoder sha256:.*, but '.*' is sha256:"):
        QueryTower.restored(other, tower.to_dict(), tmp_path / "tower")


def test_tower_plain_peft_loads(encoder_folder: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import BertModel

    tower = moved(tower_of(knowledge_of(encoder_folder)))
    tower.save(tmp_path / "tower")
    with quiet_peft():
        plain = PeftModel.from_pretrained(BertModel.from_pretrained(encoder_folder), str(tmp_path / "tower")).eval()
    tokens = tower.encoder.model.tokenizer(["w0 w4 w20"], return_tensors="pt")
    pooled = plain(**tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(pooled, tower(["w0 w4 w20"]))


def test_mistakes_say_what_to_do(encoder_folder: str) -> None:
    knowledge = knowledge_of(encoder_folder)
    with pytest.raises(ConfigError, match=r"query_method 'prompt-tuning' changes query vectors before anything"):
        tower_of(knowledge, "prompt-tuning")
    with pytest.raises(ConfigError, match=r"query_method 'head' trains nothing of the encoder"):
        tower_of(knowledge, "head")
    words = Knowledge(corpus(), BM25Retriever(None), "bm25", "")
    with pytest.raises(ConfigError, match=r"retriever 'bm25' does not compare sentence vectors by cosine. Pick"):
        tower_of(words)
    sums = Knowledge(corpus(), ExactRetriever(WordEncoder()), "exact", "words")
    with pytest.raises(ConfigError, match=r"sentence-transformers encoder, but retriever 'exact' has a WordEncoder"):
        tower_of(sums)
    for given, message in (
        ({"loss": "pdst"}, r"retriever_loss is 'pdst'. Did you mean 'pdist'"),
        ({"weight": 0.0}, r"retriever_loss_weight is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, r"retriever_loss_temperature is nan"),
        ({"rerank": -1}, r"rerank is -1; it must not be below 0"),
        ({"learning_rate": -0.1}, r"query_learning_rate is -0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            RetrieverTraining(**given)  # type: ignore[arg-type]

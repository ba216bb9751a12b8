"""What each neighbour did, against plain loops that ask a model again with one neighbour less."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_rag.artefact import load
from peft_rag.backbone import load_backbone
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.adaptive_knn import AdaptiveKnnFusion
from peft_rag.fusion.base import Fusion, Reader, Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.knowledge import Knowledge, make_retriever
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification
from tests.conftest import WORDS, toy_records
from tests.fusion.test_adaptive_knn import some_network

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

SINGLE = TextClassification(labels=tuple(WORDS))
MULTI = replace(SINGLE, multi_label=True)
TEXTS = ["apple pear and the plum", "iron", "the old danube in the new volga", "zinc silver of apple is very small"]
READING = [
    ConcatFusion(k=3),
    ConcatFusion(k=1),
    ConcatFusion(k=4, passage_tokens=3, show_labels=False, order="best-last"),
    MarginalFusion(k=3),
]
VOTING = [
    KnnFusion(space=space, k=k, temperature=0.2, weight=weight)  # type: ignore[arg-type]
    for space in ("tuned", "retriever")
    for k, weight in ((4, 0.6), (1, 0.6), (3, 1.0))
]
ADAPTIVE = AdaptiveKnnFusion(k=4, temperature=0.2, weight=0.6, adapts=True, network=some_network(10))


def corpus_of(task: TextClassification) -> Corpus:
    """24 documents; where several labels are allowed, many have two."""
    documents = []
    for number, record in enumerate(toy_records(24, 8)):
        labels = {record["label"], task.labels[number % 2]} if task.multi_label else {record["label"]}
        documents.append(Document(record["id"], record["text"], tuple(sorted(labels))))
    return Corpus.from_documents(documents, "toys")


def make_model(
    backbone: str, folder: Path, fusion: Fusion, task: TextClassification = SINGLE, corpus: Corpus | None = None
) -> RetrievalAugmentedModel:
    """A model with random weights in what is trained, so that answers differ and neighbours move them."""
    retriever = make_retriever("exact", backbone)
    fields = {"source": "toys.jsonl"}
    knowledge = Knowledge(corpus or corpus_of(task), retriever, "exact", backbone, fields=fields, cache=folder)
    model = RetrievalAugmentedModel(load_backbone(backbone), task, fusion, knowledge, max_length=60)
    model.attach("lora", r=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.5)
    return model.eval()


def log_prob_of(task: TextClassification, log_probs: torch.Tensor, labels: tuple[str, ...]) -> float:
    """log p of a set of labels under one row of log-probabilities, in plain loops."""
    rows = log_probs.tolist()
    if not task.multi_label:
        return float(rows[task.labels.index(labels[0])])
    return float(sum(pair[label in labels] for label, pair in zip(task.labels, rows, strict=True)))


def ask(model: RetrievalAugmentedModel, text: str, pairs: list[tuple[int, float]]) -> torch.Tensor:
    """One example by itself with neighbours chosen by hand; a fusion that votes takes them as the retriever's."""
    found = Neighbours.of_rows([pairs])
    split = Split([Example("0", text)], found)
    fusion = replace(model.fusion, space="retriever") if isinstance(model.fusion, KnnFusion) else model.fusion
    outputs = model.outputs(split)
    return fusion.combine(outputs, split, model.memory(), model.task)[0]


def check_against_a_loop(model: RetrievalAugmentedModel, task: TextClassification) -> list[float]:
    assert model.knowledge is not None
    place = {document.id: number for number, document in enumerate(model.knowledge.corpus)}
    effects = []
    for text, given in zip(TEXTS, model.predict(TEXTS, explain=True), strict=True):
        pairs = [(place[one.id], one.score) for one in given.neighbours]
        assert pairs
        known = log_prob_of(task, ask(model, text, pairs), given.labels)
        assert math.exp(known) == pytest.approx(given.probability, abs=1e-5)
        for one in given.neighbours:
            without = ask(model, text, [pair for pair in pairs if pair[0] != place[one.id]])
            expected = known - max(log_prob_of(task, without, given.labels), -100.0)
            assert one.effect == pytest.approx(expected, abs=2e-5)
            assert one.labels_without == task.decode(without[None], [])[0][0]
            effects.append(one.effect)
        (alone,) = task.decode(ask(model, text, [])[None], [])
        assert given.without_retrieval is not None
        assert given.without_retrieval.labels == alone[0]
        assert given.without_retrieval.probability == pytest.approx(alone[1], abs=1e-5)
    return effects


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single-label", "multi-label"])
@pytest.mark.parametrize("fusion", [*READING, *VOTING, ADAPTIVE], ids=str)
def test_effects_equal_a_loop_that_asks_again_without_each_neighbour(
    tiny_bert: str, tmp_path: Path, fusion: Fusion, task: TextClassification
) -> None:
    effects = check_against_a_loop(make_model(tiny_bert, tmp_path, fusion, task), task)
    assert max(map(abs, effects)) > 0.001


def test_the_neighbours_of_concat_are_those_a_loop_retrieves(tiny_bert: str, tmp_path: Path) -> None:
    model = make_model(tiny_bert, tmp_path, ConcatFusion(k=3))
    assert model.knowledge is not None
    found = model.split([Example("0", TEXTS[0])]).neighbours
    assert found is not None
    (given,) = model.predict(TEXTS[:1], explain=True)
    assert [one.id for one in given.neighbours] == [model.knowledge.corpus[place].id for place, _ in found.row(0)[:3]]


def test_leaving_out_the_only_neighbour_is_no_retrieval(tiny_bert: str, tmp_path: Path) -> None:
    for fusion in (ConcatFusion(k=1), KnnFusion(k=1, temperature=0.2, weight=0.6)):
        model = make_model(tiny_bert, tmp_path, fusion)
        answers = model.predict(TEXTS, explain=True)
        model.fusion = NoFusion()
        log_probs = model.outputs(Split([Example(str(n), text) for n, text in enumerate(TEXTS)])).log_probs
        alone = model.predict(TEXTS)
        for given, row, plain in zip(answers, log_probs, alone, strict=True):
            (one,) = given.neighbours
            known = math.log(given.probability)
            assert one.effect == pytest.approx(known - log_prob_of(SINGLE, row, given.labels), abs=2e-5)
            assert given.without_retrieval is not None
            assert given.without_retrieval.labels == one.labels_without == plain.labels


def inputs_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many inputs each run over the backbone has."""
    seen: list[int] = []
    outputs = RetrievalAugmentedModel.outputs

    def counted(self: Any, split: Any, **options: Any) -> Any:
        seen.append(len(split))
        return outputs(self, split, **options)

    monkeypatch.setattr(RetrievalAugmentedModel, "outputs", counted)
    return seen


def test_all_leave_outs_are_one_run_for_a_fusion_that_reads_and_none_for_one_that_votes(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = make_model(tiny_bert, tmp_path, ConcatFusion(k=2))
    voting = make_model(tiny_bert, tmp_path, KnnFusion(k=3, temperature=0.2, weight=0.6))
    voting.memory()
    seen = inputs_run(monkeypatch)
    reading.predict(TEXTS, explain=True)
    assert seen == [len(TEXTS), len(TEXTS) * 3]
    seen.clear()
    voting.predict(TEXTS, explain=True)
    assert seen == [len(TEXTS)]
    seen.clear()
    monkeypatch.setattr("peft_rag.attribution._PASSES_AT_ONCE", 5)
    reading.predict(TEXTS, explain=True)
    assert seen == [len(TEXTS), 5, 5, 2]


@pytest.mark.parametrize("fusion", [ConcatFusion(k=3), KnnFusion(k=4, temperature=0.2, weight=0.6)], ids=str)
def test_neither_batches_nor_chunks_change_an_effect(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: Fusion
) -> None:
    model = make_model(tiny_bert, tmp_path, fusion)
    whole = model.predict(TEXTS, explain=True)
    single = model.predict(TEXTS, explain=True, batch_size=1)
    monkeypatch.setattr("peft_rag.attribution._PASSES_AT_ONCE", 3)
    parts = model.predict(TEXTS, explain=True, batch_size=2)
    alone = [model.predict([text], explain=True)[0] for text in TEXTS]
    for other in (single, parts, alone):
        for left, right in zip(whole, other, strict=True):
            assert left.labels == right.labels
            assert [one.id for one in left.neighbours] == [one.id for one in right.neighbours]
            expected = [one.effect for one in left.neighbours]
            assert [one.effect for one in right.neighbours] == pytest.approx(expected, abs=2e-5)
            assert [one.labels_without for one in left.neighbours] == [one.labels_without for one in right.neighbours]


def test_neighbours_that_are_equally_near_and_say_the_same_have_the_same_effect(tiny_bert: str, tmp_path: Path) -> None:
    """Two doubles, and a third document of another label at the same distance."""
    labels = ("fruit", "fruit", "metal")
    corpus = Corpus.from_documents(
        [Document(str(number), "apple pear", (label,)) for number, label in enumerate(labels)], "doubles"
    )
    fusion = KnnFusion(space="retriever", k=3, temperature=0.2, weight=1.0)
    model = make_model(tiny_bert, tmp_path, fusion, corpus=corpus)
    (given,) = model.predict(["apple"], explain=True)
    assert given.labels == ("fruit",)
    assert [one.weight for one in given.neighbours] == pytest.approx([1 / 3] * 3)
    for_it, against = math.log(2 / 3) - math.log(1 / 2), math.log(2 / 3)
    assert [one.effect for one in given.neighbours] == pytest.approx([for_it, for_it, against], abs=1e-5)
    # Without the first, one vote stands against one: of equals the label that comes first is predicted.
    assert [one.labels_without for one in given.neighbours] == [("fruit",)] * 3


def test_effect_of_the_only_voter_for_a_label_stays_finite(tiny_bert: str, tmp_path: Path) -> None:
    corpus = Corpus.from_documents([Document("0", "apple pear", ("fruit",)), Document("1", "tin", ("metal",))], "two")
    model = make_model(
        tiny_bert, tmp_path, KnnFusion(space="retriever", k=2, temperature=0.01, weight=1.0), corpus=corpus
    )
    (given,) = model.predict(["apple pear"], explain=True)
    assert given.labels == ("fruit",)
    assert given.neighbours[0].effect == pytest.approx(100 + math.log(given.probability), abs=1e-3)
    assert given.neighbours[0].labels_without == ("metal",)


def test_where_nothing_was_retrieved_there_is_nothing_to_leave_out(tiny_bert: str, tmp_path: Path) -> None:
    """No fusion, an unfitted one, votes of no weight, an input that leaves no room for a neighbour, and no corpus."""
    full, mute = " ".join(["apple"] * 80), KnnFusion(k=3, temperature=0.2, weight=0.0)
    for fusion, text in ((NoFusion(), "iron"), (KnnFusion(), "iron"), (mute, "iron"), (ConcatFusion(), full)):
        model = make_model(tiny_bert, tmp_path, fusion)
        assert model.predict([text], explain=True) == model.predict([text])
        both = model.predict([text, "iron"], explain=True)
        assert (both[0].neighbours, both[0].without_retrieval) == ((), None)
        assert bool(both[1].neighbours) == isinstance(fusion, ConcatFusion)
    bare = RetrievalAugmentedModel(load_backbone(tiny_bert), SINGLE, max_length=32)
    assert bare.predict(["iron"], explain=True) == bare.predict(["iron"])
    assert bare.predict([], explain=True) == []


class FirstWords(Fusion):
    """A stranger's fusion that reads neighbours: the first word of each stands behind the input."""

    @property
    def neighbours_wanted(self) -> int:
        return 3

    @property
    def reads_neighbours(self) -> bool:
        return True

    def encode(self, split: Split, corpus: Any, reader: Reader) -> list[dict[str, Any]]:
        assert split.neighbours is not None
        rows = NoFusion().encode(split, corpus, reader)
        for number, row in enumerate(rows):
            read = [place for place, _ in split.neighbours.row(number)]
            row["read"] = read
            for place in read:
                word = reader.tokenizer(corpus[place].text)["input_ids"][1]
                for name, value in (("input_ids", word), ("attention_mask", 1), ("pooled_mask", 1)):
                    row[name] = [*row[name], value]
            row["token_type_ids"] = [0] * len(row["input_ids"])
        return rows


def test_a_strangers_fusion_that_reads_neighbours_is_explained_without_being_known(
    tiny_bert: str, tmp_path: Path
) -> None:
    effects = check_against_a_loop(make_model(tiny_bert, tmp_path, FirstWords()), SINGLE)
    assert max(map(abs, effects)) > 0.001


@pytest.mark.parametrize("fusion", [ConcatFusion(k=2), KnnFusion(k=4, temperature=0.2, weight=0.6), ADAPTIVE], ids=str)
def test_saved_artefact_explains_as_before(tiny_bert: str, tmp_path: Path, fusion: Fusion) -> None:
    model = make_model(tiny_bert, tmp_path, fusion)
    before = model.predict(TEXTS, explain=True)
    model.save_pretrained(tmp_path / "saved")
    assert load(str(tmp_path / "saved"), corpus=corpus_of(SINGLE)).predict(TEXTS, explain=True) == before


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single-label", "multi-label"])
def test_likelihood_of_a_prediction_is_its_probability(task: TextClassification) -> None:
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    log_probs = task.log_probs(3 * logits)
    said = task.decode(log_probs, [])
    targets = task.targets([Example(str(n), "x", labels) for n, (labels, _) in enumerate(said)])
    assert task.log_likelihood(log_probs, targets).exp().tolist() == pytest.approx([p for _, p in said], rel=1e-5)
    given = task.log_likelihood(log_probs, targets).tolist()
    loop = [log_prob_of(task, row, labels) for row, (labels, _) in zip(log_probs, said, strict=True)]
    assert given == pytest.approx(loop, abs=1e-5)


def test_a_single_text_is_answered_without_a_progress_bar(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tiny_bert, tmp_path, ConcatFusion(k=2))
    model.predict(["apple"])
    capsys.readouterr()
    model.predict(["iron"])
    assert capsys.readouterr() == ("", "")
    model.predict(["pear", "zinc"])
    assert "neighbours of inputs" in capsys.readouterr().err

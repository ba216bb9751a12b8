"""What the frozen backbone makes of examples: kept between models, and never trusted blindly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.corpus import Corpus, Document
from peft_rag.frozen_features import frozen_outputs
from peft_rag.fusion.base import Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.places import cache_folder
from peft_rag.reading import read_rows
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import headless, word_tokenizer

KINDS = TextClassification(labels=("a", "b"))
TAGS = TokenClassification(labels=("O", "B-a", "I-a"), words="spaces")
DOCUMENTS = Corpus([Document(str(number), f"w{number} w{number + 1}", ("ab"[number % 2],)) for number in range(6)])
TEXTS = Split([Example(str(number), " ".join(f"w{one}" for one in range(number, 12)), ("a",)) for number in range(10)])
TAGGED = Split(
    [
        replace(TAGS.as_example(text, str(number)), labels=tags)
        for number, (text, tags) in enumerate([("w1 w2 w3", ("O", "B-a", "I-a")), ("w4 w5", ("B-a", "O"))])
    ]
)


def model_of(task=KINDS, fusion=None, method="lora", seed=0):
    torch.manual_seed(0)
    backbone = as_backbone(headless(TINY_BACKBONES["bert"]()), word_tokenizer(), "bert")
    torch.manual_seed(seed)
    knowledge = Knowledge(DOCUMENTS, ExactRetriever(WordEncoder()), "exact", "words")
    model = RetrievalAugmentedModel(backbone, task, fusion or NoFusion(), knowledge, max_length=32)
    model.progress_bars = False
    model.attach(method)
    return model


@pytest.fixture
def run(monkeypatch):
    """How many inputs the model is run on, each time that it is."""
    counts = []

    def counted(model, rows, *given):
        counts.append(len(rows))
        return read_rows(model, rows, *given)

    monkeypatch.setattr("peft_rag.frozen_features.read_rows", counted)
    return counts


def found(*columns):
    return Neighbours(
        np.asarray([[number + one for one in columns] for number in range(10)]) % 6, np.ones((10, len(columns)))
    )


def kept():
    return sorted(path for path in (cache_folder() / "frozen").glob("*") if path.is_dir())


@pytest.mark.parametrize(("task", "split"), [(KINDS, TEXTS), (TAGS, TAGGED)])
def test_they_are_what_the_model_gives_with_its_adapter_off(task, split):
    model = model_of(task)
    with torch.no_grad():
        for tensor in model.backbone.parameters():
            if tensor.requires_grad:
                tensor.add_(0.5)
    for _ in range(2):  # made, then read
        given = frozen_outputs(model, split)
        with model.disable_adapter():
            wanted = model.outputs(split)
        assert torch.equal(given.features, wanted.features)
        torch.testing.assert_close(given.log_probs, wanted.log_probs)
        assert given.decisions == wanted.decisions
    assert not torch.allclose(wanted.features, model.outputs(split).features)


@pytest.mark.parametrize("method", ["bitfit", "prompt-tuning", "full"])
def test_another_method_and_head_read_them_instead_of_running_all(method, run):
    first = frozen_outputs(model_of(), TEXTS)
    again = frozen_outputs(model_of(method=method, seed=1), TEXTS)
    assert torch.equal(first.features, again.features)
    assert not torch.allclose(first.log_probs, again.log_probs)
    assert run == [10, 4]
    assert len(kept()) == 1


def test_whatever_is_read_decides_them():
    frozen_outputs(model_of(), TEXTS)
    frozen_outputs(model_of(), TEXTS.of(range(9)))
    read = Split(TEXTS.examples, found(0))
    shown = frozen_outputs(model_of(fusion=ConcatFusion(k=1)), read)
    assert [list(one) for one in shown.read] == [[number % 6] for number in range(10)]
    model = model_of(fusion=ConcatFusion(k=1))
    plain = frozen_outputs(model, read, fusion=NoFusion())
    assert len(kept()) == 3
    assert not torch.allclose(shown.features, plain.features)


def test_features_that_other_code_made_are_made_anew(monkeypatch, run):
    before = frozen_outputs(model_of(), TEXTS)
    features = TextClassification.features
    monkeypatch.setattr(TextClassification, "features", lambda self, *given: features(self, *given).flip(-1))
    for runs in ([10, 4, 10], [10, 4, 10, 4]):
        after = frozen_outputs(model_of(), TEXTS)
        assert run == runs
        assert torch.equal(after.features, before.features.flip(-1))


def test_damaged_files_are_made_anew():
    before = frozen_outputs(model_of(), TEXTS)
    (folder,) = kept()
    (folder / "features.npy").write_bytes(b"nonsense")
    assert torch.equal(frozen_outputs(model_of(), TEXTS).features, before.features)


def test_a_single_example():
    one = frozen_outputs(model_of(), TEXTS.of([0]))
    assert torch.equal(one.features, frozen_outputs(model_of(), TEXTS.of([0])).features)


@pytest.mark.parametrize("fusion", [ProjectorFusion(k=1), MarginalFusion(k=2)])
def test_what_is_not_the_frozen_backbones_alone_is_run_each_time(fusion):
    split = Split(TEXTS.examples, found(0, 1))
    model = model_of(fusion=fusion)
    given = frozen_outputs(model, split)
    with model.disable_adapter():
        assert torch.equal(given.log_probs, model.outputs(split).log_probs)
    assert kept() == []


def test_nothing_is_kept_outside_the_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PEFT_RAG_CACHE", str(tmp_path / "elsewhere"))
    frozen_outputs(model_of(), TEXTS)
    assert [path.parent.name for path in kept()] == ["frozen"]
    assert kept()[0].is_relative_to(tmp_path / "elsewhere")

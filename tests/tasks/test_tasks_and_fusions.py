"""Which fusion serves which task, tried on a tiny backbone each, as docs/tasks.md says."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.combinations import check_task as check_combination
from peft_rag.config import RunConfig
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import PeftRagError
from peft_rag.fusion.base import Split
from peft_rag.generation import write
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.registry import FUSIONS, TASKS, load, names
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import headless, word_tokenizer
from tests.tasks.test_task_conformance import RECORDS, WRITERS, make

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
KINDS = {"encoders": "bert", "decoders": "gpt2", "encoder-decoders": "t5"}


def table(corner):
    """Read a table of the page: what stands in each cell, by row and column."""
    lines = PAGE[PAGE.index(f"| {corner} |") :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}


def serves(task_name, fusion_name):
    """Whether a fusion can be trained with a task, answers, and is fitted where it must be."""
    writes = task_name in WRITERS
    writer = "t5" if fusion_name == "fid" else "gpt2"
    tokenizer, plain = word_tokenizer(), TINY_BACKBONES[writer if writes else "bert"]()
    if writes:
        tokenizer.eos_token = "[SEP]"
    task = make(task_name).with_tokenizer(tokenizer)
    fusion = load(FUSIONS, fusion_name)()
    if fusion.opens and task_name == "question-answering":
        task = replace(task, retrieved=True)
    records = [record for record in RECORDS[task_name] if "w9 w9" not in str(record)]  # a context in several windows
    examples = task.read([Record(fields, "records", number, "row") for number, fields in enumerate(records)])
    task = task.with_labels_of(examples)
    documents = [Document(one.id, one.text, one.labels or (), one.group, spans=one.spans) for one in examples]
    try:
        check_combination(RunConfig(train="x", output="y", task=task_name, fusion=fusion_name), fusion, task)
        torch.manual_seed(0)
        backbone = as_backbone(plain if writes else headless(plain), tokenizer, "tiny")
        knowledge = Knowledge(Corpus(documents), ExactRetriever(WordEncoder()), "exact", "words")
        model = RetrievalAugmentedModel(backbone, task, fusion, knowledge, max_length=32)
        model.progress_bars = False
        model.attach("lora")
        others = [[((row + 1) % len(examples), 0.9)] for row in range(len(examples))]
        if task.opens:
            found = [[documents[place] for place, _ in row] for row in others]
            pairs = zip(examples, found, strict=True)
            examples = [task.opened(example, passages, learn=False) for example, passages in pairs]
        split = Split(examples, Neighbours.of_rows(others), [{row} for row in range(len(examples))])
        loss = model(**model.collate(model.encode(split)))["loss"]
        loss.backward()
        outputs, targets = model.outputs(split), model.task.targets(examples)
        model.fusion = fusion.fit(outputs, split, model.memory(), model.task, targets)
        assert torch.isfinite(loss)
        assert len(model.fuse(outputs, split)) == len(targets)
        if writes:
            assert len(write(model, examples, split=split)) == len(examples)
    except PeftRagError:
        return False
    return True


def test_page_tells_of_every_installed_task_and_fusion():
    assert {task for task, _ in table("task, on backbones")} == set(names(TASKS))
    assert table("task, with fusions").keys() == {(task, fusion) for task in names(TASKS) for fusion in names(FUSIONS)}


@pytest.mark.parametrize("fusion", names(FUSIONS))
@pytest.mark.parametrize("task", names(TASKS))
def test_fusion_serves_a_task_as_the_page_says(task, fusion):
    assert serves(task, fusion) == (table("task, with fusions")[task, fusion] != "no")


@pytest.mark.parametrize("task", names(TASKS))
def test_backbones_are_as_the_conformance_tests_find_them(task):
    works = WRITERS.get(task, TINY_BACKBONES.keys())
    said = {kind: table("task, on backbones")[task, kind] != "no" for kind in KINDS}
    assert said == {kind: family in works for kind, family in KINDS.items()}


def test_task_on_the_page_conforms(capsys):
    module = ModuleType("stars")
    sys.modules[module.__name__] = module
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, module.__dict__)
    assert "holds: " in capsys.readouterr().out
    scores = module.Stars(labels=("1", "2", "3")).evaluate(torch.eye(3).log(), torch.tensor([0, 1, 0]), resamples=0)
    assert scores["stars_off"].value == pytest.approx(2 / 3)

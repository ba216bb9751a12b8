"""Every installed fusion keeps its promises on every kind of backbone, under every kind of method."""

import re
import sys
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from peft_rag.errors import ConformanceError
from peft_rag.fusion.base import READ, encode_inputs
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.fusion.reading import neighbours_of
from peft_rag.registry import FUSIONS, names
from peft_rag.retrieval.base import Neighbours
from peft_rag.testing import TINY_BACKBONES, check_fusion
from peft_rag.testing.fusion_table import BACKBONES, METHODS, WRITERS, stored, with_tables, works

PAGE = (Path(__file__).parents[2] / "docs/fusions.md").read_text(encoding="utf-8")
TABLE = stored(PAGE)


def test_page_tells_of_every_installed_fusion():
    columns = {*BACKBONES, *METHODS, *(f"{backbone} writes" for backbone in WRITERS)}
    assert TABLE.keys() == {(fusion, column) for fusion in names(FUSIONS) for column in columns}
    for fusion in names(FUSIONS):
        assert TABLE[fusion, "bert"] == TABLE[fusion, "lora"]


@pytest.mark.parametrize(
    "given", ["a\n\n<!-- fusions -->\n<!-- end -->\nb\n", "a\n\n<!-- fusions -->\nold\n<!-- end -->\nb\n"]
)
def test_tables_are_written_between_the_marks_and_nowhere_else(given):
    assert with_tables(given, "| new |") == "a\n\n<!-- fusions -->\n| new |\n<!-- end -->\nb\n"


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", names(FUSIONS))
def test_fusion_conforms_on_a_backbone_as_the_page_says(fusion, backbone):
    assert works(fusion, backbone, "lora") == TABLE[fusion, backbone]


@pytest.mark.parametrize("backbone", WRITERS)
@pytest.mark.parametrize("fusion", names(FUSIONS))
def test_fusion_conforms_where_a_text_is_written_as_the_page_says(fusion, backbone):
    assert works(fusion, backbone, "lora", writes=True) == TABLE[fusion, f"{backbone} writes"]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora"])
@pytest.mark.parametrize("fusion", names(FUSIONS))
def test_fusion_conforms_under_a_method_as_the_page_says(fusion, method):
    assert works(fusion, "bert", method) == TABLE[fusion, method]


def test_fusion_on_the_page_conforms():
    module = ModuleType("second_opinion")
    sys.modules[module.__name__] = module
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(first, module.__dict__)
    exec(second, module.__dict__)
    assert is_dataclass(module.SecondOpinion)


@dataclass(frozen=True)
class Forgetful(ConcatFusion):
    """Loses an option on the way through JSON."""

    def to_dict(self):
        return super().to_dict() | {"k": 1}


@dataclass(frozen=True)
class Greedy(ConcatFusion):
    """Gives every example the neighbours of the first as well."""

    def encode(self, split, corpus, reader):
        row = split.neighbours.positions[0]
        positions = np.where(split.neighbours.positions < 0, row, split.neighbours.positions)
        scores = np.where(split.neighbours.positions < 0, 0.5, split.neighbours.scores)
        return super().encode(replace(split, neighbours=Neighbours(positions, scores)), corpus, reader)


@dataclass(frozen=True)
class Hidden(ConcatFusion):
    """Reads documents of its own choice where there are no neighbours, and does not say so."""

    def encode(self, split, corpus, reader):
        found, _ = neighbours_of("hidden", split, corpus)
        positions = np.where(found.positions < 0, 0, found.positions)
        other = replace(split, neighbours=Neighbours(positions, np.zeros_like(found.scores)))
        return [row | {READ: []} for row in super().encode(other, corpus, reader)]


@dataclass(frozen=True)
class Blind(ConcatFusion):
    """Says that it reads neighbours, and does not."""

    def encode(self, split, corpus, reader):
        neighbours_of("blind", split, corpus)
        return encode_inputs(split, reader)


@dataclass(frozen=True)
class Careless(ConcatFusion):
    """Reads on where there are no neighbours."""

    def encode(self, split, corpus, reader):
        if split.neighbours is None:
            return encode_inputs(split, reader)
        return super().encode(split, corpus, reader)


@dataclass(frozen=True)
class Unscaled(ConcatFusion):
    """Gives probabilities that sum to more than one."""

    def run(self, read, batch, module):
        fused = super().run(read, batch, module)
        return replace(fused, log_probs=fused.log_probs + 0.1)


@dataclass(frozen=True)
class Batchwise(ConcatFusion):
    """Lets the examples of a batch look at each other."""

    def run(self, read, batch, module):
        fused = super().run(read, batch, module)
        return replace(fused, log_probs=(fused.log_probs + fused.log_probs.mean(0)).log_softmax(-1))


@dataclass(frozen=True)
class Muddled(ProjectorFusion):
    """Writes each text from the neighbours of another example."""

    def prompt_with(self, inputs, vectors, mask, module, *, goes_on):
        return super().prompt_with(inputs, vectors.flip(0), mask.flip(0), module, goes_on=goes_on)


@dataclass(frozen=True)
class Detached(MarginalFusion):
    """Trains a parameter that no gradient reaches."""

    def run(self, read, batch, module):
        detached = SimpleNamespace(log_temperature=module.log_temperature.detach())
        return super().run(read, batch, detached)


@dataclass(frozen=True)
class Worse(ConcatFusion):
    """Turns the answers round when it is fitted."""

    upside_down: bool = False

    def fit(self, outputs, split, memory, task, targets):
        return replace(self, upside_down=True)

    def combine(self, outputs, split, memory, task):
        return outputs.log_probs.flip(-1) if self.upside_down else outputs.log_probs


BROKEN = {
    Forgetful: "options survive JSON",
    Greedy: "inputs fit, and hold given neighbours only",
    Hidden: "an example without neighbours is answered as without retrieval",
    Blind: "an example's own neighbours change its answer",
    Careless: "neighbours that are missing altogether are an error",
    Unscaled: "probabilities sum to one",
    Batchwise: "an answer does not depend on what it is batched with",
    Detached: "every trained tensor receives a gradient",
    Worse: "no worse there than without retrieval",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_fusion_is_caught_by_the_property_it_breaks(kind):
    with pytest.raises(ConformanceError, match=BROKEN[kind]):
        check_fusion(kind(), TINY_BACKBONES["bert"])


def test_fusion_that_writes_from_others_neighbours_is_caught():
    with pytest.raises(ConformanceError, match="a text that is written depends on its own neighbours"):
        check_fusion(Muddled(), TINY_BACKBONES["gpt2"], writes=True)

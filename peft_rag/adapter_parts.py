"""What each adapter of one backbone works with: its task, head, fusion, corpus, window and query tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from peft_rag.fusion.none import NoFusion

if TYPE_CHECKING:
    from peft_rag.backbone import Backbone
    from peft_rag.fusion.base import Fusion, Memory
    from peft_rag.knowledge import Knowledge
    from peft_rag.long_prompts import LongInputs
    from peft_rag.query_tower.tower import QueryTower
    from peft_rag.tasks.base import Task


class AdapterParts(nn.Module):
    """Holds parts by the name of the adapter; its properties are those of the active one.

    Attributes:
        source: the backbone.
        adapter: name of the active adapter.
        saved_as: fingerprint of what an adapter was loaded from, while its weights are still those.
        measured: the measurements that an adapter was loaded with, while it still answers as it did then.
    """

    source: Backbone

    def __init__(self) -> None:
        super().__init__()
        self.adapter = "default"
        self.tasks: dict[str, Task] = {}
        self.fusions: dict[str, Fusion] = {}
        self.knowledges: dict[str, Knowledge | None] = {}
        self.windows: dict[str, int] = {}
        self.gates: dict[str, float] = {}
        self.long_inputs: dict[str, LongInputs] = {}
        self.saved_as: dict[str, str] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.memories: dict[str, Memory] = {}
        self.heads = nn.ModuleDict()
        self.fusion_modules = nn.ModuleDict()
        self.towers = nn.ModuleDict()

    @property
    def task(self) -> Task:
        """The active adapter's task."""
        return self.tasks[self.adapter]

    @property
    def fusion(self) -> Fusion:
        """The active adapter's fusion."""
        return self.fusions[self.adapter]

    @fusion.setter
    def fusion(self, fusion: Fusion) -> None:
        self.fusions[self.adapter] = fusion
        self.gates.pop(self.adapter, None)
        self._answers_otherwise()

    @property
    def knowledge(self) -> Knowledge | None:
        """What the active adapter retrieves from."""
        return self.knowledges[self.adapter]

    @knowledge.setter
    def knowledge(self, knowledge: Knowledge | None) -> None:
        self.knowledges[self.adapter] = knowledge
        self._answers_otherwise()

    @property
    def max_length(self) -> int:
        """Tokens of one input at most, of the active adapter."""
        return self.windows[self.adapter]

    @property
    def gate(self) -> float:
        """How far neighbours that are read count in an answer, from 0 to 1; see `peft_rag.fusion.fallback`.

        Those that vote count as their fusion says, which is 1 here, unless it says that none does.
        """
        if not self.fusion.counts:
            return 0.0
        return self.gates.get(self.adapter, 1.0) if self.fusion.reads_neighbours else 1.0

    @property
    def effective_fusion(self) -> Fusion:
        """The fusion that answers need: the active one, or none where neighbours count nothing."""
        return self.fusion if self.gate else NoFusion()

    @property
    def head(self) -> nn.Module:
        """The active adapter's head."""
        return self.heads[self.adapter]

    @property
    def fusion_module(self) -> nn.Module | None:
        """What is trained of the active adapter's fusion; None for a fusion without parameters."""
        has = self.adapter in self.fusion_modules
        return self.fusion_modules[self.adapter] if has else None

    @property
    def tower(self) -> QueryTower | None:
        """What the active adapter searches with; None where the retriever's own encoder is."""
        has = self.adapter in self.towers
        return self.towers[self.adapter] if has else None  # type: ignore[return-value]

    def search_with(self, tower: QueryTower) -> None:
        """Let the active adapter search by a query tower, and train it where it is trainable."""
        self.towers[self.adapter] = tower.to(next(self.source.model.parameters()).device)

    def hold(self, name: str, task: Task, fusion: Fusion, knowledge: Knowledge | None, max_length: int) -> None:
        """Remember an adapter's parts, make a fresh head and fusion module for it, and let it be the active one."""
        self.adapter = name
        self.tasks[name], self.fusions[name] = task, fusion
        self.knowledges[name], self.windows[name] = knowledge, max_length
        device = next(self.source.model.parameters()).device
        self.heads[name] = task.make_head(self.source.hidden_size).to(device)
        size = knowledge.vector_size if knowledge and fusion.needs_vectors else 0
        module = fusion.make_module(self.source, size)
        if module is not None:
            self.fusion_modules[name] = module.to(device)

    def forget(self) -> None:
        """Drop what was known of the active adapter's weights; needed after these have changed."""
        self.saved_as.pop(self.adapter, None)
        self._answers_otherwise()

    def _answers_otherwise(self) -> None:
        """Drop what rests on the active adapter's answers: what was remembered of them, and what was measured."""
        self.memories.pop(self.adapter, None)
        self.measured.pop(self.adapter, None)

"""What fusions share whose neighbours the model reads: how many, and how each is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Fusion
from peft_rag.fusion.passages import TEMPLATE, check_template


@dataclass(frozen=True)
class NearestFusion(Fusion):
    """Neighbours that were found by text and are read, in training as in prediction.

    Attributes:
        k: neighbours read at most.
    """

    name: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]] = ("k",)
    """Options that are at least 1."""

    k: int = 4

    def __post_init__(self) -> None:
        for name in self.sizes:
            if getattr(self, name) < 1:
                mend = " Use --fusion none for no neighbours." if name == "k" else ""
                raise ConfigError(
                    f"fusion '{self.name}' needs {name} of at least 1, got {name}={getattr(self, name)}.{mend}"
                )

    @property
    def documents_needed(self) -> int:
        return self.k

    @property
    def neighbours_wanted(self) -> int:
        return self.k

    @property
    def reads_neighbours(self) -> bool:
        return True


@dataclass(frozen=True)
class ReadingFusion(NearestFusion):
    """Neighbours that are read beside the input.

    Attributes:
        k: neighbours read at most.
        show_labels: whether a neighbour's labels are part of what is read of it.
        template: how a labelled neighbour is written, of ``{labels}`` and ``{text}``.
    """

    show_labels: bool = True
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.template)

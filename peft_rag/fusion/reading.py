"""What fusions share whose neighbours the model reads: how many, and how each is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import Fusion, Split
from peft_rag.fusion.passages import TEMPLATE, check_template

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus
    from peft_rag.retrieval.base import Neighbours


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


def neighbours_of(name: str, split: Split, corpus: Corpus | None) -> tuple[Neighbours, Corpus]:
    """Return what a fusion that reads neighbours needs.

    Raises:
        RetrievalError: there are none.
    """
    if corpus is None or split.neighbours is None:
        raise RetrievalError(f"fusion '{name}' was given no neighbours. Pass the corpus it was trained with.")
    return split.neighbours, corpus

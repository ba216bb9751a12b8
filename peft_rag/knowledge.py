"""The corpus and how it is searched, handed to a model as one thing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus, text_key
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Split
from peft_rag.registry import RETRIEVERS, load, suggest
from peft_rag.retrieval.base import Retriever
from peft_rag.retrieval.cache import cache_folder
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.neighbours import Query, precompute_neighbours

if TYPE_CHECKING:
    from peft_rag.tasks.base import Example


@dataclass(frozen=True)
class Knowledge:
    """What can be retrieved, and by what.

    Attributes:
        corpus: the documents.
        retriever: finds them by text.
        retriever_name: the name it was picked by.
        retriever_options: the options it was made with.
        encoder: name of its sentence encoder.
        fields: how the corpus is read from its source again (`peft_rag.data.CorpusFields`).
        cache: folder of precomputed neighbours.
    """

    corpus: Corpus
    retriever: Retriever
    retriever_name: str
    encoder: str
    retriever_options: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    cache: Path = field(default_factory=cache_folder)

    def split(
        self, examples: Sequence[Example], k: int, *, name: str, same_data: bool = False, exclude_duplicates: bool
    ) -> Split:
        """Find k neighbours for each example, once and for all, and what each must never see.

        Args:
            examples: the queries.
            k: neighbours wanted; with 0 nothing is searched by text.
            name: of the split, for progress bars.
            same_data: whether the examples are the corpus, so that each must not find itself.
            exclude_duplicates: whether documents with an example's own text are forbidden to it.
        """
        found = None
        if k:
            queries = [Query(example.id, example.text, example.group) for example in examples]
            found = precompute_neighbours(
                self.retriever,
                self.corpus,
                queries,
                min(k, len(self.corpus)),
                cache_folder=self.cache,
                name=name,
                same_data=same_data,
                exclude_duplicates=exclude_duplicates,
            )
        forbidden = tuple(self._forbidden(example, same_data, exclude_duplicates) for example in examples)
        return Split(examples, found, forbidden if any(forbidden) else ())

    def _forbidden(self, example: Example, same_data: bool, exclude_duplicates: bool) -> tuple[int, ...]:
        positions: set[int] = set()
        if same_data:
            positions.update(self._by_id.get(example.id, ()))
        if exclude_duplicates:
            positions.update(self._by_text.get(text_key(example.text), ()))
        return tuple(sorted(positions))

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        return _places(text_key(document.text) for document in self.corpus)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        return _places(document.id for document in self.corpus)

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact must remember to know this knowledge again."""
        return {
            "corpus": self.fields | {"fingerprint": self.corpus.fingerprint, "documents": len(self.corpus)},
            "retriever": {
                "name": self.retriever_name,
                "options": self.retriever_options,
                "encoder": self.encoder,
                "fingerprint": self.retriever.fingerprint_for(self.corpus.fingerprint),
            },
        }


def make_retriever(name: str, encoder: str, options: dict[str, Any] | None = None) -> Retriever:
    """Make a retriever by name over a sentence encoder.

    Raises:
        UnknownRetrieverError: no retriever has that name.
        ConfigError: an option is unknown, or its value is refused.
    """
    made = load(RETRIEVERS, name)
    given = options or {}
    known = [option for option in inspect.signature(made).parameters if option != "encoder"]
    for option in given:
        if option not in known:
            raise ConfigError(
                f"retriever '{name}' has no option '{option}'.{suggest(option, known)} "
                f"Options: {', '.join(known) or 'none'} (peft-rag retrievers {name})."
            )
    retriever: Retriever = made(SentenceEncoder(encoder, cache=cache_folder()), **given)
    return retriever


def _places(keys: Any) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        places.setdefault(key, []).append(position)
    return places

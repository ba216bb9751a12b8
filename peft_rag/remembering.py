"""The corpus as a fusion needs it whose neighbours are found in the tuned space."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from peft_rag.decisions import Decisions
from peft_rag.files import sha256_of_json
from peft_rag.fusion.base import Memory, Split
from peft_rag.fusion.datastore import feature_index
from peft_rag.fusion.none import NoFusion
from peft_rag.knowledge import Knowledge, labelled_examples
from peft_rag.retrieval.cache import cached_arrays

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel


def remember(model: RetrievalAugmentedModel, knowledge: Knowledge, progress: str) -> Memory:
    """Return the labelled documents, encoded by the weights as they are now where the active fusion needs that.

    The features of a saved model (`saved_as`) are kept on disk beside its neighbours, and read from there.
    """
    task, fusion = model.task, model.fusion
    examples = labelled_examples(knowledge, task)
    decisions = None if task.one_decision else Decisions.on(task, examples)

    def encode() -> dict[str, Any]:
        outputs = model.outputs(Split(examples), fusion=NoFusion(), progress=progress)
        return {"features": outputs.features.float().numpy()}

    features, kept, begun = None, None, time.perf_counter()
    saved_as = model.saved_as.get(model.adapter)
    if fusion.needs_features and saved_as:
        judged = [list(one.spans) for one in examples if one.spans]
        key = sha256_of_json([saved_as, knowledge.corpus.fingerprint, model.max_length, judged])
        folder = knowledge.cache / "features" / key.removeprefix("sha256:")
        kept = knowledge.cache / "graphs" / folder.name
        features = torch.tensor(cached_arrays(folder, {"documents": len(examples)}, encode)["features"])
    elif fusion.needs_features:
        features = torch.from_numpy(encode()["features"])
    index = None
    if features is not None:
        index = feature_index(features, fusion.search, kept, progress and "graph of the corpus")
    seconds = time.perf_counter() - begun
    return Memory(task.targets(examples), features, decisions, index, seconds)

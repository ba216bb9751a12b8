"""What of a run does not go together, found before anything is loaded: task, fusion and corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft_rag.config import WITHIN_DOCUMENT, RunConfig
from peft_rag.errors import ConfigError, RetrievalError

if TYPE_CHECKING:
    from peft_rag.data import Splits
    from peft_rag.fusion.base import Fusion


def check_joined(config: RunConfig, fusion: Fusion, splits: Splits) -> None:
    """Check that a run's task can be fused with its corpus in the way it asks for.

    Raises:
        RetrievalError: documents cannot vote on this task, or parts of them would have to that one does not mark.
        ConfigError: the task judges parts of texts that were to be condensed.
    """
    task = splits.task
    if fusion.needs_labels and not task.votes:
        raise RetrievalError(
            f"fusion '{config.fusion}' lets the labels of documents vote, but a label of task '{config.task}' says "
            "nothing of another example. Pick a fusion that reads neighbours (--fusion concat), or --fusion none."
        )
    if not task.pools_spans:
        return
    if config.long_inputs == WITHIN_DOCUMENT:
        raise ConfigError(
            f"task '{config.task}' judges parts of a text, but long_inputs is '{WITHIN_DOCUMENT}', which may leave "
            "them out. Leave long_inputs at cut, and cut the texts into shorter ones."
        )
    if fusion.needs_features:
        for document in splits.corpus:
            where = f"corpus '{splits.corpus.name}' document '{document.id}'"
            if not task.example_of(document, where).spans:
                raise RetrievalError(
                    f"{where}: does not mark the part of its text that its label is about, so that it cannot vote. Use "
                    "the training data as corpus (leave --corpus out), or --fusion concat or none."
                )

"""What a query tower learns in one step, beside what reaches it through the reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from peft_rag.fusion.batching import PASSAGE_EXAMPLES
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.query_tower.candidates import ranked
from peft_rag.query_tower.losses import answer_log_likelihood, emdr2, pdist

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.query_tower.candidates import Unranked
    from peft_rag.query_tower.options import RetrieverTraining


def learning_step(model: RetrievalAugmentedModel, unranked: Unranked, labels: Tensor | None) -> dict[str, Tensor]:
    """Let the tower choose among passages, the model read those chosen, and both learn from the answer.

    Args:
        model: with a tower.
        unranked: B encoded examples with all their candidates.
        labels: the task's targets, ``(R, …)``; with them the loss is returned.

    Returns:
        what the model's `forward` promises; ``loss`` has the tower's own loss in it.
    """
    tower, fusion = model.tower, model.fusion
    assert tower is not None
    assert isinstance(fusion, MarginalFusion)
    chosen = ranked(tower, unranked.rows, fusion.k)
    batch = {name: tensor.to(model.device) for name, tensor in model.collate(chosen.rows).items()}
    batch = chosen.live(batch, learning=tower.options.through_mixture)
    fused = fusion.run(model.read, batch, model.fusion_module)
    outputs = model.given(fused, labels)
    if labels is not None and fused.each is not None and not tower.options.through_mixture:
        owners = batch[PASSAGE_EXAMPLES]
        log_likelihood = answer_log_likelihood(fused.each.detach(), labels, owners, len(chosen.rows), model.task)
        with _held_fixed(model.fusion_module):
            logits = fusion.passage_logits(chosen.scores, model.fusion_module)
        outputs["loss"] = outputs["loss"] + retriever_loss(tower.options, logits, log_likelihood)
    return outputs


def retriever_loss(options: RetrieverTraining, logits: Tensor, log_likelihood: Tensor) -> Tensor:
    """Return the tower's own loss in nats, weighted; s/τ and log p(y|x,z) are ``(B, K)``."""
    if options.loss == "pdist":
        return options.weight * pdist(logits, log_likelihood, options.temperature)
    return options.weight * emdr2(logits, log_likelihood)


@contextmanager
def _held_fixed(module: nn.Module | None) -> Iterator[None]:
    """Let no gradient reach a module's parameters through what is computed inside the block."""
    trained = [one for one in module.parameters() if one.requires_grad] if module is not None else []
    for one in trained:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in trained:
            one.requires_grad_(True)

"""Neighbours' labels as a second opinion that counts as much as the decision at hand says it should."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from peft_rag.errors import ConfigError
from peft_rag.fusion.knn import KnnFusion, neighbour_log_probs, remembered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from peft_rag.fusion.base import Memory, Outputs, Split
    from peft_rag.fusion.knn_choice import Setting
    from peft_rag.fusion.share_network import ShareNetwork
    from peft_rag.retrieval.base import Neighbours
    from peft_rag.tasks.base import Task


@dataclass(frozen=True)
class AdaptiveKnnFusion(KnnFusion):
    """Neighbours' labels mixed with the model by a λ for each decision: p = λ(x)·p_kNN + (1-λ(x))·p_model.

    λ(x) = σ(w₂·tanh(W₁·x + b₁) + b₂), where x are the distances of the k neighbours, how many different labels the 1
    to k nearest have, and the model's confidence max_y log p(y|x) and entropy, standardised. While a text is written,
    and for the likelihood of its tokens, x are distances and numbers of labels.

    p_kNN, k and T are those of `knn`. The network learns on validation, whose decisions the model has not learned, from
    neighbours that each of them may see: neither its own text nor its group is among them. How long it learns, and
    whether it is used at all, is decided by answers of networks that have not seen the example, its group or its text;
    unless these are convincingly likelier than those of `knn`, and as right, λ stays one for all. See
    `peft_rag.fusion.share_lesson`.

    Source: Zheng et al. 2021, arXiv:2105.13022 (adaptive kNN-MT); He et al. 2021, arXiv:2109.04212 (adaptive λ from the
    model's confidence).

    Attributes:
        space: ``tuned`` searches among the features of the tuned backbone, ``retriever`` among the sentence encoder's.
        k: neighbours that vote; None to choose.
        temperature: T; None to choose.
        weight: λ where it is one for all, in [0, 1]; None to choose.
        search: ``exact`` or ``hnsw``, as for `knn`.
        adapts: whether λ depends on the decision; None to choose.
        hidden: size of the network's hidden layer.
        seed: of the network's first weights.
        network: what decides λ, once it has learned; no setting.
    """

    adapts: bool | None = None
    hidden: int = 32
    seed: int = 0
    network: ShareNetwork | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ConfigError(f"fusion.hidden is {self.hidden}; the network needs one hidden unit at least.")
        if isinstance(self.network, (str, int, float)):
            raise ConfigError("fusion.network is what is learned, and no option. Leave it out.")

    @property
    def setting(self) -> Setting | None:
        return None if self.adapts and self.network is None else super().setting

    @property
    def counts(self) -> bool:
        return self.adapts is not False or super().counts

    def share(self, found: Neighbours, memory: Memory | None, log_probs: Tensor | None) -> float | Tensor:
        if self.network is None:
            return super().share(found, memory, log_probs)
        return self.network.share(self._evidence(found, remembered(memory), log_probs))

    def fit(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task, targets: Tensor) -> Self:
        """Choose k, T and λ on validation as `knn` does, and learn λ(x) there; see `peft_rag.fusion.share_lesson`."""
        if not self.counts:
            return self
        plain = super().fit(outputs, split, memory, task, targets)
        assert plain.k is not None and plain.temperature is not None and plain.weight is not None  # noqa: PT018
        if self.adapts is False:
            return plain
        from peft_rag.fusion.share_lesson import Lesson, learned, worth

        known = remembered(memory)
        found = self._search(outputs, split, memory, plain.k)
        asked, own = targets if task.generates else None, outputs.log_probs.double()
        votes = neighbour_log_probs(found, known, task, plain.temperature, asked, own.dtype)
        evidence = plain._evidence(found, known, outputs.log_probs)
        lesson = Lesson(evidence, own, votes, task, targets, split.examples, outputs.decisions)
        network, unseen = learned(lesson, plain.weight, self.hidden, self.seed)
        adapts = bool(self.adapts) or worth(lesson, network, unseen, plain.weight)
        return replace(plain, adapts=adapts, network=network if adapts else None)

    def _evidence(self, found: Neighbours, memory: Memory, log_probs: Tensor | None) -> Tensor:
        from peft_rag.fusion.evidence import evidence, kinds_of

        assert self.k is not None
        opinion = log_probs if log_probs is not None and log_probs.dim() > 1 else None
        return evidence(found, kinds_of(memory), self.k, opinion)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.network is None else self.network.tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        from peft_rag.fusion.share_network import ShareNetwork

        return replace(self, network=ShareNetwork.of(tensors) if tensors else None)

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(replace(self, network=None))
        del settings["network"]
        return settings

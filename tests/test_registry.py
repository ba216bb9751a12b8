import subprocess
import sys

import pytest

from peft_rag.errors import (
    BrokenPluginError,
    DuplicatePluginError,
    UnknownFusionError,
    UnknownMethodError,
    UnknownRetrieverError,
    UnknownTaskError,
)
from peft_rag.registry import FUSIONS, METHODS, RETRIEVERS, TASKS, Group, available, describe, load, names, suggest

GROUP = Group("peft_rag.testing_only", "thing", "things", UnknownFusionError)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return what makes a distribution: its name, its entry points in a group of the tests' own, its files."""

    def make(name, entry_points, version="1.0", **files):
        folder = tmp_path / name
        information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {value}" for key, value in entry_points.items()]
        (information / "entry_points.txt").write_text("\n".join([f"[{GROUP.entry_points}]", *lines, ""]))
        for module, source in files.items():
            path = folder / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))

    yield make
    for module in [module for module in sys.modules if module.startswith("plug_")]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("group", "wrong", "nearest", "error"),
    [
        (METHODS, "lorra", "lora", UnknownMethodError),
        (FUSIONS, "conkat", "concat", UnknownFusionError),
        (TASKS, "text-clasification", "text-classification", UnknownTaskError),
        (RETRIEVERS, "exakt", "exact", UnknownRetrieverError),
    ],
)
def test_load_names_the_nearest_when_the_name_is_unknown(group, wrong, nearest, error):
    with pytest.raises(error) as caught:
        load(group, wrong)
    assert str(caught.value) == (
        f"no {group.noun} '{wrong}'. Did you mean '{nearest}'? Installed: {', '.join(names(group))} "
        f"(peft-rag {group.command} tells more)."
    )


def test_load_suggests_nothing_when_no_name_is_near():
    with pytest.raises(
        UnknownRetrieverError, match=r"^no retriever 'zzzzzz'\. Installed: bm25, exact, hnsw, hybrid.* \(peft-rag"
    ):
        describe(RETRIEVERS, "zzzzzz")


def test_suggest_prefers_the_closest_of_several():
    assert suggest("prompt-tunning", ["prefix-tuning", "prompt-tuning", "p-tuning"]) == " Did you mean 'prompt-tuning'?"
    assert suggest("learning", []) == ""


def test_load_returns_the_object_and_its_module_is_imported_once(install):
    install("one", {"a": "plug_one:Thing"}, plug_one="class Thing:\n    pass\n")
    thing = load(GROUP, "a")
    assert thing.__name__ == "Thing"
    assert load(GROUP, "a") is thing


def test_names_are_sorted_over_all_distributions(install):
    install("one", {"b": "plug_one:X", "d": "plug_one:X"}, plug_one="X = 1\n")
    install("two", {"a": "plug_two:X", "c": "plug_two:X"}, plug_two="X = 2\n")
    assert names(GROUP) == ["a", "b", "c", "d"]
    assert [(plugin.name, plugin.distribution) for plugin in available(GROUP)] == [
        ("a", "two 1.0"),
        ("b", "one 1.0"),
        ("c", "two 1.0"),
        ("d", "one 1.0"),
    ]


def test_load_reads_no_metadata_of_distributions_while_names_are_single(monkeypatch):
    def read(entry):
        raise AssertionError(f"metadata of '{entry.name}' was read")

    monkeypatch.setattr("peft_rag.registry._distribution", read)
    assert load(FUSIONS, "none").__name__ == "NoFusion"


@pytest.mark.parametrize("call", [available, names, lambda group: load(group, "a"), lambda group: load(group, "fine")])
def test_two_claims_to_one_name_are_an_error_naming_both(install, call):
    install("first", {"a": "plug_first:X", "fine": "plug_first:X"}, plug_first="X = 1\n")
    install("second", {"a": "plug_second:Y"}, version="2.3", plug_second="Y = 1\n")
    with pytest.raises(DuplicatePluginError) as caught:
        call(GROUP)
    assert str(caught.value) == (
        "thing 'a' is claimed by both second 2.3 ('plug_second:Y') and first 1.0 ('plug_first:X'). "
        "Uninstall one of them."
    )


BROKEN = {
    "no-module": ("plug_absent:X", "", "ImportError: no module named 'plug_absent'", "ModuleNotFoundError: No module"),
    "no-submodule": (
        "plug_bad.inner:X",
        "X = 1",
        "ImportError: no module named 'plug_bad.inner'",
        "ModuleNotFoundError: No module named 'plug_bad.inner'",
    ),
    "bare-folder": (
        "plug_folder:X",
        "",
        "ImportError: 'plug_folder' is a folder without __init__.py",
        "AttributeError: module 'plug_folder' has no attribute 'X'",
    ),
    "syntax": (
        "plug_bad:X",
        "def X(:\n",
        "SyntaxError: invalid syntax (plug_bad.py, line 1)",
        "SyntaxError: invalid syntax (plug_bad.py, line 1)",
    ),
    "no-attribute": (
        "plug_bad:X",
        "Y = 1",
        "ImportError: 'plug_bad.py' does not define 'X'",
        "AttributeError: module 'plug_bad' has no attribute 'X'",
    ),
    "malformed": (
        "not a target",
        "",
        "ValueError: 'not a target' names no object; an entry point looks like 'module:OBJECT'",
        "ValueError: 'not a target' names no object",
    ),
    "module-only": (
        "plug_bad",
        "X = 1",
        "ValueError: 'plug_bad' names no object; an entry point looks like 'module:OBJECT'",
        "ValueError: 'plug_bad' names no object",
    ),
    "raises": ("plug_bad:X", "X = 1\nraise RuntimeError('no licence')", "", "RuntimeError: no licence"),
    "missing-dependency": (
        "plug_bad:X",
        "import plug_not_there\nX = 1",
        "",
        "ModuleNotFoundError: No module named 'plug_not_there'",
    ),
    "exits": ("plug_bad:X", "import sys\nX = 1\nsys.exit('goodbye')", "", "SystemExit: goodbye"),
}


@pytest.mark.parametrize(("target", "source", "listed", "loaded"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_is_reported_and_does_not_hinder_the_others(install, target, source, listed, loaded):
    install("bad-one", {"broken": target}, version="0.9", plug_bad=source, **{"plug_folder/other": ""})
    install("good-one", {"works": "plug_good:X"}, plug_good="X = 42\n")

    plugins = {plugin.name: plugin for plugin in available(GROUP)}
    assert plugins["broken"].problem == listed
    assert plugins["broken"].distribution == "bad-one 0.9"
    assert plugins["works"].problem == ""
    assert load(GROUP, "works") == 42

    with pytest.raises(BrokenPluginError) as caught:
        load(GROUP, "broken")
    message = str(caught.value)
    assert message.startswith(f"thing 'broken' of bad-one 0.9 cannot be loaded from '{target}': {loaded}")
    assert message.endswith(". Repair or uninstall that distribution.")


DOCUMENTED = '''
"""About the module.

Source: The module's own paper.
"""

from plug_elsewhere import Imported

class Class:
    """A class.

    More of it.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    class Inner:
        """Not this."""

def function():
    """A function."""

VALUE = 1
"""A value,
in two lines."""

TYPED: int = 1
"""A typed value."""

BARE = 1

class Silent:
    x = 1

try:
    nested = 1
except ValueError:
    pass
'''


@pytest.mark.parametrize(
    ("attribute", "summary", "source"),
    [
        ("Class", "A class.", "Hu et al. 2021, arXiv:2106.09685."),
        ("Class.Inner", "A class.", "Hu et al. 2021, arXiv:2106.09685."),
        ("function", "A function.", ""),
        ("VALUE", "A value,", ""),
        ("TYPED", "A typed value.", ""),
        ("BARE", "About the module.", "The module's own paper."),
        ("Silent", "About the module.", "The module's own paper."),
        ("Imported", "About the module.", "The module's own paper."),
        ("nested", "About the module.", "The module's own paper."),
    ],
)
def test_summary_and_source_are_read_from_the_source_file_without_importing_it(install, attribute, summary, source):
    install("docs", {"a": f"plug_docs.deep:{attribute}"}, **{"plug_docs/__init__": "", "plug_docs/deep": DOCUMENTED})
    plugin = describe(GROUP, "a")
    assert (plugin.summary, plugin.source, plugin.problem) == (summary, source, "")
    assert plugin.target == f"plug_docs.deep:{attribute}"
    assert not [module for module in sys.modules if module.startswith("plug_docs")]


def test_summary_of_a_package_is_read_from_its_init(install):
    source = '"""The package."""\nfrom plug_pack.core import *\n'
    install("packages", {"a": "plug_pack:X"}, **{"plug_pack/__init__": source})
    plugin = describe(GROUP, "a")
    assert (plugin.summary, plugin.problem) == ("The package.", "")


def test_every_built_in_plugin_has_a_summary_and_no_problem():
    for group in (METHODS, FUSIONS, TASKS, RETRIEVERS):
        for plugin in available(group):
            assert plugin.problem == "", plugin
            assert plugin.summary.endswith("."), plugin
    assert "arXiv:2106.09685" in describe(METHODS, "lora").source


def test_listing_imports_neither_plugins_nor_anything_heavy():
    script = (
        "import sys\n"
        "from peft_rag.registry import GROUPS, available\n"
        "assert all(available(group) for group in GROUPS.values())\n"
        "heavy = 'torch numpy peft transformers sklearn datasets evaluate hnswlib peft_rag_adapters'.split()\n"
        "ours = ['peft_rag.fusion', 'peft_rag.tasks', 'peft_rag.retrieval', 'peft_rag.methods']\n"
        "print([name for name in heavy + ours if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

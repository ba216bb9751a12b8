"""A method from somebody else's distribution, installed for real, is one among all others."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "plugin"
GUIDE = ROOT / "docs" / "writing-a-method.md"

USE_IT = """
import warnings

warnings.simplefilter("error")
import torch
from peft import PeftModel

from peft_rag import registry
from peft_rag.methods import attach, method_options, quiet_peft, resolve
from peft_rag.testing import TINY_BACKBONES, check_method
from peft_rag.testing.methods import example_inputs, train_steps

torch.set_num_threads(1)
found = registry.describe(registry.METHODS, "scaling-vector")
assert found in registry.available(registry.METHODS)
assert found.distribution == "peft-rag-scaling-vector 0.1.0", found
assert found.summary == "Multiplies keys and values by a trained vector.", found
assert "arXiv:2205.05638" in found.source and not found.problem, found
assert "per_feature" in [option.name for option in method_options(resolve("scaling-vector"))]

make = TINY_BACKBONES["bert"]
inputs = example_inputs(make())
model, report = attach(make(), "scaling-vector")
assert len(report.matched) == 4, report
silent, unmoved = train_steps(model, inputs, resolve("scaling-vector").learning_rate)
assert not silent and not unmoved
model.eval().save_pretrained("saved", save_embedding_layers=False)
with quiet_peft():
    loaded = PeftModel.from_pretrained(make(), "saved").eval()
assert torch.equal(loaded(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
for family in ("bert", "llama", "t5"):
    for per_feature in (True, False):
        check_method("scaling-vector", TINY_BACKBONES[family], per_feature=per_feature)
print("all is well")
"""


@pytest.mark.slow
def test_plugin_installs_is_found_trains_saves_loads_and_conforms(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", str(PLUGIN)]
    run(python, *install, at=tmp_path)
    (tmp_path / "use_it.py").write_text(USE_IT, encoding="utf-8")
    assert "all is well" in run(python, "use_it.py", at=tmp_path)


def test_guide_shows_the_files_of_the_plugin_as_they_are() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for language, name in (("python", "scaling_vector.py"), ("toml", "pyproject.toml")):
        shown = re.search(rf"```{language}\n(.*?)```", guide, flags=re.DOTALL)
        assert shown is not None
        assert shown[1] == (PLUGIN / name).read_text(encoding="utf-8"), f"docs and {name} differ"


def fresh_environment(folder: Path) -> Path:
    """Make an environment of its own that sees, read-only, the packages of this one."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    heavy = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # addsitedir, and not the bare path, so that .pth files in there count: peft-rag may be installed editable.
    lines = [f"import site; site.addsitedir({path!r})" for path in heavy]
    (own / "heavy.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return python


def run(python: Path, *arguments: str, at: Path | None = None) -> str:
    """Run Python and return what it printed; show everything if it fails."""
    done = subprocess.run([str(python), *arguments], cwd=at, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout

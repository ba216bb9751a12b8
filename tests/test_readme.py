"""Every command and every Python block of the README runs, on small data where the real would take long."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from peft_rag.cli import main
from peft_rag.config import from_mapping, read_yaml
from peft_rag.packaged import PREPARED
from tests.conftest import toy_records, write_jsonl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    words
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    for part in line.split("&&")
    if (words := shlex.split(part))[:1] == ["peft-rag"]
]
RUN_FILES = sorted((ROOT / "examples").glob("wiki-topics*.yaml"))
TASK_FILES = [ROOT / f"examples/{name}.yaml" for name in ("choices", "entities", "relations", "senses")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:No sentence-transformers model found"),
]


@pytest.fixture
def newcomer(tmp_path: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder as a newcomer has it: the examples, and four files of their own; returns flags that make runs small."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    # A quarter of a gigabyte and minutes; tests/backbones prepares it for real.
    monkeypatch.setattr("peft_rag.preparation.prepare", lambda name, say: say(PREPARED[name].licence))
    for seed, name in enumerate(("train", "validation", "test", "corpus", "questions")):
        write_jsonl(tmp_path / f"{name}.jsonl", toy_records(30, seed))
    judged = [{**record, "relevant": [f"3-{number}"]} for number, record in enumerate(toy_records(5, 5))]
    write_jsonl(tmp_path / "queries.jsonl", judged)
    make_decoder(tmp_path / "tiny-decoder", tiny_bert)
    data = [f"--{name}={name}.jsonl" for name in ("train", "validation", "test")]
    return [*data, f"--backbone={tiny_bert}", f"--encoder={tiny_bert}", "--max_length=32", "--max_steps=2"]


def make_decoder(folder: Path, like: str) -> None:
    """Save a tiny GPT-2 with the words of another tiny model; most of a text is unknown to it."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(like)
    tokenizer.eos_token = "[SEP]"
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def on_own_data(flags: list[str]) -> list[str]:
    """Return the flags that make a run small whose file names its own data; what is judged must lie in the window."""
    return [flag for flag in flags if flag.startswith(("--backbone", "--encoder", "--max_steps"))] + ["--max_length=64"]


def small(words: list[str], flags: list[str]) -> list[str]:
    """Return a command of the README with the flags that make its run small; what it names stays, but lengths."""
    given = words[1:]
    if given[0] == "index" and given[1] not in ("delete", "info", "compact"):
        return given + [flag for flag in flags if flag.startswith("--encoder")]
    if given[0] == "benchmark":
        return [*given, "--dry-run"]
    if given[0] not in ("train", "recommend") or "--help" in given:
        return given
    if ROOT / given[1] in TASK_FILES:
        return given + on_own_data(flags)
    if given[0] == "recommend":
        given += ["--methods=head,bitfit", "--trials=1"]
    run_file = next((word for word in given if word.endswith(".yaml")), "")
    if run_file and from_mapping(read_yaml(run_file)).task in ("text-generation", "text2text"):
        # Its own few dozen records, and a tiny decoder in place of a real one.
        return [
            *given,
            "--backbone=tiny-decoder",
            *(flag for flag in flags if flag.startswith(("--encoder", "--max_steps"))),
        ]
    tiny = next(flag.partition("=")[2] for flag in flags if flag.startswith("--backbone"))
    for name, value in (("--max_length", "32"), ("--last_layers", "1"), ("--backbone", tiny)):
        if name in given:
            given[given.index(name) + 1] = value
    data = ("--train", "--validation", "--test") if "examples/question-answering.yaml" in given else ()
    return given + [flag for flag in flags if flag.partition("=")[0] not in (*given, *data)]


def test_readme_commands_run_as_written(newcomer: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) >= 14
    for words in COMMANDS:
        try:
            status = main(small(words, newcomer))
        except SystemExit as exit:
            status = int(exit.code or 0)
        output = capsys.readouterr()
        assert status == 0, f"{shlex.join(words)}: {output.err}"
        assert output.out


def test_readme_python_runs(newcomer: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_rag import RetrievalAugmentedModel

    assert main(["train", *newcomer, "--corpus=corpus.jsonl", "--output=runs/mine"]) == 0
    load = RetrievalAugmentedModel.from_pretrained
    pushed: list[str] = []
    monkeypatch.setattr("peft_rag.publishing.publish_folder", lambda folder, repo_id, private: pushed.append(repo_id))
    monkeypatch.setattr(
        RetrievalAugmentedModel,
        "from_pretrained",
        lambda source, **options: load("runs/mine" if source == "your-name/your-adapter" else source, **options),
    )
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert pushed == ["your-name/your-adapter"]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_run_file_runs_by_changing_one_word(path: Path, newcomer: list[str]) -> None:
    assert main(["train", f"examples/{path.name}", *newcomer, "--disable_tqdm"]) == 0
    config = from_mapping(yaml.safe_load(path.read_text()))
    assert (Path(config.output) / "adapter_model.safetensors").is_file()
    others = [from_mapping(yaml.safe_load(other.read_text())).to_dict() for other in RUN_FILES]
    same = [{name: value for name, value in other.items() if name not in ("method", "output")} for other in others]
    assert all(other == same[0] for other in same)


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: path.stem)
def test_run_file_of_another_task_runs_on_data_of_its_own(path: Path, newcomer: list[str]) -> None:
    assert main(["train", f"examples/{path.name}", *on_own_data(newcomer), "--disable_tqdm"]) == 0
    config = from_mapping(yaml.safe_load(path.read_text()))
    assert (Path(config.output) / "adapter_model.safetensors").is_file()
    assert all(name.startswith("examples/data/") for name in (config.train, config.test))


def test_readme_data_error_is_the_one_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"text": "a", "label": "b"}'] * 11 + ['{"body": "a", "label": "b"}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert main(["train", "--train", str(tmp_path / "train.jsonl"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() in README

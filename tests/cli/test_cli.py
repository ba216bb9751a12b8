from __future__ import annotations

import io
import json
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest

from peft_rag.cli.flags import read_flags
from peft_rag.cli.train import _merge
from peft_rag.errors import ConfigError
from tests.cli.conftest import Run


@pytest.fixture
def trained(peft_rag: Run, tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> Path:
    run_file = tmp_path / "run.yaml"
    lines = [f"{name}: {path}" for name, path in toy_data.items()]
    lines += [f"backbone: {tiny_bert}", f"encoder: {tiny_bert}", "method: {name: lora, r: 4}", "learning_rate: 1e-2"]
    run_file.write_text("\n".join([*lines, "max_length: 32", f"output: {tmp_path / 'out'}"]))
    status, out, _ = peft_rag(
        "train",
        str(run_file),
        "--num_train_epochs=3",
        "--disable-tqdm",
        "--fusion.space",
        "tuned",
        "--fusion.weight",
        "0.5",
    )
    assert status == 0
    for arm in ("untrained", "retrieval alone", "without retrieval", "with retrieval"):
        assert f"\n{arm} " in out
    assert "saved: " in out
    return tmp_path / "out"


def test_trained_artefact_predicts_explains_and_evaluates(
    peft_rag: Run, trained: Path, toy_data: dict[str, str], tmp_path: Path
) -> None:
    assert json.loads((trained / "adapter_config.json").read_text())["r"] == 4

    status, out, _ = peft_rag("predict", str(trained), toy_data["test"])
    lines = [json.loads(line) for line in out.splitlines()]
    assert (status, len(lines)) == (0, 30)
    assert set(lines[0]) == {"text", "label", "probability"}

    status, out, _ = peft_rag("predict", str(trained), toy_data["test"], "--explain")
    line = json.loads(out.splitlines()[0])
    assert set(line) == {"text", "label", "probability", "without_retrieval", "neighbours"}
    assert line["without_retrieval"] is None or set(line["without_retrieval"]) == {"label", "probability"}
    neighbours = line["neighbours"]
    assert set(neighbours[0]) == {"id", "score", "weight", "effect", "label_without", "labels", "text"}
    assert [one["score"] for one in neighbours] == sorted((one["score"] for one in neighbours), reverse=True)
    assert sum(one["weight"] for one in neighbours) <= 1.001

    html = tmp_path / "page.html"
    status, again, _ = peft_rag("predict", str(trained), toy_data["test"], "--explain", "--html", str(html))
    assert (status, again) == (0, out)
    shown = html.read_text()
    assert shown.count("<article") == 30
    assert all(escape(json.loads(one)["text"]) in shown for one in out.splitlines())
    assert escape(neighbours[0]["text"]) in shown
    status, _, err = peft_rag("predict", str(trained), toy_data["test"], "--explain", "--html", str(html))
    assert status == 2
    assert "exists already. Name another file with --html." in err

    answers = tmp_path / "answers.jsonl"
    assert peft_rag("predict", str(trained), toy_data["test"], "--output", str(answers))[0] == 0
    assert len(answers.read_text().splitlines()) == 30
    status, _, err = peft_rag("predict", str(trained), toy_data["test"], "--output", str(answers))
    assert status == 2
    assert "exists already. Name another file with --output." in err

    status, out, _ = peft_rag("evaluate", str(trained), "--data", toy_data["test"])
    measured = json.loads((trained / "metrics.json").read_text())["test"]["accuracy"]
    assert status == 0
    assert f"accuracy  {100 * measured:.1f} [" in out
    assert peft_rag("evaluate", str(trained), "--data", toy_data["test"], "--device", "cpu")[1] == out
    status, _, err = peft_rag("evaluate", str(trained), "--data", toy_data["test"], "--device", "cuda:99")
    assert status == 2
    assert "device 'cuda:99' is not to be had here" in err
    for command in (
        ("predict", str(trained), toy_data["test"]),
        ("evaluate", str(trained), "--data", toy_data["test"]),
    ):
        assert peft_rag(*command, "--batch-size", "0")[2] == "ConfigError: --batch-size is 0; it must be at least 1.\n"
    seed = ("--seed", "-1")
    assert "ConfigError: --seed is -1" in peft_rag("predict", str(trained), toy_data["test"], *seed)[2]


def test_predict_reads_lines_from_standard_input(peft_rag: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(content: bytes, *flags: str) -> tuple[int, list[Any], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        status, out, err = peft_rag("predict", str(trained), "-", *flags)
        return status, [json.loads(line) for line in out.splitlines()], err

    _, said, _ = typed("\ufeffapple pear plum\n\niron zinc\n".encode())
    assert [(one["text"], one["label"]) for one in said] == [("apple pear plum", "fruit"), ("iron zinc", "metal")]
    assert typed(b"")[:2] == (0, [])
    status, _, err = typed(b"apple\ncaf\xe9\n")
    assert (status, err.count("\n")) == (2, 1)
    assert "DataError: standard input line 2: byte 0xe9 (byte 4 of the line) is no UTF-8. " in err
    assert err.endswith("Convert it with iconv: iconv -f WINDOWS-1252 -t UTF-8\n")
    status, said, _ = typed(b"apple\ncaf\xe9\niron\n", "--on-bad-record", "skip")
    assert [set(one) == {"error"} for one in said] == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"text": "a"}\n{"text": \n', "line 2"),
        ('{"body": "a"}\n', "field 'text' is missing (found: body). Name the field with --text_field body."),
        ('{"text": " "}\n', "line 1: field 'text' is empty"),
        ('{"text": "a", "label": "fruit"}\n{"text": "b"}\n', "line 2: field 'label' is missing"),
        (
            '{"text": "a", "label": "frit"}\n',
            "label 'frit' does not occur in the training data (3 labels). Did you mean 'fruit'?",
        ),
        (b'{"text": "caf\xe9", "label": "fruit"}\n', "line 1"),
    ],
)
def test_bad_data_is_one_line_with_status_2(
    peft_rag: Run, tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, content: str | bytes, message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    train = ["train", "--train", toy_data["train"], "--output", str(tmp_path / "out"), "--backbone", tiny_bert]
    status, _, err = peft_rag(*train, "--encoder", tiny_bert, "--validation", str(bad))
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("DataError: ")
    assert message in err
    assert "bad.jsonl" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "--train is missing"),
        (("train", "nowhere.yaml"), "run file 'nowhere.yaml' does not exist"),
        (("train", "--train", "a.jsonl", "--output", "o", "--lernrate", "1"), "unknown name 'lernrate'"),
        (("train", "--train", "a.jsonl", "b.jsonl"), "'b.jsonl' is neither a flag nor a flag's value"),
        (
            ("train", "--train", "a.jsonl", "--output", "o", "--shots", "few"),
            "shots is 'few', but must be a whole number",
        ),
        (
            ("train", "--train", "a.jsonl", "--output", "o", "--task.labels", "x,y"),
            "task.labels is no option: labels are those of the training data",
        ),
        (("methods", "lorra"), "no PEFT method 'lorra'. Did you mean 'lora'?"),
        (("fusions", "knm"), "no fusion 'knm'. Did you mean 'knn'?"),
        (("tasks", "text-clasification"), "Did you mean 'text-classification'?"),
        (("retrievers", "hnws"), "Did you mean 'hnsw'?"),
        (("predict", "nowhere", "a.jsonl"), "a.jsonl"),
        (("predict", "nowhere", "a.jsonl", "--html", "a.html"), "--html writes explanations. Add --explain."),
        (
            ("predict", "nowhere", "a.jsonl", "--explain", "--html", "a.html", "--output", "./a.html"),
            "--html and --output both name 'a.html'. Name two files.",
        ),
    ],
)
def test_bad_words_are_one_line_with_status_2(peft_rag: Run, words: tuple[str, ...], message: str) -> None:
    status, out, err = peft_rag(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_fault_of_ours_is_a_traceback_with_status_1(tmp_path: Path) -> None:
    script = (
        "import sys, peft_rag.cli.plugins as plugins\n"
        "def broken(*_): raise RuntimeError('ours')\n"
        "plugins.available = broken\n"
        "from peft_rag.cli import main\n"
        "sys.exit(main(['methods']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: ours" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["train", "--help"], ["fusions"], []])
def test_help_and_lists_import_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys, io, contextlib\n"
        "from peft_rag.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({words!r})\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'sklearn', 'evaluate', 'peft_rag_adapters'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "peft_rag", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("peft-rag ")


@pytest.mark.parametrize(
    ("command", "name", "shown"),
    [
        ("methods", "bitfit", ["Ben Zaken", "--method."]),
        ("fusions", "knn", ["Khandelwal", "--fusion.temperature", "None to choose"]),
        ("tasks", "text-classification", ["--task.pooling"]),
        ("retrievers", "hnsw", ["Malkov", "--retriever.ef_construction", "200"]),
    ],
)
def test_one_plugin_is_shown_with_its_options(peft_rag: Run, command: str, name: str, shown: list[str]) -> None:
    status, out, _ = peft_rag(command, name)
    assert status == 0
    for part in shown:
        assert part in out


def test_lists_have_a_line_and_a_summary_for_every_plugin(peft_rag: Run) -> None:
    for command in ("methods", "fusions", "tasks", "retrievers"):
        _, out, err = peft_rag(command)
        assert err == ""
        header, *lines = out.splitlines()
        assert header.split()[:2] == ["name", "distribution"]
        assert lines
        column = header.index("what it does")
        assert all(line[column:].strip() for line in lines)


def test_flag_for_another_part_drops_the_options_of_the_one_in_the_file() -> None:
    settings: dict[str, Any] = {"method": {"name": "lora", "r": 4}, "fusion": "knn", "fusion.k": 8}
    assert _merge(settings, {"method": "bitfit"}) == {"method": "bitfit", "fusion": "knn", "fusion.k": 8}
    assert _merge(settings, {"method": "lora"})["method"] == {"name": "lora", "r": 4}
    assert _merge(settings, {"fusion": "none"}) == {"method": {"name": "lora", "r": 4}, "fusion": "none"}


def test_options_given_by_flags_hold_whatever_their_order() -> None:
    settings: dict[str, Any] = {"method": {"name": "lora", "r": 4}, "fusion": "knn", "fusion.k": 8}
    flags = {"fusion.k": "2", "method.variant": "parallel"}
    parts = {"fusion": "concat", "method": "adapter"}
    for given in ({**flags, **parts}, {**parts, **flags}):
        assert _merge(settings, given) == given


def test_flags_are_read_like_a_run_file() -> None:
    assert read_flags(["--max-length", "8", "--fusion.k=3"]) == {"max_length": "8", "fusion.k": "3"}
    with pytest.raises(ConfigError, match="--seed is given twice"):
        read_flags(["--seed", "1", "--seed", "2"])


@pytest.mark.parametrize("words", [["--output"], ["--output", "--resume"], ["--resume", "--output"]])
def test_a_flag_that_is_no_switch_cannot_stand_alone(words: list[str], peft_rag: Run) -> None:
    status, _, err = peft_rag("train", "--train", "a.jsonl", *words)
    assert (status, err) == (2, "ConfigError: --output stands alone, but needs a value behind it.\n")
    assert peft_rag("recommend", "--train", "a.jsonl", "--budget_minutes")[2].startswith(
        "ConfigError: --budget_minutes st"
    )
    assert read_flags(["--resume", "--method.use_rslora"], valued={"output"}) == {
        "resume": "true",
        "method.use_rslora": "true",
    }


def test_what_a_method_does_not_promise_is_shown_with_it(peft_rag: Run) -> None:
    status, out, _ = peft_rag("methods", "adalora")
    assert status == 0
    assert "does not hold: several adapters (peft trains one AdaLoRA adapter at a time)" in out.splitlines()
    assert "does not hold" not in peft_rag("methods", "lora")[1]

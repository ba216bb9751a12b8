"""Records that cannot be used: the first is an error, or with ``skip`` all are left out, counted and reported."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from peft_rag.artefact import load
from peft_rag.config import from_mapping
from peft_rag.data import read_splits
from peft_rag.errors import ConfigError, CorpusError, DataError, PeftRagError
from peft_rag.job import run
from peft_rag.refusals import LeftOut, sift
from peft_rag.registry import TASKS
from peft_rag.registry import load as plugin
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer
from peft_rag.usable import read_given
from tests.cli.conftest import peft_rag as peft_rag  # the fixture
from tests.conftest import FILLER, WORDS, toy_records, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

REFUSED: dict[str, tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]] = {
    "text-classification": (
        {"text": "a", "label": "x"},
        [({"text": " ", "label": "x"}, "'text' is empty"), ({"text": "a"}, "'label' is missing")],
    ),
    "token-classification": (
        {"tokens": ["Ada", "left"], "tags": ["B-person", "O"]},
        [
            ({"tokens": ["Ada", "left"], "tags": ["O", "I-person"]}, "I-person"),
            ({"tokens": ["Ada"], "tags": ["O", "O"]}, "Give one tag for each token"),
            ({"text": "Ada left", "spans": [{"start": 0, "end": 99, "label": "p"}]}, "lies outside"),
        ],
    ),
    "relation-extraction": (
        {"tokens": ["Oslo", "leads"], "head": [0], "tail": [1], "label": "x"},
        [({"tokens": ["Oslo", "leads"], "head": [0], "tail": [7], "label": "x"}, "lies outside of its 2 tokens")],
    ),
    "question-answering": (
        {"question": "Who?", "context": "It was Ada.", "answers": {"text": ["Ada"], "answer_start": [7]}},
        [
            ({"question": "Who?", "context": "No one.", "answers": {"text": ["Ada"], "answer_start": [0]}}, "stands"),
            ({"question": "Who?", "context": "Ada.", "answers": {"text": ["Ada"], "answer_start": []}}, "as many"),
        ],
    ),
    "multiple-choice": (
        {"question": "What?", "choices": ["a", "b"], "label": "a"},
        [({"question": "What?", "choices": ["a", "b"], "label": "c"}, "none of the 2 choices")],
    ),
    "text-generation": (
        {"prompt": "w1", "response": "w2"},
        [
            ({"prompt": "w1", "response": " "}, "'response' is empty"),
            ({"messages": [{"role": "user", "content": "w1"}]}, "what is learned is the assistant's"),
        ],
    ),
    "text2text": ({"source": "w1", "target": "w2"}, [({"source": "w1", "target": ""}, "'target' is empty")]),
}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_sifted_is_what_a_plain_loop_finds(seed: int) -> None:
    draw = random.Random(seed)
    items = [draw.random() for _ in range(draw.randrange(20))]
    share = draw.choice((0.0, 0.1, 0.5, 1.0))

    def use(part: Any) -> None:
        for item in part:
            if item < share:
                raise DataError(f"{item} is too small")

    kept, refused = sift(items, use)
    assert kept == [item for item in items if item >= share]
    assert [(item, str(error)) for item, error in refused] == [
        (item, f"{item} is too small") for item in items if item < share
    ]


def test_a_corpus_that_is_refused_is_no_bad_record() -> None:
    def use(part: Any) -> None:
        raise CorpusError("the contexts cannot be read")

    with pytest.raises(CorpusError, match="the contexts cannot be read"):
        sift([1, 2], use)


def test_a_report_shows_the_first_few_and_counts_the_rest() -> None:
    left_out = LeftOut(10, tuple(f"a.jsonl line {line}: empty" for line in range(7)))
    lines = left_out.lines("train")
    assert lines[0] == "train: 7 of 10 records left out"
    assert lines[1:6] == [f"  a.jsonl line {line}: empty" for line in range(5)]
    assert lines[6:] == ["  and 2 more"]
    assert left_out.to_dict() == {"count": 7, "of": 10, "first": [line.strip() for line in lines[1:6]]}
    assert LeftOut(10).lines("train") == []


@pytest.mark.parametrize("task", REFUSED)
def test_every_task_leaves_out_what_it_refuses_and_keeps_the_rest(task: str, tmp_path: Path) -> None:
    good, bad = REFUSED[task]
    rows = [good, *[row for row, _ in bad], good]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    chosen = plugin(TASKS, task)().with_tokenizer(word_tokenizer())
    with pytest.raises(DataError, match="line 2"):
        read_given(path, skip=False).read(chosen)
    usable = read_given(path, skip=True).read(chosen)
    assert usable.lines == [1, len(rows)]
    assert [one.where for one in usable.examples] == ["data.jsonl line 1", f"data.jsonl line {len(rows)}"]
    assert [line for line, _ in usable.refused] == list(range(2, len(rows)))
    for (line, reason), (_, why) in zip(usable.refused, bad, strict=True):
        assert reason.startswith(f"data.jsonl line {line}")
        assert why in reason


@pytest.mark.parametrize(
    ("name", "content", "kept", "refused"),
    [
        ("a.jsonl", b'{"n": 1}\n{"n": \n[2]\n\xff\n{"n": 3}\n', [1, 5], [2, 3, 4]),
        ("a.csv", b"n,m\n1,2\n3\n4,5\n", [2, 4], [3]),
        ("a.json", b'[{"n": 1}, 2, {"n": 3}]', [1, 3], [2]),
    ],
)
def test_lines_that_are_no_record_are_left_out_where_the_others_can_be_told_apart(
    tmp_path: Path, name: str, content: bytes, kept: list[int], refused: list[int]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    given = read_given(str(path), skip=True)
    assert [record.line for record in given.records] == kept
    assert [line for line, _ in given.refused] == refused
    with pytest.raises(DataError, match=rf"{name} (line|row) {refused[0]}"):
        read_given(str(path), skip=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'n,m\n1,"2\n3,4\n', "not CSV"),
        ("a.json", b'[{"n": 1}, ', "not JSON"),
        ("a.jsonl", "n".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b"\n", "holds no records"),
    ],
)
def test_a_file_whose_rows_cannot_be_told_apart_stays_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_given(str(tmp_path / name), skip=True)


def test_data_of_which_nothing_is_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": ""}, {"text": " "}])
    with pytest.raises(
        DataError, match=r"no record is left of 2, because 2 were refused. The first: data.jsonl line 1"
    ):
        read_given(path, skip=True).read(plugin(TASKS, "text-classification")())


def tagged(count: int, seed: int, words: int = 6) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        tokens = [draw.choice(FILLER if draw.random() < 0.5 else WORDS["metal"]) for _ in range(words)]
        tags = ["B-metal" if token in WORDS["metal"] else "O" for token in tokens]
        rows.append({"id": f"{seed}-{number}", "tokens": tokens, "tags": tags})
    return rows


BROKEN = {"id": "broken", "tokens": ["iron"], "tags": ["I-metal"]}
LONG = {**tagged(1, 9, words=80)[0], "id": "long"}
TWICE = {**tagged(1, 8)[0], "id": "1-0"}
UNKNOWN = {"id": "unknown", "tokens": ["iron"], "tags": ["B-ore"]}


def run_quietly(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return dict(run(from_mapping(settings), say=said.append).metrics), said


@pytest.fixture
def soiled(tmp_path: Path, tiny_bert: str) -> dict[str, Any]:
    """A run of tagging in which every split has records that cannot be used, for every reason there is."""
    train = [*tagged(5, 1), BROKEN, LONG, TWICE, *tagged(25, 2)]
    return {
        "task": "token-classification",
        "train": write_jsonl(tmp_path / "train.jsonl", train),
        "validation": write_jsonl(tmp_path / "validation.jsonl", [UNKNOWN, *tagged(8, 3)]),
        "test": write_jsonl(tmp_path / "test.jsonl", [*tagged(4, 4), UNKNOWN, BROKEN, *tagged(4, 5), LONG]),
        "backbone": tiny_bert,
        "encoder": tiny_bert,
        "max_length": 32,
        "max_steps": 2,
        "disable_tqdm": True,
        "on_bad_record": "skip",
        "output": str(tmp_path / "out"),
    }


def test_a_run_counts_what_it_leaves_out_and_is_that_on_the_rest(soiled: dict[str, Any], tmp_path: Path) -> None:
    measured, said = run_quietly(soiled)
    counts = {name: (about["count"], about["of"]) for name, about in measured["left_out"].items()}
    assert counts == {"train": (3, 33), "validation": (1, 9), "test": (3, 11)}
    text = "\n".join(said)
    for reason in ("line 6: tag 1 is 'I-metal'", "line 8: id '1-0' was given already", "line 7: word"):
        assert any(reason in one for one in measured["left_out"]["train"]["first"]), reason
        assert f"train.jsonl {reason}" in text
    assert "test, read by the backbone: 3 of 11 records left out" in text
    assert json.loads((tmp_path / "out/metrics.json").read_text())["left_out"] == measured["left_out"]

    clean = dict(soiled, on_bad_record="error", output=str(tmp_path / "clean"))
    for name, rows in {
        "train": [*tagged(5, 1), *tagged(25, 2)],
        "validation": tagged(8, 3),
        "test": [*tagged(4, 4), *tagged(4, 5)],
    }.items():
        clean[name] = write_jsonl(tmp_path / f"{name}-clean.jsonl", rows)
    expected, _ = run_quietly(clean)
    assert expected["left_out"] == {}
    assert measured["arms"] == expected["arms"]


def test_the_corpus_of_training_data_lacks_what_is_left_out_and_is_found_again(
    soiled: dict[str, Any], tmp_path: Path
) -> None:
    run_quietly({**soiled, "validation": "", "fusion.weight": 0.5})
    manifest = json.loads((tmp_path / "out/peft_rag.json").read_text())
    about = manifest["knowledge"]["corpus"]
    assert (about["documents"], about["on_bad_record"], about["left_out"]) == (30, "skip", ["long"])
    model = load(str(tmp_path / "out"))
    assert model.knowledge is not None
    assert [one.id for one in model.knowledge.corpus] == [row["id"] for row in [*tagged(5, 1), *tagged(25, 2)]]
    (answer,) = model.predict(["iron and tin"])
    assert len(answer.labels) == 3


def test_every_kind_of_bad_record_is_an_error_by_default(soiled: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl line 6"):
        run_quietly({**soiled, "on_bad_record": "error"})


def test_documents_of_a_corpus_of_its_own_must_all_be_usable(soiled: dict[str, Any], tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "iron"}, {"text": ""}])
    with pytest.raises(CorpusError, match=r"corpus\.jsonl line 2"):
        run_quietly({**soiled, "corpus": corpus, "fusion": "concat", "fusion.k": 1})


def test_ids_may_repeat_where_the_training_data_is_not_the_corpus(soiled: dict[str, Any], tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "iron"}])
    task = plugin(TASKS, "token-classification")()
    given = {name: soiled[name] for name in ("train", "validation", "test")}
    splits = read_splits(task, **given, corpus=corpus, on_bad_record="skip")
    assert [example.id for example in splits.train].count("1-0") == 2
    assert splits.left_out["train"].to_dict()["count"] == 1


def test_shots_are_drawn_from_what_can_be_used_and_again_by_the_artefact(tiny_bert: str, tmp_path: Path) -> None:
    rows = toy_records(30, 1)
    train = write_jsonl(tmp_path / "train.jsonl", [*rows[:3], {"id": "x", "text": "", "label": "metal"}, *rows[3:]])
    settings = {"train": train, "validation": train, "backbone": tiny_bert, "encoder": tiny_bert, "shots": 3}
    settings |= {"max_length": 32, "max_steps": 1, "disable_tqdm": True, "on_bad_record": "skip", "method": "head"}
    measured, _ = run_quietly({**settings, "output": str(tmp_path / "out")})
    assert measured["left_out"]["train"]["count"] == measured["left_out"]["validation"]["count"] == 1
    assert load(str(tmp_path / "out")).predict(["iron"])


def test_soft_tokens_leave_less_room_for_what_is_judged(soiled: dict[str, Any]) -> None:
    tight = {**tagged(1, 7, words=30)[0], "id": "tight"}
    path = Path(soiled["train"])
    path.write_text(path.read_text() + json.dumps(tight) + "\n", encoding="utf-8")
    options = {"fusion": "projector", "fusion.k": 1, "fusion.tokens": 8}
    measured, _ = run_quietly({**soiled, **options})
    assert measured["left_out"]["train"]["count"] == 4


def test_predictions_stay_in_line_with_their_records(
    soiled: dict[str, Any], peft_rag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_quietly(soiled)
    path = Path(soiled["test"])
    path.write_text(path.read_text() + "{broken\n", encoding="utf-8")
    status, _, error = peft_rag("predict", soiled["output"], str(path))
    assert (status, error.count("\n")) == (2, 1)
    status, lines, said = peft_rag("predict", soiled["output"], str(path), "--on-bad-record", "skip")
    written = [json.loads(line) for line in lines.splitlines()]
    assert (status, len(written)) == (0, 12)
    refused = {place + 1: line["error"] for place, line in enumerate(written) if "error" in line}
    assert refused.keys() == {11, 12}
    assert "test.jsonl line 11: word 31 of 80" in refused[11]
    assert "not JSON" in refused[12]
    assert "2 of 12 records left out" in said
    status, table, _ = peft_rag("evaluate", soiled["output"], "--data", str(path), "--on-bad-record", "skip")
    assert status == 0
    assert "4 of 12 records left out" in table
    assert "in percent on 8 examples" in table

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"iron and tin\n" + b"iron " * 80 + b"\nand\n")))
    status, lines, _ = peft_rag("predict", soiled["output"], "-", "--on-bad-record", "skip")
    assert [set(json.loads(line)) == {"error"} for line in lines.splitlines()] == [False, True, False]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"iron " * 80)))
    status, _, error = peft_rag("predict", soiled["output"], "-", "--on-bad-record", "skip")
    assert (status, "standard input: no record is left of 1" in error) == (2, True)


def test_a_prompt_longer_than_the_window_is_left_out_of_writing(tiny_bert: str, tmp_path: Path, peft_rag: Any) -> None:
    folder = tmp_path / "gpt2"
    TINY_BACKBONES["gpt2"]().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    rows = [{"prompt": f"w{n}", "response": f"w{n + 1}", "id": str(n)} for n in range(8)]
    long = {"prompt": "w1 " * 60, "response": "w2", "id": "long"}
    data = write_jsonl(tmp_path / "data.jsonl", [*rows[:2], long, {"prompt": "w1", "response": ""}, *rows[2:]])
    out = str(tmp_path / "out")
    flags = [f"--train={data}", f"--validation={data}", f"--backbone={folder}", f"--encoder={tiny_bert}"]
    flags += ["--task=text-generation", "--task.target_length=4", "--max_length=32", "--max_steps=1", "--fusion=knn"]
    flags += ["--disable_tqdm=true", f"--output={out}"]
    assert peft_rag("train", *flags)[0] == 2
    status, said, _ = peft_rag("train", *flags, "--on-bad-record", "skip")
    assert status == 0
    assert "the prompt has 62 tokens, but max_length leaves 28" in said
    status, lines, _ = peft_rag("predict", out, data, "--on-bad-record=skip")
    assert [place for place, line in enumerate(lines.splitlines()) if "error" in json.loads(line)] == [2]
    status, text, _ = peft_rag("predict", out, data, "--on-bad-record=skip", "--stream")
    assert status == 0
    assert "error: data.jsonl line 3: the prompt has 62 tokens" in text


def test_any_other_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"on_bad_record is 'ignore'\. Choose error or skip"):
        from_mapping({"train": "a", "output": "b", "on_bad_record": "ignore"})


def test_a_split_that_the_backbone_cannot_read_at_all_is_an_error(soiled: dict[str, Any]) -> None:
    write_jsonl(Path(soiled["test"]), [LONG])
    with pytest.raises(PeftRagError, match="test: no record is left of 1"):
        run_quietly(soiled)

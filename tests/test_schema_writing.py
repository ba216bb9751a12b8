"""Written texts that keep to a JSON schema."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from peft_rag.backbone import as_backbone
from peft_rag.cli import main
from peft_rag.cli.writing import decoding_of
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Split
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.generation import write
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.text2text import Text2Text
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import word_tokenizer
from tests.conftest import write_jsonl

needs_llguidance = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None, reason="llguidance is absent (extra schema)"
)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer"},
        "kinds": {"type": "array", "items": {"enum": ["ab", "c"]}, "minItems": 1},
        "near": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
    "required": ["name", "count", "kinds"],
    "additionalProperties": False,
}


def assert_of_schema(text: str) -> None:
    """Check a text of `SCHEMA` in plain words."""
    value = json.loads(text)
    assert isinstance(value, dict)
    assert {"name", "count", "kinds"} <= value.keys() <= {"name", "count", "kinds", "near"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 5
    assert isinstance(value["count"], int)
    assert not isinstance(value["count"], bool)
    assert value["kinds"]
    assert set(value["kinds"]) <= {"ab", "c"}
    if "near" in value:
        assert isinstance(value["near"]["ok"], bool)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes, of which some pairs are tokens too."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[PAD]": 0, "[END]": 1, **{letter: number for number, letter in enumerate(letters, 2)}}
    merges = [('"', "}"), ('"', ":"), ("a", "b")]
    vocabulary |= {"".join(pair): len(vocabulary) + number for number, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]")


def decoder() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 192, "vocab_size": 264}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=1, initializer_range=0.3))


def model_of(fusion: Any = None, **options: Any) -> RetrievalAugmentedModel:
    corpus = Corpus([Document("0", "abc"), Document("1", "count 7"), Document("2", "c")])
    knowledge = Knowledge(corpus, ExactRetriever(WordEncoder()), "exact", "words")
    backbone = as_backbone(decoder(), byte_tokenizer(), "bytes")
    task = Text2Text(**{"target_length": 80, "decoding": {"json_schema": SCHEMA}} | options)
    model = RetrievalAugmentedModel(backbone, task, fusion, knowledge, max_length=190)
    model.progress_bars = False
    model.attach("lora")
    return model.eval()


def asked(model: RetrievalAugmentedModel) -> Any:
    sources = ["name", "a much longer question", "x"]
    return model.task.read([Record({"source": one}, "a.jsonl", 1) for one in sources], labelled=False)


@needs_llguidance
@pytest.mark.parametrize(
    "decoding", [{}, {"do_sample": True, "temperature": 3.0}, {"num_beams": 3}], ids=["greedy", "sampled", "beams"]
)
@pytest.mark.parametrize("length", [60, 80])
def test_every_text_parses_and_is_of_the_schema(decoding: dict[str, Any], length: int) -> None:
    model = model_of(target_length=length)
    torch.manual_seed(0)
    written = write(model, asked(model), **decoding)
    for text, probability in written:
        assert_of_schema(text)
        assert 0 < probability <= 1
    if decoding.get("do_sample"):
        assert len({text for text, _ in written}) > 1


@needs_llguidance
@pytest.mark.parametrize(
    "told",
    [
        {"format": "email"},
        {"format": "uri"},
        {"format": "duration"},
        {"pattern": r"^\d+\s\w+$"},
        {"pattern": r"^[a-z]+@[a-z]+\.com$"},
        {"pattern": "^[^a-z]*$"},
        {"pattern": "[0-9]"},
        {"pattern": "^[a-z]*x$"},
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_texts_end_whose_end_must_be_searched_for(told: dict[str, str], required: bool) -> None:
    schema = {"type": "object", "properties": {"told": {"type": "string", **told}}, "additionalProperties": False}
    schema |= {"required": ["told"]} if required else {}
    model = model_of(target_length=40, decoding={"json_schema": schema})
    for text, probability in write(model, asked(model)):
        value = json.loads(text)
        assert set(value) == {"told"} if required else set(value) <= {"told"}
        assert 0 < probability <= 1
        if "pattern" in told and "told" in value:
            assert re.search(told["pattern"], value["told"])


@needs_llguidance
def test_pattern_for_which_no_end_is_found_says_so() -> None:
    schema = {"type": "string", "pattern": r"^.*\.pdf$"}
    model = model_of(target_length=40, decoding={"json_schema": schema})
    with pytest.raises(ConfigError, match=r"Where that does not help, a pattern before whose last signs any may stand"):
        write(model, asked(model))


@needs_llguidance
def test_where_tokens_are_scarce_the_text_is_as_short_as_it_must_be() -> None:
    least = len('{"name": "", "count": 0, "kinds": ["ab"]}')
    model = model_of(target_length=least + 4)
    for text, _ in write(model, asked(model)):
        assert_of_schema(text)
    with pytest.raises(ConfigError, match=r"a text of 20 tokens has no room .* Raise --task.target_length"):
        write(model, asked(model), max_new_tokens=20)


@needs_llguidance
def test_a_text_mixed_from_passages_keeps_to_the_schema_too() -> None:
    model = model_of(MarginalFusion(k=2))
    split = Split(asked(model), Neighbours.of_rows([[(0, 0.9), (1, 0.5)], [(2, 0.4)], []]))
    for text, _ in write(model, split.examples, split=split):
        assert_of_schema(text)


@needs_llguidance
def test_no_token_is_taken_that_may_follow_while_there_is_room() -> None:
    from peft_rag.schema_writing import SchemaGrammar, SchemaWriting

    tokenizer = byte_tokenizer()
    processor = SchemaWriting(SchemaGrammar({"enum": [1, 23]}, tokenizer), prompt=1, longest=30)
    one, two, three = (tokenizer(digit)["input_ids"][0] for digit in "123")

    def allowed(*written: int) -> set[int]:
        scores = processor(torch.tensor([[5, *written]]), torch.zeros(1, 264))
        return set(scores[0].isfinite().nonzero().flatten().tolist())

    assert allowed() == {one, two}
    assert allowed(two) == {three}
    assert allowed(two, three) == {1}
    assert allowed(two, three, 1) == {1}


@needs_llguidance
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "cannot be written by: Invalid type: nothing"),
        ({"type": "string", "pattern": "(("}, "cannot be written by: regex parse error"),
    ],
)
def test_a_schema_that_is_none_is_one_line_that_says_why(schema: dict[str, Any], message: str) -> None:
    model = model_of(decoding={"json_schema": schema})
    with pytest.raises(ConfigError) as error:
        write(model, asked(model))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@needs_llguidance
def test_a_tokenizer_that_knows_no_bytes_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "[SEP]"
    backbone = as_backbone(TINY_BACKBONES["gpt2"](), tokenizer, "words")
    model = RetrievalAugmentedModel(
        backbone, Text2Text(target_length=8, decoding={"json_schema": SCHEMA}), max_length=32
    )
    model.attach("lora")
    with pytest.raises(ConfigError, match="cannot be told byte by byte"):
        write(model, model.task.read([Record({"source": "w1"}, "a.jsonl", 1)], labelled=False))


@needs_llguidance
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[1]", "holds no object")],
)
def test_a_file_that_holds_no_schema_says_so(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        decoding_of(["--decoding.json_schema", str(path)])


@needs_llguidance
def test_settings_hold_the_schema_itself_and_survive_json(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    task = Text2Text(decoding={"json_schema": str(tmp_path / "schema.json"), "num_beams": 2})
    assert task.decoding == {"json_schema": SCHEMA, "num_beams": 2}
    assert Text2Text.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    with pytest.raises(ConfigError, match="both say what may be written"):
        Text2Text(decoding={"json_schema": SCHEMA}, choices=("a",))
    model = model_of(choices=("a", "b"), decoding={})
    with pytest.raises(ConfigError, match="both say what may be written"):
        write(model, asked(model), json_schema=SCHEMA)


def test_without_llguidance_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llguidance" else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'peft-rag\[schema\]'"):
        Text2Text(decoding={"json_schema": SCHEMA})


@needs_llguidance
@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
def test_command_line_predicts_by_a_schema(
    tmp_path: Path, tiny_bert: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    folder, out = tmp_path / "bytes", str(tmp_path / "out")
    decoder().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    data = write_jsonl(tmp_path / "data.jsonl", [{"source": f"a{n}", "target": "b", "id": str(n)} for n in range(4)])
    flags = [f"--train={data}", f"--validation={data}", f"--backbone={folder}", f"--encoder={tiny_bert}"]
    flags += ["--task=text2text", "--task.target_length=80", "--task.scored=0", "--max_length=120", "--max_steps=1"]
    assert main(["train", *flags, "--fusion=none", "--disable_tqdm=true", f"--output={out}"]) == 0
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    capsys.readouterr()
    assert main(["predict", out, data, "--decoding.json_schema", str(tmp_path / "schema.json")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert_of_schema(line["answer"])

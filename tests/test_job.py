from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_rag.artefact import load
from peft_rag.config import from_mapping
from peft_rag.errors import ArtefactError, ConfigError, FingerprintError, PeftRagError, TrainingError
from peft_rag.job import run
from peft_rag.records import read_records
from tests.conftest import toy_records, write_jsonl

pytestmark = [
    pytest.mark.filterwarnings("ignore:No sentence-transformers model found"),
]


def settings(tiny_bert: str, data: dict[str, str], output: Path, **changes: Any) -> dict[str, Any]:
    base = {
        **data,
        "backbone": tiny_bert,
        "encoder": tiny_bert,
        "max_length": 32,
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "disable_tqdm": True,
        "output": str(output),
    }
    return base | changes


def finish(*arguments: Any, **changes: Any) -> dict[str, Any]:
    return dict(run(from_mapping(settings(*arguments, **changes)), say=lambda line: None).metrics)


@pytest.mark.parametrize(
    "fusion", ["none", "concat", "marginal", "knn", "knn-retriever", "cross_attention", "projector"]
)
def test_run_measures_before_and_after_and_saves_what_loads_back(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str
) -> None:
    name, _, space = fusion.partition("-")
    name = name.replace("_", "-")
    options = {"fusion.space": space} if space else {}
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", fusion=name, **options)
    stored = json.loads((tmp_path / "out/metrics.json").read_text())

    assert metrics["before"].keys() == metrics["after"].keys() == metrics["test"].keys()
    assert metrics["after"]["accuracy"] > 0.9 > metrics["before"]["accuracy"]
    assert ("with_retrieval" in metrics["arms"]) == (name != "none")
    assert {"untrained", "retrieval_alone", "without_retrieval"} <= metrics["arms"].keys()
    for scores in metrics["arms"].values():
        assert scores["accuracy"]["low"] <= scores["accuracy"]["value"] <= scores["accuracy"]["high"]
    for key in ("trainable_parameters", "trainable_percent", "train_seconds", "examples_per_second"):
        assert stored[key] > 0
    assert stored["peak_memory_bytes"] > 10**7
    assert stored["seed"] == 0
    assert stored["versions"]["peft"]
    hashed = ["adapter_config.json", "adapter_model.safetensors", "head.safetensors", "peft_rag.json"]
    assert stored["artefact_bytes"] == sum((tmp_path / "out" / name).stat().st_size for name in hashed)
    assert not (tmp_path / "out.partial").exists()

    model = load(str(tmp_path / "out"))
    again = model.evaluate(model.task.read(_records(toy_data["test"])))
    assert {name: score.value for name, score in again.items()} == pytest.approx(metrics["test"], abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "prompt-tuning", "full", "head", "ia3"])
def test_every_method_trains_by_changing_one_word(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, method: str
) -> None:
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", method=method)
    model = load(str(tmp_path / "out"))
    assert model.reports["default"].method == method
    before, after = metrics["before"]["accuracy"], metrics["after"]["accuracy"]
    assert after > before
    answers = model.predict(["apple pear plum", "iron zinc tin"])
    assert [answer.labels for answer in answers] == [("fruit",), ("metal",)]


def test_training_data_is_the_corpus_and_the_held_out_share_is_validation(tiny_bert: str, tmp_path: Path) -> None:
    data = {"train": write_jsonl(tmp_path / "all.jsonl", toy_records(60, 1))}
    finish(tiny_bert, data, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/peft_rag.json").read_text())
    assert manifest["knowledge"]["corpus"]["documents"] == 60
    assert manifest["knowledge"]["corpus"]["is_training_data"]
    card = (tmp_path / "out/README.md").read_text()
    assert "the validation split, on which settings were chosen too" in card


def test_saved_model_encodes_its_corpus_once(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_rag.model import RetrievalAugmentedModel

    finish(tiny_bert, toy_data, tmp_path / "out", **{"fusion.weight": 0.5})
    encoded: list[int] = []
    outputs = RetrievalAugmentedModel.outputs

    def counted(self: Any, split: Any, **options: Any) -> Any:
        encoded.append(len(split))
        return outputs(self, split, **options)

    monkeypatch.setattr(RetrievalAugmentedModel, "outputs", counted)
    first = load(str(tmp_path / "out")).predict(["apple pear"], explain=True)
    again = load(str(tmp_path / "out")).predict(["apple pear"], explain=True)
    assert first == again
    assert encoded == [60, 1, 1]


def test_shots_are_drawn_again_when_the_artefact_is_loaded(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    finish(tiny_bert, toy_data, tmp_path / "out", shots=5, seed=3)
    model = load(str(tmp_path / "out"))
    assert model.knowledge is not None
    assert len(model.knowledge.corpus) == 15


def test_multi_label_data_is_trained_and_predicted(tiny_bert: str, tmp_path: Path) -> None:
    records = [
        {"text": f"{first['text']} {second['text']}", "label": sorted({first["label"], second["label"]})}
        for first, second in zip(toy_records(60, 4), toy_records(61, 5)[1:], strict=True)
    ]
    records.append({"text": "the old and the new", "label": []})
    data = {"train": write_jsonl(tmp_path / "multi.jsonl", records)}
    metrics = finish(tiny_bert, data, tmp_path / "out", validation_share=0.3, num_train_epochs=30)
    assert metrics["after"]["micro_f1"] > 0.85 > metrics["before"]["micro_f1"]
    answers = load(str(tmp_path / "out")).predict([str(record["text"]) for record in records], explain=True)
    right = [set(answer.labels) == set(record["label"]) for answer, record in zip(answers, records, strict=True)]
    assert sum(right) > 45
    assert all(answer.neighbours for answer in answers)


def test_scores_are_split_by_what_stands_in_the_corpus_too(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft_rag.cli import main
    from peft_rag.retrieval.encoder import SentenceEncoder

    known = toy_records(60, 1)
    words = {"apple": "fruit", "tin": "metal", "nile": "river"}
    odd = [{"id": word, "text": f"{word} {word} {word}", "label": label} for word, label in words.items()]
    fresh = [*toy_records(17, 3), *odd]
    mixed = [*({**record, "text": record["text"].upper()} for record in known[:4]), *fresh]
    config = settings(
        tiny_bert,
        {**toy_data, "test": write_jsonl(tmp_path / "mixed.jsonl", mixed)},
        tmp_path / "out",
        **{"fusion.weight": 0.5},
    )
    lines: list[str] = []
    result = run(from_mapping(config), say=lines.append)
    overlap, answers = result.metrics["overlap"], result.answers
    assert answers is not None

    encoder = SentenceEncoder(tiny_bert)
    near = encoder.encode([str(record["text"]) for record in mixed]) @ encoder.encode([r["text"] for r in known]).T
    inside = torch.tensor([row < 4 or bool((near[row] >= 0.95).any()) for row in range(24)])
    assert 4 < int(inside.sum()) < 24
    assert (overlap["exact"], overlap["near"], overlap["examples"]) == (4, int(inside.sum()) - 4, 24)
    assert overlap["arms"].keys() == result.metrics["arms"].keys() == answers.log_probs.keys()
    for arm, given in answers.log_probs.items():
        right = (given.argmax(-1) == answers.targets).float()
        assert overlap["arms"][arm]["overlapping"] == pytest.approx(float(right[inside].mean()))
        assert overlap["arms"][arm]["clean"] == pytest.approx(float(right[~inside].mean()))
        assert overlap["arms"][arm]["all"] == pytest.approx(result.metrics["arms"][arm]["accuracy"]["value"])

    (line,) = (line for line in lines if "stand in the corpus too (4 word for word" in line)
    assert f" {line}." in (tmp_path / "out/README.md").read_text()
    capsys.readouterr()
    flags = ["--data", str(config["test"]), "--output", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(tmp_path / "out"), *flags]) == 0
    assert line in capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "scores.json").read_text())["overlap"]
    assert written["arms"] == {"shipped": pytest.approx(overlap["arms"]["with_retrieval"])}


@pytest.mark.parametrize("leak_threshold", [0.0, 0.9])
def test_a_saved_model_is_measured_without_the_documents_that_its_run_left_out(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, leak_threshold: float
) -> None:
    """Of a corpus that holds the test texts with other labels, which rule where they are not left out."""
    test = toy_records(30, 3)
    wrong = {"fruit": "metal", "metal": "river", "river": "fruit"}
    told = [{**record, "id": f"t{n}", "label": wrong[str(record["label"])]} for n, record in enumerate(test)]
    if leak_threshold:
        told = [{**record, "text": f"{record['text']} ."} for record in told]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*toy_records(60, 1), *told])
    votes = {"fusion.k": 1, "fusion.temperature": 0.1, "fusion.weight": 1.0, "fusion.space": "retriever"}
    config = settings(
        tiny_bert, toy_data, tmp_path / "out", corpus=corpus, fusion="knn", leak_threshold=leak_threshold, **votes
    )
    result = run(from_mapping(config), say=lambda line: None)
    again = load(str(tmp_path / "out"))
    examples = again.task.read(read_records(toy_data["test"]))
    scores = again.evaluate(examples)
    assert scores["accuracy"].value == result.metrics["arms"]["with_retrieval"]["accuracy"]["value"]
    as_asked = again.task.evaluate(again.answer(again.split(examples)), again.task.targets(examples))
    assert as_asked["accuracy"].value < scores["accuracy"].value


@pytest.mark.parametrize("fusion", ["none", "concat"])
def test_documents_of_labels_that_the_task_does_not_know_answer_nothing_alone(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, fusion: str
) -> None:
    known = [*toy_records(20, 1), {"text": "oak and fir", "label": "tree"}]
    changes = {"fusion": fusion, "corpus": write_jsonl(tmp_path / "corpus.jsonl", known), "max_steps": 2}
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", **changes)
    assert "retrieval_alone" not in metrics["arms"]
    assert "without_retrieval" in metrics["arms"]
    with pytest.raises(PeftRagError, match="tree"):
        finish(tiny_bert, toy_data, tmp_path / "voted", **changes | {"fusion": "knn"})


def test_overlap_encodes_nothing_a_second_time(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_rag.retrieval.encoder import SentenceEncoder

    data = {name: write_jsonl(tmp_path / f"{name}.jsonl", toy_records(70, seed)) for seed, name in enumerate(toy_data)}
    encoded: list[str] = []
    encode = SentenceEncoder._encode

    def counted(self: Any, texts: Any, progress: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, progress)

    monkeypatch.setattr(SentenceEncoder, "_encode", counted)
    finish(tiny_bert, data, tmp_path / "out")
    assert len(encoded) == 3 * 70


@pytest.mark.parametrize("evaluation", ["no", "epoch"])
def test_validation_is_tokenised_for_training_only_where_it_is_looked_at(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: str
) -> None:
    from peft_rag.job import prepare, tune
    from peft_rag.model import RetrievalAugmentedModel

    encoded: list[int] = []
    encode = RetrievalAugmentedModel.encode

    def counted(self: Any, split: Any, **options: Any) -> Any:
        encoded.append(len(split))
        return encode(self, split, **options)

    monkeypatch.setattr(RetrievalAugmentedModel, "encode", counted)
    changes = {"fusion": "none", "head_init": "random", "eval_strategy": evaluation, "save_strategy": evaluation}
    config = from_mapping(settings(tiny_bert, toy_data, tmp_path / "out", **changes))
    tune(prepare(config, tmp_path / "working", lambda line: None), config, lambda line: None)
    assert encoded == ([60] if evaluation == "no" else [60, 30])


@pytest.mark.parametrize("fusion", ["none", "knn", "concat"])
def test_what_training_does_not_read_is_retrieved_after_preparing(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    from peft_rag.job import prepare, with_voters
    from peft_rag.retrieval.encoder import SentenceEncoder

    encoded: list[str] = []
    encode = SentenceEncoder._encode

    def counted(self: Any, texts: Any, progress: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, progress)

    monkeypatch.setattr(SentenceEncoder, "_encode", counted)
    config = from_mapping(settings(tiny_bert, toy_data, tmp_path / "out", fusion=fusion))
    prepared = prepare(config, tmp_path / "working", lambda line: None)
    assert bool(encoded) == (fusion == "concat")
    assert (prepared.train.neighbours is None) == (fusion != "concat")
    measured = with_voters(prepared)
    assert measured.model is prepared.model
    for split in (measured.validation, measured.test):
        assert split.neighbours is not None
        assert split.neighbours.positions.shape == (30, 60)
    assert measured.validation.forbidden == prepared.validation.forbidden


def test_lora_artefact_loads_in_plain_peft(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> None:
    finish(tiny_bert, toy_data, tmp_path / "out", fusion="none")
    model = load(str(tmp_path / "out"))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        ours = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.save(ours, tmp_path / "ours.pt")
    script = (
        "import sys, torch, peft, transformers\n"
        "torch.set_num_threads(1)\n"
        f"base = transformers.BertModel.from_pretrained({tiny_bert!r}, add_pooling_layer=False)\n"
        f"model = peft.PeftModel.from_pretrained(base, {str(tmp_path / 'out')!r}).eval()\n"
        "ids = torch.arange(5, 15)[None]\n"
        "with torch.no_grad():\n"
        "    hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state\n"
        f"assert torch.equal(hidden, torch.load({str(tmp_path / 'ours.pt')!r}, weights_only=True))\n"
        "assert not any(name.startswith('peft_rag') for name in sys.modules)\n"
        "print('equal')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr


@contextmanager
def cut_off_after_two_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the run inside the block once its second epoch is saved."""
    from peft_rag.examples_trainer import ExamplesTrainer

    saved = ExamplesTrainer._save_checkpoint

    def cut_off(self: Any, *arguments: Any, **options: Any) -> None:
        saved(self, *arguments, **options)
        if self.state.epoch >= 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(ExamplesTrainer, "_save_checkpoint", cut_off)
        yield
        pytest.fail("the run was not interrupted")


def test_interrupted_run_resumes_to_the_same_weights(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finish(tiny_bert, toy_data, tmp_path / "whole")
    with cut_off_after_two_epochs(monkeypatch):
        finish(tiny_bert, toy_data, tmp_path / "out")
    partial = tmp_path / "out.partial"
    checkpoint = next(partial.glob("checkpoints/checkpoint-*/model.safetensors"))
    assert checkpoint.stat().st_size < 40_000
    assert not (tmp_path / "out").exists()

    with pytest.raises(ArtefactError, match=r"holds an unfinished run. Go on with it by --resume"):
        finish(tiny_bert, toy_data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"cannot resume .*: method changed since it was interrupted"):
        finish(tiny_bert, toy_data, tmp_path / "out", method="bitfit", resume=True)
    assert partial.exists()
    elapsed = max(partial.glob("checkpoints/checkpoint-*/elapsed.json"))
    assert 0 < json.loads(elapsed.read_text())["seconds"] < 600
    elapsed.write_text('{"seconds": 1000}')
    resumed = finish(tiny_bert, toy_data, tmp_path / "out", resume=True)
    assert resumed["test"] == pytest.approx(whole["test"], abs=1e-6)
    assert 1000 < resumed["train_seconds"] < 1600
    seen = [one["train_seconds"] * one["examples_per_second"] for one in (resumed, whole)]
    assert seen[0] == pytest.approx(seen[1])
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_loss_that_is_no_number_stops_the_run_and_leaves_nothing(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(
        TrainingError, match=r"loss is (nan|inf) at step \d+ with learning rate .* Lower --learning_rate"
    ):
        finish(tiny_bert, toy_data, tmp_path / "out", learning_rate=1e30, optim="sgd", max_grad_norm=0.0)
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []


@pytest.mark.parametrize(
    ("metric", "more"), [("", True), ("accuracy", True), ("ece", False), ("eval_ece", False), ("perplexity", False)]
)
def test_best_weights_are_those_of_the_lowest_error_where_less_is_better(
    tmp_path: Path, metric: str, more: bool
) -> None:
    from peft_rag.training import training_arguments

    def arguments(**settings: Any) -> Any:
        return training_arguments(tmp_path, 1e-3, settings, metric="accuracy", early_stopping_patience=0)

    chosen = {"metric_for_best_model": metric} if metric else {}
    assert arguments(**chosen).greater_is_better is more
    assert arguments(**chosen, greater_is_better=not more).greater_is_better is not more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lorra"}, "no PEFT method 'lorra'. Did you mean 'lora'?"),
        ({"fusion": "knm"}, "no fusion 'knm'. Did you mean 'knn'?"),
        ({"fusion.kk": 3}, "unknown option 'fusion.kk'. Did you mean 'k'?"),
        ({"fusion.k": "many"}, "fusion refuses k='many'"),
        ({"fusion.k": 100}, "has 60 documents, fewer than the 100 neighbours asked for"),
        ({"method.rr": 3}, "method 'lora' has no option 'rr'. Did you mean 'r'?"),
        ({"learning_rat": 3}, "unknown name 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"max_length": 1000}, "max_length is 1000, but"),
        ({"backbone": "nowhere/at-all"}, "backbone 'nowhere/at-all' cannot be loaded"),
        ({"last_layers": 9}, "9"),
        ({"leak_threshold": 1.5}, "leak_threshold is 1.5; it is a cosine from 0 (off) to 1."),
        (
            {"leak_threshold": 0.9, "retriever": "bm25"},
            "leak_threshold is a cosine, but the scores of retriever 'bm25'",
        ),
        ({"retrieval_dropout": 1.5}, "retrieval_dropout is 1.5; it is a share of the examples, from 0 (off) to 1."),
        ({"retrieval_dropout_by": "noise"}, "retrieval_dropout_by is 'noise'. Choose none or random."),
        ({"retrieval_dropout": 0.3}, "retrieval_dropout is 0.3, but fusion 'knn' reads no neighbours in training"),
        ({"retrieval_dropout": 0.3, "fusion": "none"}, "but fusion 'none' reads no neighbours in training"),
        ({"min_score": 0.5}, "min_score is 0.5, but fusion 'knn' as it is set takes no neighbours from the retriever"),
        ({"min_score": "much"}, "min_score is 'much', but must be a number"),
        (
            {"min_score": 1.2, "fusion": "concat"},
            "min_score is 1.2, but a score of retriever 'hnsw' is a cosine from -1 to 1.",
        ),
        (
            {"min_score": "inf", "fusion": "concat", "retriever": "bm25"},
            "min_score is inf, but a score of retriever 'bm25' is a number",
        ),
        ({"lr_scheduler_type": "zigzag"}, "transformers refuses the training options"),
        ({"report_to": "nowhere"}, "transformers refuses the training options: nowhere is not supported"),
        ({"max_steps": 1.5}, "max_steps must be a whole number of at least -1, but is 1.5"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be a whole number of at least 0"),
        ({"adam_beta1": 2}, "transformers refuses the training options: Invalid beta parameter"),
        ({"optim_args": "abc"}, "transformers refuses the training options: "),
        ({"lr_scheduler_kwargs": "abc"}, "transformers refuses the training options: "),
        ({"fusion": {"name": "knn", 1: 2}}, "fusion has an option 1, but options go by names"),
        (
            {"per_device_train_batch_size": 0},
            "per_device_train_batch_size must be a whole number of at least 1, but is 0.",
        ),
        (
            {"per_device_eval_batch_size": 1.5},
            "per_device_eval_batch_size must be a whole number",
        ),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number"),
        ({"learning_rate": -1}, "learning_rate is -1; it must be a number that is not below 0"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be a number"),
        ({"weight_decay": "abc"}, "weight_decay is abc; it must be a number"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0, with which nothing is trained"),
        (
            {"metric_for_best_model": "acuracy"},
            "metric_for_best_model is 'acuracy'. Did you mean 'accuracy'? Choose loss,",
        ),
        (
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor is 0.1, but what is minimised is the task's own loss.",
        ),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is 5, but the backbone's embeddings are read as they are."),
        ({"seed": 1 << 32}, "seed is 4294967296; it must be below 2^32"),
        ({"eval_strategy": "no", "early_stopping_patience": 2}, "--early_stopping_patience needs evaluation"),
    ],
)
def test_bad_option_is_one_line_and_leaves_nothing(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PeftRagError) as caught:
        finish(tiny_bert, toy_data, tmp_path / "out", **change)
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []


def test_unknown_reporter_is_refused_with_the_arguments(tmp_path: Path) -> None:
    from peft_rag.training import training_arguments

    with pytest.raises(ConfigError, match="nowhere is not supported, only"):
        training_arguments(tmp_path, 0.1, {"report_to": "nowhere"}, metric="accuracy", early_stopping_patience=0)


def test_output_that_holds_something_is_refused_before_any_work(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("keep me")
    with pytest.raises(ArtefactError, match=r"already holds 1 file \(precious.txt\)"):
        finish(tiny_bert, toy_data, tmp_path / "out")
    assert (tmp_path / "out/precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"optim": "sgd", "learning_rate": 0.1},
        {"optim": "adafactor"},
        {"bf16": True},
        {"early_stopping_patience": 1, "num_train_epochs": 6},
        {"last_layers": 1},
        {"dropout": 0.2},
        {"head_init": "random", "num_train_epochs": 12},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2},
    ],
)
def test_training_options_reach_the_trainer(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    metrics = finish(tiny_bert, toy_data, tmp_path / "out", **changes)
    assert metrics["after"]["accuracy"] > 0.6


def test_artefact_for_another_backbone_or_corpus_is_refused(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    finish(tiny_bert, toy_data, tmp_path / "out")
    other = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[7, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintError, match=r"this artefact was trained on backbone .* Load it with the backbone"):
        load(str(tmp_path / "out"), backbone=str(tmp_path / "other"))
    assert load(str(tmp_path / "out"), backbone=str(tmp_path / "other"), allow_backbone_mismatch=True)

    changed = write_jsonl(tmp_path / "changed.jsonl", toy_records(61, 1))
    with pytest.raises(FingerprintError, match=r"with a corpus of 60 documents .* 'changed.jsonl' has 61"):
        load(str(tmp_path / "out"), corpus=changed)
    grown = load(str(tmp_path / "out"), corpus=changed, allow_corpus_mismatch=True)
    assert grown.knowledge is not None
    assert grown.knowledge.separate
    assert grown.predict(["apple pear plum"])[0].labels == ("fruit",)


def _records(path: str) -> Any:
    from peft_rag.records import read_records

    return read_records(path)


@pytest.mark.slow
def test_two_processes_train_one_model_and_write_once(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in settings(tiny_bert, toy_data, tmp_path / "out").items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "peft_rag", "train"]
    done = subprocess.run([*launch, *flags, "--use_cpu=true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in ("data: ", "untrained: ", "epoch 3: ", "saved: "):
        assert sum(printed.startswith(line) for printed in done.stdout.splitlines()) == 1, done.stdout
    assert json.loads((tmp_path / "out/metrics.json").read_text())["after"]["accuracy"] > 0.9
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("space", ["tuned", "retriever"])
@pytest.mark.parametrize("held_out", [True, False])
def test_learning_never_sees_its_group_or_its_like_when_the_training_data_is_the_corpus(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, space: str, held_out: bool
) -> None:
    from peft_rag.job import prepare
    from peft_rag.retrieval.encoder import SentenceEncoder

    records = [{**record, "page": f"p{number % 7}"} for number, record in enumerate(toy_records(40, 4))]
    data = {"train": write_jsonl(tmp_path / "pages.jsonl", records), "test": toy_data["test"]}
    if not held_out:
        data["validation"] = toy_data["validation"]
    changes = {"group_field": "page", "leak_threshold": 0.97, "fusion.space": space, "last_layers": 1}
    config = from_mapping(settings(tiny_bert, data, tmp_path / "out", **changes))
    prepared = prepare(config, tmp_path / "working", lambda line: None)
    corpus = prepared.splits.corpus
    vectors = SentenceEncoder(tiny_bert).encode(corpus.texts)
    place = {document.id: position for position, document in enumerate(corpus)}
    alike = 0
    for split in [prepared.train, *([prepared.validation] if held_out else [])]:
        for row, example in enumerate(split.examples):
            own = place[example.id]
            near = {at for at in range(len(corpus)) if float(vectors[own] @ vectors[at]) >= 0.97}
            group = {at for at in range(len(corpus)) if corpus[at].group == example.group}
            assert set(split.forbidden[row]) == near | group | {own}
            alike += len(near - group)
            if split.neighbours is not None:
                assert not set(split.neighbours.positions[row].tolist()) & set(split.forbidden[row])
    assert alike
    assert not any(prepared.test.forbidden)

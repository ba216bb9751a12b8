"""The conformance kit of fusions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_rag.backbone import as_backbone, encoder_of
from peft_rag.corpus import Corpus, Document
from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError, ConformanceError, RetrievalError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.fusion.base import READ, Fusion, Outputs, Split
from peft_rag.fusion.batching import inputs_of
from peft_rag.fusion.none import NoFusion
from peft_rag.generation import write
from peft_rag.knowledge import Knowledge
from peft_rag.methods import backbone_tensors, resolve
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.parts import make_part
from peft_rag.registry import FUSIONS, load
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.base import Example, Task
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing.case import Case
from peft_rag.testing.methods import MakeBackbone
from peft_rag.testing.retrievers import WordEncoder

OPTIONS = "options survive JSON"
FORM = "inputs fit, and hold given neighbours only"
MISUSE = "neighbours that are missing altogether are an error"
ALONE = "an example without neighbours is answered as without retrieval"
SUM = "probabilities sum to one"
BATCH = "an answer does not depend on what it is batched with"
PADDING = "padding on the left or on the right gives the same answer"
OTHERS = "another example's neighbours change nothing"
FROZEN = "training leaves the backbone as it was"
GRADIENT = "every trained tensor receives a gradient"
OWN = "an example's own neighbours change its answer"
RELOAD = "trained tensors in a fresh model give the same answers"
WRITES = "a text that is written depends on its own neighbours, and neither on its batch nor on others'"
FIT = "what is fitted on validation is no worse there than without retrieval"
KEPT = "what is fitted on validation survives saving bit for bit"

_MAX_LENGTH = 32
_STEPS = 4
_TOLERANCE = 1e-5
_WORDS = 36

_TEXTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w10 w11", "w12 w13 w14")
_LABELS = ("odd", "even", "odd", "even", "odd")
_WRITTEN = {"odd": "w30 w31", "even": "w32"}
# Three neighbours, one, none, two of equal score, three again.
_FOUND = (((0, 0.9), (3, 0.5), (5, 0.1)), ((2, 0.7),), (), ((1, 0.4), (4, 0.4)), ((5, 0.8), (2, 0.6), (0, 0.2)))
_OTHERS = (((4, 0.9), (1, 0.5), (2, 0.1)), *_FOUND[1:])


@dataclass(frozen=True)
class FusionCheck:
    """What `check_fusion` found to hold.

    Attributes:
        checked: the properties that hold.
        skipped: the properties not asked for, with the reason.
    """

    checked: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"holds: {name}" for name in self.checked]
        return "\n".join([*lines, *(f"not asked: {name} ({reason})" for name, reason in self.skipped.items())])


@dataclass
class _Case(Case):
    """One fusion under one method on one backbone, and what has been found so far."""

    fusion: Fusion
    method: str
    make_backbone: MakeBackbone
    writes: bool

    def model(self) -> RetrievalAugmentedModel:
        """Make the model, the same weights at each call, its method attached."""
        tokenizer, plain = word_tokenizer(), self.make_backbone()
        task: Task = TextClassification(labels=("even", "odd"))
        if self.writes:
            tokenizer.eos_token, task = "[SEP]", Text2Text(target_length=6)
        backbone = as_backbone(plain if self.writes else headless(plain), tokenizer, "tiny")
        torch.manual_seed(0)
        retriever = ExactRetriever(WordEncoder())
        knowledge = Knowledge(self._corpus(), retriever, "exact", "words")
        model = RetrievalAugmentedModel(backbone, task, self.fusion, knowledge, max_length=_MAX_LENGTH)
        model.progress_bars = False
        model.attach(self.method)
        model.eval()
        return model

    def split(self, found: Sequence[Sequence[tuple[int, float]]] = _FOUND) -> Split:
        """Return the examples with neighbours."""
        texts = enumerate(zip(_TEXTS, _LABELS, strict=True))
        examples = [Example(str(number), text, (self._said(label),)) for number, (text, label) in texts]
        return Split(examples, Neighbours.of_rows(found))

    def _corpus(self) -> Corpus:
        texts = ("w1 w2 w20", "w21 w22", "w4 w23 w24 w25", "w2 w3", "w26", "w27 w28 w1")
        return Corpus([Document(f"d{n}", text, (self._said(_LABELS[n % 2]),)) for n, text in enumerate(texts)])

    def _said(self, label: str) -> str:
        return _WRITTEN[label] if self.writes else label


def check_fusion(
    fusion: str | Fusion, make_backbone: MakeBackbone, method: str = "lora", *, writes: bool = False, **options: Any
) -> FusionCheck:
    """Check that a fusion keeps its promises on a backbone, under a PEFT method.

    Options survive JSON; inputs fit into the window and hold none but the neighbours given; without any neighbour an
    example is answered as without retrieval; probabilities sum to one; an answer depends on its own neighbours and not
    on its batch, on the side of the padding, or on other examples' neighbours; training gives a gradient to every
    trained tensor and changes nothing of the backbone; the trained tensors in a fresh model give the same answers; what
    is fitted on validation is no worse there than no retrieval, and survives saving; texts are written by the same
    rules.

    Args:
        fusion: a name, or a fusion that no entry point names yet.
        make_backbone: makes a small backbone with a vocabulary of 40, the same weights at each call.
        method: the PEFT method beside which the fusion is trained.
        writes: check it with a task that writes texts (`Text2Text`), in place of one that classifies them.
        options: the fusion's options, where it is named.

    Returns:
        What was checked.

    Raises:
        ConformanceError: a property does not hold; the message begins with its name.
        PeftRagError: fusion, method and backbone cannot be joined at all.
    """
    made: Fusion = make_part(load(FUSIONS, fusion), "fusion", options) if isinstance(fusion, str) else fusion
    if made.opens:
        raise ConfigError("this fusion gives the contexts that answers are taken from, but what is asked are classes.")
    case = _Case(made, method, make_backbone, writes)
    _check_options(case)
    model = case.model()
    _check_form(case, model)
    _check_answers(case, model)
    _check_padding(case, model)
    _check_writing(case, model)
    _check_training(case, model)
    _check_neighbours_count(case, model)
    _check_reload(case, model)
    _check_fit(case, model)
    return FusionCheck(tuple(case.checked), case.skipped)


def headless(model: PreTrainedModel) -> PreTrainedModel:
    """Return the backbone of a model with a head, such as a language model's."""
    body: PreTrainedModel = model.base_model
    return encoder_of(body)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words w0 … w35 and four special tokens: the vocabulary of a tiny backbone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=_MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def _answer(model: RetrievalAugmentedModel, split: Split, **options: Any) -> Tensor:
    """Return the fused log-probabilities of a split."""
    outputs = model.outputs(split, **options)
    return model.fusion.combine(outputs, split, model.memory(), model.task)


def _check_options(case: _Case) -> None:
    with case.property(OPTIONS):
        again = type(case.fusion).from_dict(json.loads(json.dumps(case.fusion.to_dict())))
        if again != case.fusion:
            raise ConformanceError(f"{OPTIONS}: {case.fusion} came back as {again}.")


def _check_form(case: _Case, model: RetrievalAugmentedModel) -> None:
    with case.property(FORM):
        for row, given in zip(model.encode(case.split()), _FOUND, strict=True):
            if not set(row.get(READ, ())) <= {position for position, _ in given}:
                raise ConformanceError(f"{FORM}: {row[READ]} were read, but {given} were given.")
            for one in inputs_of(row):
                lengths = {len(one[name]) for name in ("input_ids", "attention_mask", "pooled_mask")}
                if len(lengths) > 1 or max(lengths) > _MAX_LENGTH or not any(one["pooled_mask"]):
                    raise ConformanceError(f"{FORM}: an input of {lengths} tokens, {sum(one['pooled_mask'])} pooled.")
    if not case.fusion.reads_neighbours:
        case.skipped[MISUSE] = "the fusion reads no neighbours"
        return
    with case.property(MISUSE):
        try:
            model.encode(Split(case.split().examples))
        except RetrievalError:
            return
        raise ConformanceError(f"{MISUSE}: encoding without neighbours passed.")


def _check_answers(case: _Case, model: RetrievalAugmentedModel) -> None:
    split = case.split()
    answers = _answer(model, split)
    if not case.writes:
        with case.property(SUM):
            expect_close(SUM, answers.logsumexp(-1).exp(), torch.ones(len(split)))
    with case.property(BATCH):
        for size in (1, 2, 3):
            expect_close(BATCH, _answer(model, split, batch_size=size), answers)
    with case.property(ALONE):
        nothing = case.split([()] * len(_TEXTS))
        outputs, plain = model.outputs(nothing), model.outputs(nothing, fusion=NoFusion())
        if not torch.equal(outputs.log_probs, plain.log_probs):
            raise ConformanceError(f"{ALONE}: it differs by {(outputs.log_probs - plain.log_probs).abs().max():.2e}.")
    with case.property(OTHERS):
        others = Decisions.on(model.task, split.examples).take(range(1, len(split)))
        expect_close(OTHERS, _answer(model, case.split(_OTHERS))[others], answers[others])


def _check_writing(case: _Case, model: RetrievalAugmentedModel) -> None:
    if not case.writes:
        return
    with case.property(WRITES):
        split, nothing = case.split(), case.split([()] * len(_TEXTS))
        alone = write(model, split.examples, split=nothing)
        if case.fusion.reads_neighbours and alone != write(model, split.examples, split=nothing, fusion=NoFusion()):
            raise ConformanceError(f"{WRITES}: without neighbours another text is written than without retrieval.")
        together = write(model, split.examples, split=split)
        others = write(model, split.examples, split=case.split(_OTHERS))
        for place, (text, probability) in enumerate(together):
            one = split.of([place])
            same = [*write(model, one.examples, split=one), *([others[place]] if place else [])]
            if any(said != text or abs(own - probability) > 1e-4 for said, own in same):
                raise ConformanceError(f"{WRITES}: '{text}' in a batch, but also {same}.")


def _check_padding(case: _Case, model: RetrievalAugmentedModel) -> None:
    with case.property(PADDING):
        right = _answer(model, case.split())
        model.tokenizer.padding_side = "left"
        try:
            expect_close(PADDING, _answer(model, case.split()), right)
        finally:
            model.tokenizer.padding_side = "right"


def _check_training(case: _Case, model: RetrievalAugmentedModel) -> None:
    with case.property(FROZEN):
        before = backbone_fingerprint(model)
        silent = train_steps(model, case.split(), resolve(case.method).learning_rate)
        if backbone_fingerprint(model) != before and case.method != "full":
            raise ConformanceError(f"{FROZEN}: a training step changed a tensor of it.")
    with case.property(GRADIENT):
        if silent:
            raise ConformanceError(f"{GRADIENT}: '{silent[0]}' got none in {_STEPS} steps ({len(silent)} such).")


def train_steps(model: RetrievalAugmentedModel, split: Split, learning_rate: float) -> list[str]:
    """Take a few steps on all of a split's examples, and return the trained tensors that never received a gradient."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(trained.values(), lr=max(learning_rate, 1e-3))
    heard: set[str] = set()
    batch = model.collate(model.candidates(split))
    model.train()
    for _ in range(_STEPS):
        optimiser.zero_grad()
        model(**batch)["loss"].backward()
        heard.update(name for name, p in trained.items() if p.grad is not None and bool(p.grad.ne(0).any()))
        optimiser.step()
    optimiser.zero_grad()
    model.eval()
    model.forget()
    return [name for name in trained if name not in heard]


def _check_neighbours_count(case: _Case, model: RetrievalAugmentedModel) -> None:
    if not case.fusion.reads_neighbours:
        case.skipped[OWN] = "the fusion reads no neighbours"
        return
    with case.property(OWN):
        if torch.equal(_answer(model, case.split())[0], _answer(model, case.split(_OTHERS))[0]):
            raise ConformanceError(f"{OWN}: after {_STEPS} training steps other neighbours give the same answer.")


def _check_reload(case: _Case, model: RetrievalAugmentedModel) -> None:
    with case.property(RELOAD):
        fresh = case.model()
        fresh.load_state_dict(model.trained_state(), strict=False)
        found, wanted = _answer(fresh, case.split()), _answer(model, case.split())
        if not torch.equal(found, wanted):
            raise ConformanceError(f"{RELOAD}: they differ by {(found - wanted).abs().max():.2e}.")


def _check_fit(case: _Case, model: RetrievalAugmentedModel) -> None:
    with case.property(FIT):
        split, task = case.split(), model.task
        targets, memory = task.targets(split.examples), model.memory()
        outputs: Outputs = model.outputs(split)
        fitted = model.fusion.fit(outputs, split, memory, task, targets)
        fused = fitted.combine(outputs, split, memory, task)
        merit, alone = (task.merit(one, targets, split.examples) for one in (fused, outputs.log_probs))
        if merit < alone:
            raise ConformanceError(f"{FIT}: {merit} is less than {alone}.")
    with case.property(KEPT):
        settings = json.loads(json.dumps(fitted.to_dict()))
        again = type(fitted).from_dict(settings).with_tensors(fitted.tensors()).combine(outputs, split, memory, task)
        if not torch.equal(again, fused):
            raise ConformanceError(f"{KEPT}: answers differ by {(again - fused).abs().max():.2e}.")


def backbone_fingerprint(model: RetrievalAugmentedModel) -> str:
    """Return the fingerprint of the frozen tensors."""
    return weights_fingerprint(backbone_tensors(model.backbone).items())


def expect_close(what: str, found: Tensor, wanted: Tensor) -> None:
    """Raise where two tensors differ by more than rounding.

    Raises:
        ConformanceError: they differ; the message begins with `what`.
    """
    off = (found - wanted).abs().max().item()
    if not off <= _TOLERANCE:
        raise ConformanceError(f"{what}: it differs by {off:.2e}, more than {_TOLERANCE:.0e}.")

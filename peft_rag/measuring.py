"""What a run measures: what retrieval found, every arm before and after training, and what overlap does to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft_rag.retrieval.base import NO_POSITION
from peft_rag.retrieval.chunks import cut_from
from peft_rag.tasks.generation import Generation

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.fusion.base import Fusion, Memory, Outputs
    from peft_rag.fusion.fallback import Fallback
    from peft_rag.job import Answers, Prepared, Say


def found_lines(prepared: Prepared) -> list[str]:
    """Say how often a document that is known to answer is among those found; no line where none is known."""
    test, knowledge = prepared.test, prepared.model.knowledge
    wanted = [number for number, example in enumerate(test.examples) if example.documents]
    if not wanted or test.neighbours is None or knowledge is None:
        return []
    hits = 0
    for row in wanted:
        found = (knowledge.corpus[place] for place, _ in test.neighbours.row(row))
        named = set(test.examples[row].documents)
        hits += any(document.id in named or cut_from(document) in named for document in found)
    return [
        f"retrieval: {hits:,} of {len(wanted):,} test examples ({hits / len(wanted):.1%}) find a document that their "
        f"record names among {test.neighbours.k} neighbours"
    ]


def kept_lines(prepared: Prepared) -> list[str]:
    """Say how many neighbours a minimum score leaves; no line where there is none.

    The examples counted are those learned from, or where learning needs no neighbours those of validation.
    """
    assert prepared.model.knowledge is not None
    least = prepared.model.knowledge.min_score
    name, found = "train", prepared.train.neighbours
    if found is None:
        name, found = "validation", prepared.validation.neighbours
    if least is None or found is None:
        return []
    counts = (found.positions != NO_POSITION).sum(1)
    whole, none = int((counts == found.k).sum()), int((counts == 0).sum())
    lines = [
        f"min_score {least:g}: of {len(found):,} {name} examples {whole:,} keep all {found.k} neighbours, "
        f"{len(found) - whole - none:,} some, {none:,} none ({counts.mean():.1f} on average)"
    ]
    if none == len(found):
        lines.append(f"warning: no {name} example has any neighbour; lower --min_score, or use --fusion none")
    return lines


def measure_before(prepared: Prepared, say: Say) -> dict[str, Tensor]:
    """Ask the untrained model (random head on the frozen backbone) and retrieval alone, on the test split.

    Returns:
        log-probabilities by arm, in nats.
    """
    from peft_rag.frozen_features import frozen_outputs
    from peft_rag.fusion.none import NoFusion
    from peft_rag.knowledge import answers_alone

    model, task = prepared.model, prepared.splits.task
    outputs = frozen_outputs(model, prepared.test, fusion=NoFusion(), progress="untrained model")
    answers = {"untrained": outputs.log_probs}
    if answers_alone(task, prepared.splits.corpus):
        answers["retrieval_alone"] = _retrieval_alone(prepared, outputs)
    examples = prepared.test.examples
    for arm, given in answers.items():
        scores = task.evaluate(given, task.targets(examples), examples=examples)
        say(f"{arm.replace('_', ' ')}: {task.main_metric} {scores[task.main_metric]}")
    return answers


def measure_after(
    prepared: Prepared, checked: Outputs, say: Say, *, fallback: bool = True
) -> tuple[dict[str, Tensor], Outputs]:
    """Fit the fusion on validation, then ask the trained model without and with retrieval, on the test split.

    Args:
        prepared: its model trained.
        checked: what it gave for the validation split.
        say: takes each line of progress.
        fallback: whether validation also decides how far neighbours count that the model reads.

    Returns:
        log-probabilities by arm, in nats; and what the model gave for the test split as its fusion reads it.
    """
    from peft_rag.fusion.none import NoFusion

    model, task = prepared.model, prepared.splits.task
    memory = model.memory(progress="encoding the corpus")
    targets = task.targets(prepared.validation.examples)
    judged = model.judge(checked, prepared.validation)
    model.fusions[model.adapter] = model.fusion.fit(judged, prepared.validation, memory, task, targets)
    say(f"fusion: {_settings(model.fusion)}")
    if fallback and model.fusion.reads_neighbours:
        choice = _fall_back(prepared, judged, memory, targets)
        model.gates[model.adapter] = choice.gate
        say(str(choice))
    alone = model.outputs(prepared.test, fusion=NoFusion(), progress="test")
    answers, given = {"without_retrieval": alone.log_probs}, alone
    if not isinstance(model.fusion, NoFusion):
        if model.effective_fusion.reads_neighbours:
            given = model.outputs(prepared.test, progress="test with neighbours")
        answers["with_retrieval"] = model.fuse(given, prepared.test, alone=alone)
    return answers, given


def write_before(prepared: Prepared) -> dict[str, list[str]]:
    """Let the untrained model write to the first test examples, where the task writes text: texts by arm."""
    from peft_rag.fusion.none import NoFusion
    from peft_rag.generation import scored_part, write_scored

    model, test = prepared.model, prepared.test
    if not len(scored_part(model.task, test)):
        return {}
    with model.disable_adapter():
        return {"untrained": write_scored(model, test, fusion=NoFusion(), progress="untrained model writes")}


def write_after(prepared: Prepared) -> dict[str, list[str]]:
    """Let the trained model write to the first test examples, without and with retrieval: texts by arm."""
    from peft_rag.fusion.none import NoFusion
    from peft_rag.generation import scored_part, write_scored

    model, test = prepared.model, prepared.test
    if not len(scored_part(model.task, test)):
        return {}
    texts = {"without_retrieval": write_scored(model, test, fusion=NoFusion(), progress="test is written")}
    if not isinstance(model.fusion, NoFusion):
        texts["with_retrieval"] = write_scored(model, test, progress="test is written with neighbours")
    return texts


def scores_of(prepared: Prepared, answers: Answers, *, resamples: int = 1000) -> dict[str, dict[str, Score]]:
    """Score every arm on the test split, and the texts it wrote: by arm and metric, with intervals."""
    task, test = prepared.splits.task, prepared.test.examples
    arms = {
        arm: task.evaluate(given, answers.targets, examples=test, resamples=resamples)
        for arm, given in answers.log_probs.items()
    }
    if isinstance(task, Generation):
        for arm, texts in answers.texts.items():
            arms[arm] |= task.score_texts(texts, test[: len(texts)], resamples=resamples)
    return arms


def _fall_back(prepared: Prepared, judged: Outputs, memory: Memory | None, targets: Tensor) -> Fallback:
    """Choose how far neighbours count, by the answers of the model as it will be shipped."""
    from peft_rag.fusion.fallback import GATES, choose_gate
    from peft_rag.fusion.none import NoFusion

    model, task, split = prepared.model, prepared.splits.task, prepared.validation
    alone = model.outputs(split, fusion=NoFusion(), progress="validation without retrieval")
    fused = model.fusion.combine(judged, split, memory, task)
    gates = GATES[:2] if task.generates else GATES  # a text is written with passages or without them
    return choose_gate(alone.log_probs, fused, task, targets, split.examples, gates=gates)


def measure_overlap(prepared: Prepared, answers: Answers) -> dict[str, Any]:
    """Say which test examples stand in the corpus, and score every arm with and without them.

    Near duplicates are looked for where the run has searched by sentence vectors anyway, so that nothing is encoded
    for this alone.
    """
    from peft_rag.evaluation.overlap import scores_by_overlap

    knowledge = prepared.model.knowledge
    assert knowledge is not None
    searched = any(split.neighbours is not None for split in (prepared.train, prepared.validation, prepared.test))
    task, examples = prepared.splits.task, prepared.test.examples
    report = knowledge.overlap([task.alone(example) for example in examples], near=searched)
    return scores_by_overlap(task, answers.log_probs, answers.targets, report, examples)


def _retrieval_alone(prepared: Prepared, untrained: Outputs) -> Tensor:
    """Classify the test split by neighbours' labels alone, in the retriever's space, k and T chosen on validation."""
    import torch

    from peft_rag.fusion.base import Outputs
    from peft_rag.fusion.knn import KnnFusion

    task = prepared.splits.task
    targets = task.targets(prepared.validation.examples)
    nothing = Outputs(torch.zeros(len(targets), *untrained.log_probs.shape[1:]), untrained.features[:0])
    memory = _targets_of_corpus(prepared)
    alone = KnnFusion(space="retriever", weight=1.0).fit(nothing, prepared.validation, memory, task, targets)
    return alone.combine(untrained, prepared.test, memory, task)


def _targets_of_corpus(prepared: Prepared) -> Memory:
    from peft_rag.fusion.base import Memory
    from peft_rag.knowledge import labelled_examples

    assert prepared.model.knowledge is not None
    return Memory(prepared.splits.task.targets(labelled_examples(prepared.model.knowledge, prepared.splits.task)))


def _settings(fusion: Fusion) -> str:
    return ", ".join(f"{name} {value}" for name, value in fusion.to_dict().items()) or "none"

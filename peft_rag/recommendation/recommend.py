"""From a person's data to a ready artefact, and to the reasons for its method."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_rag.config import RunConfig, override
from peft_rag.errors import ConfigError, DataError
from peft_rag.files import refuse_nonempty, sha256_of_json, write_json, write_text
from peft_rag.recommendation.candidates import Survey, looks, settled, survey, with_fusion
from peft_rag.recommendation.choice import LEAST_DISAGREEMENTS, Choice, choose
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.report import Report
from peft_rag.recommendation.search import Clock, Found, Search
from peft_rag.recommendation.store import Store
from peft_rag.recommendation.trial import Trials
from peft_rag.recommendation.words import caution, in_words, reasons
from peft_rag.workspace import working_folder

Say = Callable[[str], None]

REPORT, WORDS = "recommendation.json", "recommendation.md"
_LEAST_FULL_STEPS = 120
_MINUTE = 60.0


@dataclass(frozen=True)
class Recommendation:
    """What a search left behind.

    Attributes:
        folder: the artefact, with `REPORT` and `WORDS` beside its own files.
        report: the content of `REPORT`.
    """

    folder: Path
    report: dict[str, Any]


def recommend(config: RunConfig, options: SearchOptions, say: Say = print) -> Recommendation:
    """Search for the method that serves some data, train it, and say why it was taken.

    Everything is chosen on validation; the test split is checked for mistakes at the beginning and answered once, by
    the final run. All that is made lies in ``<output>.partial`` until the artefact and its reasons are whole; a search
    that was cut off goes on there with ``resume``.

    Args:
        config: the data and what all runs share; its method is not looked at.
        options: what is tried, and with how much.
        say: takes each line of progress.

    Raises:
        PeftRagError: something the user can mend; nothing half-written is left behind.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("recommend runs in one process. Start it with peft-rag rather than accelerate or torchrun.")
    from peft_rag.devices import computing_for

    clock = Clock(options.budget_minutes * _MINUTE or math.inf)
    output = Path(config.output)
    with computing_for(config.training), working_folder(config, output, main=True) as working:
        try:
            folder, report = _search_and_train(config, options, working, clock, say)
        except KeyboardInterrupt:
            say(f"stopped; the trials so far lie in '{working}', and --resume goes on with them")
            raise
        content, words = report.content(list(reasons(report))), in_words(report)
        write_json(folder / REPORT, content)
        write_text(folder / WORDS, "\n".join(words) + "\n")
        refuse_nonempty(output)
        os.replace(folder, os.path.realpath(output))
    for line in ("", *words, "", f"saved: {output}"):
        say(line)
    return Recommendation(output, content)


def _search_and_train(
    config: RunConfig, options: SearchOptions, working: Path, clock: Clock, say: Say
) -> tuple[Path, Report]:
    """Search, choose, and train the winner in the working folder."""
    from peft_rag.job import read_data

    splits = read_data(config)
    say(f"data: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test")
    _check_validation(len(splits.validation))
    for line in caution(len(splits.validation)):
        say(line)
    base = override(config, test="")
    surveyed = survey(base, options, say)
    search = Search(surveyed, options, Trials(base), Store(working / "trials", base), clock, say)
    found = search.run(_full_steps(base, surveyed), splits)
    choice = choose(found.finalists)
    final = _final(config, choice, found)
    say("")
    say(f"final run: {choice.standing.candidate.label}, {with_fusion(choice.fusion)}, {found.full_steps} steps")
    place = working / f"final-{sha256_of_json(final.to_dict())[-8:]}"
    folder = _train(override(final, output=str(place), resume=config.resume), say)
    return folder, Report(
        options=options,
        surveyed=surveyed,
        found=found,
        choice=choice,
        final=final,
        metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        metric=splits.task.main_metric,
        validation=len(splits.validation),
        seconds=clock.passed,
    )


def _check_validation(examples: int) -> None:
    if examples < LEAST_DISAGREEMENTS:
        raise DataError(
            f"validation has {examples} examples, too few to choose by: with fewer than {LEAST_DISAGREEMENTS}, not "
            "even a method that is always right differs from one that is always wrong beyond chance. Name more with "
            "--validation, or hold out more of the training data with --validation_share."
        )


def _full_steps(base: RunConfig, surveyed: Survey) -> int:
    """Return the steps of the final run: as told, or three passes over the data, 120 steps at least."""
    arguments, examples = surveyed.prepared.arguments, len(surveyed.prepared.train)
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    steps = math.ceil(math.ceil(examples / batch) * arguments.num_train_epochs)
    return int(steps) if "num_train_epochs" in base.training else max(int(steps), _LEAST_FULL_STEPS)


def _final(config: RunConfig, choice: Choice, found: Found) -> RunConfig:
    candidate = choice.standing.candidate
    settings = {**candidate.settings, **looks(config, found.full_steps)}
    return override(settled(config, candidate.method, settings, choice.fusion), resume=False)


def _train(config: RunConfig, say: Say) -> Path:
    """Run the main job as any other; where it saves is no news before the folder lies where it was asked for."""
    from peft_rag.job import run

    folder = Path(config.output)
    if folder.exists():  # a search that was cut off between the final run's end and its own
        shutil.rmtree(folder)
    return run(config, lambda line: None if line.startswith("saved: ") else say(line)).folder

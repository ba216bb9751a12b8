"""What is retrieved for the splits of a run, and by which queries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_rag.config import RunConfig
    from peft_rag.data import Splits
    from peft_rag.fusion.base import Split
    from peft_rag.knowledge import Knowledge
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.query_tower.tower import QueryTower


def query_tower(config: RunConfig, knowledge: Knowledge) -> QueryTower | None:
    """Return the query tower that a run trains, fresh; None where its retriever stays frozen.

    Raises:
        ConfigError: the retriever is not searched by vectors, or the method does not suit.
        MethodError: the method does not fit the retriever's encoder.
    """
    if not config.query_method:
        return None
    from peft_rag.query_tower.options import RetrieverTraining
    from peft_rag.query_tower.tower import QueryTower

    training = RetrieverTraining(
        config.retriever_loss,
        config.retriever_loss_weight,
        config.retriever_loss_temperature,
        config.rerank,
        config.query_learning_rate,
    )
    return QueryTower.attached(knowledge, config.query_method, training, **config.part_options("query_method"))


def retrieved(
    model: RetrievalAugmentedModel, splits: Splits, *, search: bool, tower: QueryTower | None = None
) -> tuple[Split, Split, Split]:
    """Retrieve once per split; a training example never sees itself or its double, found or not.

    Where a tower is to choose, the frozen encoder finds what it chooses from; once it is given, it finds what is read.
    """
    from peft_rag.fusion.knn import KnnFusion
    from peft_rag.knowledge import answers_alone, find_for

    knowledge, fusion = model.knowledge, model.fusion
    assert knowledge is not None
    separate = not splits.fields.is_training_data
    votes = answers_alone(splits.task, splits.corpus)
    voters = KnnFusion(space="retriever").neighbours_wanted if votes and tower is None else 0
    read = fusion.neighbours_wanted
    if model.tower is not None and tower is None:
        read = model.tower.options.candidates(read)
    most = max(read, voters) if search else 0
    find = partial(find_for, splits.task, knowledge, tower=tower)
    train = find(
        splits.train,
        read if fusion.reads_neighbours else 0,
        name="train",
        learn=True,
        same_data=not separate,
        exclude_duplicates=True,
    )
    validation = find(
        splits.validation,
        most,
        name="validation",
        same_data=splits.validation_in_corpus,
        exclude_duplicates=separate or splits.validation_in_corpus,
    )
    if not splits.test:
        return train, validation, validation
    test = find(splits.test, most, name="test", exclude_duplicates=separate)
    return train, validation, test

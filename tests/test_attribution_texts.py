"""What each neighbour did for a text that was written, against a loop that asks for that text again without it."""

import pytest

from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.cross_attention import CrossAttentionFusion
from peft_rag.fusion.fid import FidFusion
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.generation import write
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example
from peft_rag.tasks.text2text import Text2Text
from tests.test_generation import CORPUS, model_of

TEXTS = ["w20 w21 w1", "w23 w2"]
READING = {
    "concat": ("gpt2", ConcatFusion(k=2)),
    "marginal": ("gpt2", MarginalFusion(k=2)),
    "fid": ("t5", FidFusion(k=3)),
    "projector": ("llama", ProjectorFusion(k=2, width=4)),
    "cross-attention": ("bart", CrossAttentionFusion(k=2, width=4)),
}


def log_prob(model, source, text, pairs):
    """log p of a text beside neighbours chosen by hand, the sum over its tokens."""
    split = Split([Example("0", source, (text,))], Neighbours.of_rows([pairs]))
    return float(model.outputs(split).log_probs.double().sum())


@pytest.mark.parametrize(("backbone", "fusion"), READING.values(), ids=READING)
def test_effects_on_a_written_text_equal_a_loop(backbone, fusion):
    model = model_of(backbone, Text2Text(target_length=5), fusion)
    plain = model.predict(TEXTS)
    answers = model.predict(TEXTS, explain=True)
    place = {document.id: number for number, document in enumerate(CORPUS)}
    effects = []
    for source, given, bare in zip(TEXTS, answers, plain, strict=True):
        assert (given.labels, given.probability) == (bare.labels, bare.probability)
        assert bare.neighbours == ()
        (text,) = given.labels
        pairs = [(place[one.id], one.score) for one in given.neighbours]
        assert len(pairs) == fusion.k
        known = log_prob(model, source, text, pairs)
        assert given.tokens == len(model.task.response_ids(Example("0", source, (text,))))
        for one in given.neighbours:
            others = [pair for pair in pairs if pair[0] != place[one.id]]
            assert one.effect == pytest.approx(known - log_prob(model, source, text, others), abs=1e-4)
            asked = Split([Example("0", source)], Neighbours.of_rows([others]))
            assert one.labels_without == (write(model, asked.examples, split=asked)[0][0],)
            effects.append(one.effect)
        asked = Split([Example("0", source)])
        ((alone, probability),) = write(model, asked.examples, split=asked, fusion=NoFusion())
        assert given.without_retrieval.labels == (alone,)
        assert given.without_retrieval.probability == pytest.approx(probability, abs=1e-4)
    assert max(map(abs, effects)) > 1e-3


def test_neighbours_of_single_tokens_are_not_left_out():
    model = model_of("gpt2", Text2Text(target_length=5), KnnFusion(k=2, temperature=0.1, weight=0.5))
    with pytest.raises(ConfigError, match="here every word has neighbours of its own"):
        model.predict(TEXTS, explain=True)

"""What documents did for tags and for written texts, against plain loops that leave one of them out."""

import math
from dataclasses import replace

import pytest
import torch

from peft_rag.backbone import as_backbone
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.base import Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.cross_attention import CrossAttentionFusion
from peft_rag.fusion.fid import FidFusion
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.none import NoFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.generation import predict_texts, write, write_tokens
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import headless, word_tokenizer
from tests.test_generation import examples_of, model_of

TAGS = TokenClassification(labels=("O", "B-a", "I-a", "B-b", "I-b"), words="spaces")
TAGGED = Corpus(
    [
        Document("0", "w1 w2 w3", ("B-a", "I-a", "O")),
        Document("1", "w4 w5", ("O", "B-b")),
        Document("2", "w6 w7 w8 w9", ("O", "B-b", "I-b", "O")),
        Document("3", "w10", ("B-a",)),
    ]
)
ASKED = ["w1 w5 w8", "w11 w2"]


def tagger(fusion, corpus=TAGGED):
    torch.manual_seed(0)
    backbone = as_backbone(headless(TINY_BACKBONES["bert"]()), word_tokenizer(), "bert")
    knowledge = Knowledge(corpus, ExactRetriever(WordEncoder()), "exact", "words")
    model = RetrievalAugmentedModel(backbone, TAGS, fusion, knowledge, max_length=32)
    model.progress_bars = False
    model.attach("lora")
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(0.5 * torch.randn_like(tensor))
    return model.eval()


def voted(pairs, says, wanted, own, fusion):
    """λ·Σ_z π_z·[y_z = wanted] + (1-λ)·own of one decision, in plain Python."""
    if not pairs:
        return own
    raised = [math.exp(score / fusion.temperature) for _, score in pairs]
    votes = sum(one for one, (row, _) in zip(raised, pairs, strict=True) if says[row] == wanted) / sum(raised)
    return fusion.weight * votes + (1 - fusion.weight) * own


def nearest(state, keys, k):
    cosines = [float(torch.cosine_similarity(state, key, dim=0)) for key in keys]
    return sorted(enumerate(cosines), key=lambda pair: -pair[1])[:k]


def test_documents_that_voted_on_tags_are_left_out_with_all_their_words():
    fusion = KnnFusion(k=4, temperature=0.2, weight=0.6)
    model = tagger(fusion)
    memory, asked = model.memory(), [TAGS.as_example(text, str(n)) for n, text in enumerate(ASKED)]
    outputs = model.outputs(Split(asked))
    says, owners = memory.targets[:, 0].tolist(), memory.decisions.owners.tolist()
    effects = []
    for place, given in enumerate(model.predict(ASKED, explain=True)):
        rows = list(outputs.decisions.rows(place))
        voters = [nearest(outputs.features[row], memory.features, 4) for row in rows]
        tags = [TAGS.labels.index(tag) for tag in given.labels]

        def log_prob(left_out, rows=rows, voters=voters, tags=tags):
            return sum(
                math.log(
                    voted(
                        [pair for pair in pairs if owners[pair[0]] not in left_out],
                        says,
                        tag,
                        math.exp(outputs.log_probs[row, tag]),
                        fusion,
                    )
                )
                for row, pairs, tag in zip(rows, voters, tags, strict=True)
            )

        documents = {owners[row] for pairs in voters for row, _ in pairs}
        assert {int(one.id) for one in given.neighbours} == documents
        assert [one.weight for one in given.neighbours] == sorted(
            (one.weight for one in given.neighbours), reverse=True
        )
        assert sum(one.weight for one in given.neighbours) == pytest.approx(0.6)
        known = log_prob(set())
        assert math.exp(known) == pytest.approx(given.probability, rel=1e-4)
        for one in given.neighbours:
            assert one.effect == pytest.approx(known - log_prob({int(one.id)}), abs=2e-5)
            assert len(one.labels_without) == len(given.labels)
            effects.append(one.effect)
        alone = TAGS.decode(outputs.log_probs[rows], [asked[place]])[0]
        assert given.without_retrieval.labels == alone[0]
        assert math.log(given.without_retrieval.probability) == pytest.approx(math.log(alone[1]), abs=1e-5)
    assert max(map(abs, effects)) > 0.01


def test_of_many_documents_the_heaviest_are_shown_and_the_others_stay(monkeypatch):
    model = tagger(KnnFusion(k=6, temperature=0.2, weight=0.6))
    (whole,) = model.predict(ASKED[:1], explain=True)
    assert len(whole.neighbours) > 2
    monkeypatch.setattr("peft_rag.attribution.MOST_DOCUMENTS", 2)
    (given,) = model.predict(ASKED[:1], explain=True)
    assert given.without_retrieval == whole.without_retrieval
    assert [(one.id, one.effect) for one in given.neighbours] == [
        (one.id, pytest.approx(one.effect, abs=1e-6)) for one in whole.neighbours[:2]
    ]


def judged(model, example, pairs, tokens):
    """log p of tokens after an input that holds some neighbours, by a pass of its own."""
    bare = replace(example, labels=None)
    (row,) = model.encode(Split([bare], Neighbours.of_rows([pairs])))
    prompt = list(row["input_ids"])
    with torch.no_grad():
        if model.decoder_start is not None:
            begun = torch.tensor([[model.decoder_start, *tokens[:-1]]])
            logits = model.backbone(input_ids=torch.tensor([prompt]), decoder_input_ids=begun).logits[0]
        else:
            logits = model.backbone(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0][len(prompt) - 1 : -1]
    return sum(float(one.log_softmax(-1)[token]) for one, token in zip(logits, tokens, strict=True))


@pytest.mark.parametrize("decoding", [{}, {"max_new_tokens": 2}])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_passages_before_a_written_text_are_left_out_by_a_loop(family, decoding):
    model = model_of(family, Text2Text(target_length=6), ConcatFusion(k=2))
    examples = examples_of(model, ("w20 w21", "w3"), ("w26 w4", "w5"))
    place = {document.id: number for number, document in enumerate(model.knowledge.corpus)}
    told = model.predict(examples, explain=True, decoding=decoding)
    alone = write(model, examples, fusion=NoFusion(), **decoding)
    effects = []
    for example, one, given, bare in zip(examples, write_tokens(model, examples, **decoding), told, alone, strict=True):
        assert (given.labels, given.probability, given.tokens) == ((one.text,), one.probability, len(one.tokens))
        pairs = [(place[shown.id], shown.score) for shown in given.neighbours]
        known = judged(model, example, pairs, one.tokens)
        assert math.exp(known / len(one.tokens)) == pytest.approx(one.probability, rel=1e-4)
        for shown in given.neighbours:
            without = judged(model, example, [pair for pair in pairs if pair[0] != place[shown.id]], one.tokens)
            assert shown.effect == pytest.approx(known - without, abs=1e-4)
            assert shown.labels_without is None
            effects.append(shown.effect)
        assert (given.without_retrieval.labels[0], given.without_retrieval.probability) == bare
    assert len(effects) == 4
    assert max(map(abs, effects)) > 0.001


@pytest.mark.parametrize(
    ("family", "fusion"),
    [
        ("t5", FidFusion(k=3)),
        ("llama", ProjectorFusion(k=2, width=4)),
        ("bart", CrossAttentionFusion(k=2, width=4)),
    ],
    ids=["fid", "projector", "cross-attention"],
)
def test_whatever_reads_neighbours_while_it_writes_is_asked_again_without_each(family, fusion):
    """Against the likelihood of the same tokens, which its own tests compare with plain loops."""
    model = model_of(family, Text2Text(target_length=5), fusion)
    examples = examples_of(model, ("w20 w21 w1", "w3"), ("w23 w2", "w5"))
    place = {document.id: number for number, document in enumerate(model.knowledge.corpus)}
    told = model.predict(examples, explain=True)
    effects = []
    for example, one, given in zip(examples, write_tokens(model, examples), told, strict=True):

        def log_prob(pairs, example=example, one=one):
            asked = replace(example, labels=(one.text,), tokens=one.tokens)
            return float(model.outputs(Split([asked], Neighbours.of_rows([pairs]))).log_probs.double().sum())

        pairs = [(place[shown.id], shown.score) for shown in given.neighbours]
        assert len(pairs) == fusion.k
        for shown in given.neighbours:
            without = log_prob([pair for pair in pairs if pair[0] != place[shown.id]])
            assert shown.effect == pytest.approx(log_prob(pairs) - without, abs=1e-4)
            effects.append(shown.effect)
        bare = write(model, [example], fusion=NoFusion())
        assert [(given.without_retrieval.labels[0], given.without_retrieval.probability)] == [
            (bare[0][0], pytest.approx(bare[0][1], abs=1e-4))
        ]
    assert max(map(abs, effects)) > 1e-3


def test_documents_whose_tokens_voted_on_a_written_text_are_left_out_by_a_loop():
    fusion = KnnFusion(k=4, temperature=0.2, weight=0.6)
    model = model_of("gpt2", Text2Text(target_length=5), fusion)
    examples, memory = examples_of(model, ("w20 w21", "w3"), ("w5", "w6")), model.memory()
    says, owners = memory.targets[:, 0].tolist(), memory.decisions.owners.tolist()
    effects = []
    for example, one, given in zip(
        examples, write_tokens(model, examples), model.predict(examples, explain=True), strict=True
    ):
        taught = replace(example, labels=(one.text,), tokens=one.tokens)
        outputs = model.outputs(Split([taught]))
        voters = [nearest(state, memory.features, 4) for state in outputs.features]

        def log_prob(left_out, outputs=outputs, voters=voters, one=one):
            return sum(
                math.log(voted([pair for pair in pairs if owners[pair[0]] != left_out], says, token, p, fusion))
                for pairs, token, p in zip(voters, one.tokens, outputs.log_probs.exp().tolist(), strict=True)
            )

        known = log_prob(None)
        assert math.exp(known / len(one.tokens)) == pytest.approx(one.probability, rel=1e-3)
        weights = dict.fromkeys(map(str, set(owners)), 0.0)
        for pairs in voters:
            raised = [math.exp(score / 0.2) for _, score in pairs]
            for (row, _), value in zip(pairs, raised, strict=True):
                weights[str(owners[row])] += 0.6 * value / sum(raised) / len(voters)
        for shown in given.neighbours:
            assert shown.weight == pytest.approx(weights[shown.id], abs=1e-5)
            assert shown.effect == pytest.approx(known - log_prob(int(shown.id)), abs=1e-4)
            effects.append(shown.effect)
    assert max(map(abs, effects)) > 0.01


@pytest.mark.parametrize("form", ["token", "sequence"])
def test_passages_mixed_into_a_written_text_have_effects_and_weights(form):
    model = model_of("gpt2", Text2Text(target_length=5), MarginalFusion(k=2, form=form))
    examples = examples_of(model, ("w20 w21", "w3"))
    ((text, probability),) = write(model, examples)
    (given,) = model.predict(examples, explain=True)
    assert (given.labels, given.probability) == ((text,), probability)
    assert sum(one.weight for one in given.neighbours) == pytest.approx(1.0, abs=1e-5)
    assert any(abs(one.effect) > 1e-4 for one in given.neighbours)


def test_texts_written_without_retrieval_are_not_explained_and_no_text_is_none():
    model = model_of("gpt2", Text2Text(target_length=4))
    examples = examples_of(model, ("w1", "w2"))
    assert predict_texts(model, examples, explain=True) == predict_texts(model, examples)
    assert model.predict([], explain=True) == []

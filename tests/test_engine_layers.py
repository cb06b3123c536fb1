"""The engine's own layers in place of torch's and diffusers': the same numbers in less time."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from middleware_api.container.engine.lean_attention import LeanAttention, make_lean
from middleware_api.container.engine.packed import PackedConv2d, dense, pack
from middleware_api.container.engine.tiling import seamless


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        torch.manual_seed(0)
        yield


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def packed(plain: nn.Conv2d) -> nn.Conv2d:
    layer = copy.deepcopy(plain)
    pack(layer)
    assert isinstance(layer, PackedConv2d)
    return layer


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (8, 2), (3, 1)])
def test_a_packed_convolution_is_the_same_at_every_size(side: int, stride: int) -> None:
    plain = nn.Conv2d(32, 64, 3, stride, padding=1)
    layer = packed(plain)
    layer(torch.randn(2, 32, 16, 16))  # it packs for the first size that it sees
    assert layer.weight.is_mkldnn
    x = torch.randn(2, 32, side, side)
    assert close(layer(x), plain(x))
    assert torch.equal(dense(layer.weight), plain.weight)
    with seamless([layer]), seamless([plain]):
        assert close(layer(x), plain(x))


def test_a_weight_that_stands_in_is_used_and_leaves_no_trace() -> None:
    plain = nn.Conv2d(32, 32, 3, padding=1)
    layer, x = packed(plain), torch.randn(1, 32, 8, 8)
    before, own = layer(x), layer.weight
    layer.weight = nn.Parameter(2 * plain.weight, requires_grad=False)
    doubled = layer(x)
    layer.weight = own
    assert close(doubled - plain.bias[:, None, None], 2 * (before - plain.bias[:, None, None]))
    assert torch.equal(layer(x), before)


def test_half_precision_stays_as_it_is() -> None:
    layer = nn.Conv2d(4, 4, 3).half()
    pack(layer)
    assert type(layer) is nn.Conv2d


@pytest.fixture
def plain() -> Attention:
    return Attention(query_dim=32, cross_attention_dim=48, heads=4, dim_head=8).eval()


def lean(plain: Attention) -> LeanAttention:
    layer = copy.deepcopy(plain)
    make_lean(layer)
    assert isinstance(layer, LeanAttention)
    return layer


def test_lean_attention_is_the_same(plain: Attention) -> None:
    x, text = torch.randn(2, 16, 32), torch.randn(2, 77, 48)
    assert close(lean(plain)(x, text), plain(x, text))
    itself = Attention(query_dim=32, heads=4, dim_head=8).eval()
    assert close(lean(itself)(x), itself(x))
    mask = torch.zeros(2, 77)
    mask[:, 40:] = -10_000.0
    assert close(lean(plain)(x, text, mask), plain(x, text, mask))


def test_a_text_is_read_once_as_long_as_it_lives(plain: Attention) -> None:
    layer, read = lean(plain), []
    layer.to_k.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    text, other = torch.randn(2, 77, 48), torch.randn(2, 77, 48)
    for x in torch.randn(3, 2, 16, 32):
        assert close(layer(x, text), plain(x, text))
        assert close(layer(x, other), plain(x, other))
    assert len(read) == 2
    read.clear()
    del text, other
    assert len(layer._of_text) == 0


def test_attention_that_does_more_stays_as_it_is() -> None:
    of_a_vae = Attention(query_dim=32, heads=1, norm_num_groups=4, residual_connection=True)
    make_lean(of_a_vae)
    assert type(of_a_vae) is Attention

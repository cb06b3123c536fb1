"""Convolutions on a CPU whose weights stay as its library wants them.

Left to itself, oneDNN rearranges a convolution's weights at each call. Where pictures are small
that takes longer than the convolution: four times as long, at the deepest levels of SD 1.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Conv2d):
    """A convolution that packs its weights when it is first used, and others when they stand in
    for them; `dense` reads them. What it answers has its channels last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        """As the parent's."""
        if self.padding_mode != "zeros" or self.weight.dtype is not torch.float32:
            plain: Tensor = self._conv_forward(input, dense(self.weight), self.bias)
            return plain
        if not self.weight.is_mkldnn:
            self.weight = nn.Parameter(self._packed(input), requires_grad=False)
        answer: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
            "none", [], "",
        )  # fmt: skip
        return answer

    def _packed(self, input: Tensor) -> Tensor:
        """Best for inputs of this size, and right for all."""
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed: Tensor = reorder(
            self.weight.detach().to_mkldnn(), self.padding, self.stride, self.dilation,
            self.groups, input.shape,
        )  # fmt: skip
        return packed


def dense(weight: Tensor) -> Tensor:
    """A parameter's values, whether they are packed or not."""
    return weight.to_dense() if weight.is_mkldnn else weight


def pack(module: nn.Module) -> None:
    """Has a loaded module's convolutions pack their weights, where that is of use: on a CPU whose
    torch has oneDNN, in single precision."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and not isinstance(layer.padding, str)
            and layer.weight.device.type == "cpu"
            and layer.weight.dtype is torch.float32
        ):
            layer.__class__ = PackedConv2d


def unpack(module: nn.Module) -> None:
    """Undoes `pack`: nothing learns through packed convolutions."""
    layer: Any
    for layer in module.modules():
        if isinstance(layer, PackedConv2d):
            # A copy: what was packed while pictures were made knows no gradients.
            weight = dense(layer.weight.detach()).clone()
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # its parent

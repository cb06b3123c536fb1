"""The attention of a UNet's transformers without what only training and other models need."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class LeanAttention(Attention):  # type: ignore[misc]  # diffusers tells no type
    """The same numbers by fewer steps; what it has made of a text it keeps as long as the text's
    tensor lives, which is a pass."""

    _of_text: Any  # WeakTensorKeyDictionary

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """As the parent's."""
        if attention_mask is not None or more:
            whole: Tensor = super().forward(
                hidden_states, encoder_hidden_states, attention_mask, **more
            )
            return whole
        text = encoder_hidden_states
        key, value = self._read(hidden_states) if text is None else self._read_text(text)
        made = nn.functional.scaled_dot_product_attention(
            self._in_heads(self.to_q(hidden_states)), key, value
        )
        answer: Tensor = self.to_out[0](made.transpose(1, 2).flatten(2))
        return answer

    def _read_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        if text not in self._of_text:
            self._of_text[text] = self._read(text)
        found: tuple[Tensor, Tensor] = self._of_text[text]
        return found

    def _read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_heads(self.to_k(states)), self._in_heads(self.to_v(states))

    def _in_heads(self, states: Tensor) -> Tensor:
        count, tokens, width = states.shape
        return states.view(count, tokens, self.heads, width // self.heads).transpose(1, 2)


def make_lean(unet: nn.Module) -> None:
    """Of all attention in a UNet that does no more than that."""
    layer: Any
    for layer in unet.modules():
        if type(layer) is Attention and _is_plain(layer):
            layer.__class__ = LeanAttention
            layer._of_text = WeakTensorKeyDictionary()


def _is_plain(layer: Attention) -> bool:
    norms = (layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.norm_cross)
    return (
        type(layer.processor) is AttnProcessor2_0
        and not any(norms)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1.0
        and layer.added_kv_proj_dim is None
    )


def make_trainable(unet: nn.Module) -> None:
    """Undoes `make_lean`: what is trained makes something else of a text at each step."""
    layer: Any
    for layer in unet.modules():
        if isinstance(layer, LeanAttention):
            layer.__class__ = Attention
            del layer._of_text

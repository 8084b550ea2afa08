"""A transformer block of open_clip's towers with kernels that are faster on a CPU; the same result up to rounding.

Linear layers run in oneDNN with weights packed once and GELU fused. torch's own go to MKL, which on other processors
than Intel's uses half of their vector width, and GELU is a pass of its own over memory.

Shape legend: B batch, L tokens, H heads, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LinearLayer = Callable[[Tensor], Tensor]


class CpuBlock(nn.Module):
    """Replaces a `ResidualAttentionBlock` of open_clip; with ``first_only`` it computes the first token alone."""

    def __init__(self, block: Any, first_only: bool = False) -> None:
        super().__init__()
        attention: nn.MultiheadAttention = block.attn
        self.heads, self.first_only, self.kind = attention.num_heads, first_only, attention.out_proj.weight.dtype
        self.ln_1, self.ls_1, self.ln_2, self.ls_2 = block.ln_1, block.ls_1, block.ln_2, block.ls_2
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        dim = attention.embed_dim
        split = dim if first_only else 3 * dim  # the query of one token, or queries, keys and values of all
        self.query = freeze_linear(weight[:split], bias[:split])
        self.rest = freeze_linear(weight[split:], bias[split:]) if first_only else None
        self.out = freeze_linear(attention.out_proj.weight, attention.out_proj.bias)
        gelu = block.mlp.gelu
        fused = can_pack(weight) and type(gelu) is nn.GELU
        self.widen = freeze_linear(block.mlp.c_fc.weight, block.mlp.c_fc.bias, gelu.approximate if fused else None)
        self.activate: LinearLayer = nn.Identity() if fused else gelu
        self.narrow = freeze_linear(block.mlp.c_proj.weight, block.mlp.c_proj.bias)

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip asks the first block of a tower."""
        return self.kind

    def forward(self, x_BLD: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, 1, D). ``attn_mask``: (L, L), added to the logits."""
        own = x_BLD[:, :1] if self.first_only else x_BLD
        own = own + self.ls_1(self._attend(self.ln_1(x_BLD), attn_mask))
        result: Tensor = own + self.ls_2(self.narrow(self.activate(self.widen(self.ln_2(own)))))
        return result

    def _attend(self, x_BLD: Tensor, mask_LL: Tensor | None) -> Tensor:
        if self.rest is None:
            parts = self.query(x_BLD).chunk(3, dim=-1)
        else:
            parts = (self.query(x_BLD[:, :1].contiguous()), *self.rest(x_BLD).chunk(2, dim=-1))
        q_BHLD, k_BHLD, v_BHLD = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask_LL = mask_LL.to(x_BLD.dtype) if mask_LL is not None else None
        seen_BHLD = functional.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask_LL)
        return self.out(seen_BHLD.transpose(1, 2).flatten(2))


def is_replaceable(block: Any) -> bool:
    """Whether `CpuBlock` can replace ``block``: open_clip's own class, with self-attention that has biases."""
    from open_clip.transformer import ResidualAttentionBlock

    return (
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_bias is not None
        and block.attn.batch_first
        and type(block.mlp.c_fc) is nn.Linear
    )


def can_pack(weight: Tensor) -> bool:
    """Whether a layer with this weight can be packed for oneDNN: float32 on a CPU, and a torch built with oneDNN."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return built and weight.device.type == "cpu" and weight.dtype == torch.float32


def freeze_linear(weight: Tensor, bias: Tensor, gelu: str | None = None) -> LinearLayer:
    """Returns a frozen linear layer of weight (O, I), bias (O,). ``gelu``: fused, in this approximation, if packed."""
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    if not can_pack(weight):
        return lambda x: functional.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    after: tuple[Any, ...] = ("none", [], "") if gelu is None else ("gelu", [], gelu)

    def layer(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, *after)
        return result

    return layer

"""Blocks of other kernels give what open_clip's give; where they cannot stand for a block, they say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dataprep.torchvision_operators import declare_torchvision_operators
from eval.blocks import Block, packs, suits


@pytest.fixture(autouse=True, scope="module")
def operators() -> None:
    """What open_clip's import needs."""
    declare_torchvision_operators()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("text", [{}, {"ls_init_value": 0.3}, {"quick": True}], ids=["plain", "scaled", "quick gelu"])
def test_blocks_of_other_kernels_give_the_same(
    text: dict[str, Any], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases and weights that count, a causal mask, every token and the first alone."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    if not packed:
        monkeypatch.setattr("eval.blocks.packs", lambda weight: False)
    torch.manual_seed(0)
    settings = {"act_layer": QuickGELU} if "quick" in text else text
    block = ResidualAttentionBlock(32, 4, **settings).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x_BLD, mask_LL = torch.randn(3, 7, 32), torch.full((7, 7), -torch.inf).triu(1)
    assert suits(block)
    with torch.inference_mode():
        for mask in (None, mask_LL):
            torch.testing.assert_close(Block(block)(x_BLD, mask), block(x_BLD, attn_mask=mask), rtol=1e-4, atol=1e-5)
        first = block(x_BLD)[:, :1]
        torch.testing.assert_close(Block(block, first_only=True)(x_BLD), first, rtol=1e-4, atol=1e-5)


def test_blocks_of_another_make_are_left_alone() -> None:
    from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock

    assert not suits(CustomResidualAttentionBlock(32, 4))
    assert not suits(ResidualAttentionBlock(32, 4, is_cross_attention=True))
    half = ResidualAttentionBlock(32, 4).half()
    assert suits(half) and not packs(half.mlp.c_fc.weight)

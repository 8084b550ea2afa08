"""Replaced blocks give what open_clip's give; other blocks are not replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dataprep.io.model_imports import import_open_clip
from eval.clip.cpu_blocks import CpuBlock, can_pack, is_replaceable


@pytest.fixture(autouse=True, scope="module")
def open_clip_imported() -> None:
    """Makes `import open_clip` work in the tests."""
    import_open_clip()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("text", [{}, {"ls_init_value": 0.3}, {"quick": True}], ids=["plain", "scaled", "quick gelu"])
def test_replaced_blocks_give_the_same(text: dict[str, Any], packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nonzero biases, with and without a causal mask, for all tokens and for the first alone."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    if not packed:
        monkeypatch.setattr("eval.clip.cpu_blocks.can_pack", lambda weight: False)
    torch.manual_seed(0)
    settings = {"act_layer": QuickGELU} if "quick" in text else text
    block = ResidualAttentionBlock(32, 4, **settings).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x_BLD, mask_LL = torch.randn(3, 7, 32), torch.full((7, 7), -torch.inf).triu(1)
    assert is_replaceable(block)
    with torch.inference_mode():
        for mask in (None, mask_LL):
            torch.testing.assert_close(CpuBlock(block)(x_BLD, mask), block(x_BLD, attn_mask=mask), rtol=1e-4, atol=1e-5)
        first = block(x_BLD)[:, :1]
        torch.testing.assert_close(CpuBlock(block, first_only=True)(x_BLD), first, rtol=1e-4, atol=1e-5)


def test_other_blocks_are_not_replaced() -> None:
    from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock

    assert not is_replaceable(CustomResidualAttentionBlock(32, 4))
    assert not is_replaceable(ResidualAttentionBlock(32, 4, is_cross_attention=True))
    half = ResidualAttentionBlock(32, 4).half()
    assert is_replaceable(half) and not can_pack(half.mlp.c_fc.weight)

"""Heads over the caption that look one way only, and vectors of which some rows have none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.models.conditioning import (
    ImageEmbeddingConditioner,
    OptionalVector,
    TextBlock,
    TextConditioner,
    append_tokens,
    direction_mask,
)

LENGTH = 5


def find_dependence(block: TextBlock, head: int) -> Tensor:
    """Returns bool (T, T): whether token t's output of one head's attention depends on token s."""
    width = block.project.out_features // block.heads
    with torch.no_grad():
        nn.init.normal_(block.qkv.weight, std=0.1)  # no softmax that sees one token alone
        block.project.weight.zero_()
        block.project.weight[:, head * width : (head + 1) * width].normal_()
    x_BTC = torch.randn(1, LENGTH, block.project.out_features)
    rows = []
    for token in range(LENGTH):
        changed = x_BTC.clone()
        changed[:, token] += 1 + torch.rand(x_BTC.shape[2])
        moved = (block(changed, None) - block(x_BTC, None))[0].abs().amax(1) > 1e-6
        rows.append(moved)
    return torch.stack(rows, dim=1)


def test_heads_look_at_all_back_and_ahead_by_turns() -> None:
    torch.manual_seed(0)
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    ahead = everything.triu()
    ahead[:, 0] = True  # the null token
    for head, seen in enumerate((everything, everything.tril(), ahead, everything)):
        assert torch.equal(direction_mask(4, LENGTH, torch.device("cpu"))[head], seen)
        block = TextBlock(32, 4, directions=True)
        assert torch.equal(find_dependence(block, head), seen)
        assert find_dependence(TextBlock(32, 4), head).all()


def test_padding_and_dropped_captions_change_nothing() -> None:
    torch.manual_seed(0)
    text = TextConditioner(8, 96, 2, 16, directions=True)
    for block in text.layers:
        assert isinstance(block, TextBlock) and block.heads == 3
        nn.init.normal_(block.project.weight)
    given = torch.randn(2, 4, 8)
    tokens, _, pooled = text(given, None, None)
    padded = torch.cat([given, torch.full((2, 3, 8), torch.nan)], dim=1)
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    again, _, same = text(padded, mask, None)
    torch.testing.assert_close(again[:, :5], tokens)
    torch.testing.assert_close(same, pooled)
    dropped = text(padded, mask, torch.tensor([True, False]))[2]
    empty = text(torch.randn(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool), None)[2]
    torch.testing.assert_close(dropped[1], empty[1])


def test_zeros_stand_for_no_vector() -> None:
    layer = OptionalVector(6)
    given = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    given[1] = 0
    out = layer(given, 3)
    torch.testing.assert_close(out[1], layer(None, 3)[1])
    torch.testing.assert_close(out[0], layer.norm(given[0]))
    assert float((out[0] - out[1]).abs().max()) > 0.1


def test_an_image_embedding_is_four_tokens_and_a_vector() -> None:
    layer = ImageEmbeddingConditioner(6, 8, 10)
    tokens, vector = layer(torch.randn(2, 6), 2)
    assert tokens.shape == (2, 4, 8) and vector.shape == (2, 10)


def test_appended_tokens_are_seen() -> None:
    mask = torch.tensor([[True, False]])
    tokens, seen = append_tokens(torch.zeros(1, 2, 4), mask, torch.ones(1, 3, 4, dtype=torch.float64))
    assert tokens.dtype == torch.float32 and tokens[0, 2:].all() and not tokens[0, :2].any()
    assert seen is not None and seen.tolist() == [[True, False, True, True, True]]
    assert append_tokens(torch.zeros(1, 2, 4), None, torch.ones(1, 3, 4))[1] is None

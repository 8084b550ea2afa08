"""Rotary positions, QK-norm and windows against direct computations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.models.dit.attention import PatchAttention, Rotary, WindowGrid, rotary_2d, rotate


def test_scores_depend_on_the_distance_of_patches_alone() -> None:
    rotary = rotary_2d(5, 7, 8, torch.zeros(1, dtype=torch.float64))
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turned = [rotate(x.expand(1, 35, 1, 8), rotary)[0, :, 0].view(5, 7, 8) for x in (q, k)]
    scores = torch.einsum("hwd,yxd->hwyx", *turned)
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-5, rtol=1e-5)
    assert abs(float(scores[0, 0, 1, 0] - scores[0, 0, 0, 1])) > 1e-6  # down is not across
    assert abs(float(scores[0, 0, 1, 0] - scores[1, 0, 0, 0])) > 1e-6  # nor up


def test_rotations_are_those_of_the_paper() -> None:
    """One pair per frequency, turned by the coordinate times 100^(-i / pairs)."""
    rotary = rotary_2d(2, 3, 8, torch.zeros(1))
    x = torch.randn(8)
    found = rotate(x.expand(1, 6, 1, 8), rotary)[0, 5, 0]  # the patch at y = 0.5, x = 1
    for channel, angle in enumerate((0.5, 0.5 / 10, 1.0, 1.0 / 10)):
        real, imaginary = float(x[channel]), float(x[channel + 4])
        turned = complex(real, imaginary) * complex(math.cos(angle), math.sin(angle))
        torch.testing.assert_close(found[[channel, channel + 4]], torch.tensor([turned.real, turned.imag]))


def attend(weights: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Queries or keys of rows (N, C), normalised per head: (heads, N, d)."""
    h = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return h.view(len(x), heads, -1).transpose(0, 1)


def rms(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]


def turn(rows: Tensor, rotary: Rotary) -> Tensor:
    """Rotates rows (heads, N, d)."""
    return rotate(rows.transpose(0, 1), rotary).transpose(0, 1)


def test_joint_attention_is_written_down() -> None:
    torch.manual_seed(0)
    layer = PatchAttention(16, 8, 6, "joint").double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = dict(layer.state_dict())
    x, text = torch.randn(4, 16, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    rotary = rotary_2d(2, 2, 8, x)
    seen = torch.tensor([True] * 4 + [True, False, True])
    q = turn(rms(weights, "norm_query", attend(weights, "query", x, 2)), rotary)
    keys, values = [], []
    for name, norm, rows in (("image_keys_values", "norm_image", x), ("text_keys_values", "norm_text", text)):
        both = rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        k, v = (part.reshape(len(rows), 2, 8).transpose(0, 1) for part in both.chunk(2, dim=1))
        k = rms(weights, norm, k)
        keys.append(turn(k, rotary) if name[0] == "i" else k)
        values.append(v)
    scores = (q @ torch.cat(keys, 1).mT / math.sqrt(8)).masked_fill(~seen, -torch.inf)
    mixed = (scores.softmax(-1) @ torch.cat(values, 1)).transpose(0, 1).reshape(4, 16)
    wanted = mixed @ weights["project.weight"].T + weights["project.bias"]
    found = layer(x[None], rotary, text[None], seen[None, None, None])[0]
    torch.testing.assert_close(found, wanted)


def test_windows_hold_the_patches_of_their_place() -> None:
    patches = torch.arange(2 * 4 * 6).view(2, 24, 1)
    for shift in (False, True):
        grid = WindowGrid(4, 6, 2, shift)
        windows = grid.cut(patches)
        assert windows.shape == (12, 4, 1)
        assert torch.equal(grid.join(windows), patches)
        first = [0, 1, 6, 7] if not shift else [7, 8, 13, 14]
        assert windows[0].flatten().tolist() == first and windows[6].flatten().tolist() == [24 + i for i in first]


def test_a_shifted_window_does_not_join_opposite_borders() -> None:
    mask = WindowGrid(4, 6, 2, True).mask(torch.device("cpu"))
    assert mask is not None and mask.shape == (6, 1, 4, 4)
    assert WindowGrid(4, 6, 2, False).mask(torch.device("cpu")) is None
    assert bool(mask[0].all())  # inside of the image
    columns = mask[2, 0]  # holds the last and the first column
    assert columns.tolist() == [[i % 2 == j % 2 for j in range(4)] for i in range(4)]
    assert torch.equal(mask[5, 0], torch.eye(4, dtype=torch.bool))  # four corners

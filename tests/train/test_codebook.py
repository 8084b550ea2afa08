"""A codebook trained by moving averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.codebook import CodebookAverage
from train.loader.sampler import SampleRandom

CODES, WIDTH, BATCH = 6, 3, 4


class Book(nn.Module):
    """A module with a codebook, placed or not yet."""

    def __init__(self, placed: bool = True) -> None:
        super().__init__()
        self.codebook: Tensor
        entries_KD = torch.randn(CODES, WIDTH, generator=torch.Generator().manual_seed(1))
        self.register_buffer("codebook", entries_KD if placed else torch.zeros(CODES, WIDTH))


def make_latents(rows: int = BATCH, seed: int = 0) -> Tensor:
    """Returns (rows, D, 2, 2)."""
    return torch.randn(rows, WIDTH, 2, 2, generator=torch.Generator().manual_seed(seed))


def random_at(step: int, rows: range = range(BATCH)) -> SampleRandom:
    """Returns the random numbers of samples ``rows`` of the update's batch."""
    return SampleRandom(0, step, [step * BATCH + row for row in rows])


def begin(placed: bool = True, decay: float = 0.9, revive_below: float = 0.0) -> tuple[CodebookAverage, Book]:
    average, book = CodebookAverage(decay, revive_below, BATCH), Book(placed)
    average.begin(book)
    return average, book


def test_an_entry_is_the_average_of_what_was_nearest_to_it() -> None:
    """Against the recursion, code by code: N <- d N + (1 - d) n, m <- d m + (1 - d) sum z, entry = m / N."""
    average, book = begin()
    counts, sums = np.ones(CODES), book.codebook.numpy().copy()
    for step in range(5):
        latent_BDhw = make_latents(seed=step)
        codes_Bhw = torch.randint(0, CODES - 1, (BATCH, 2, 2), generator=torch.Generator().manual_seed(step))
        average.observe(latent_BDhw, codes_Bhw, random_at(step))
        average.end_update(True)
        vectors, chosen = latent_BDhw.movedim(1, 3).reshape(-1, WIDTH).numpy(), codes_Bhw.flatten().numpy()
        for code in range(CODES):  # in units of an equal part of the 16 positions
            counts[code] = 0.9 * counts[code] + 0.1 * (chosen == code).sum() * CODES / 16
            sums[code] = 0.9 * sums[code] + 0.1 * vectors[chosen == code].sum(0) * CODES / 16
        assert np.allclose(book.codebook.numpy(), sums / counts[:, None], atol=1e-5)


def test_dead_entries_move_to_outputs_of_the_encoder() -> None:
    average, book = begin(decay=0.5, revive_below=0.6)
    before, latent_BDhw = book.codebook.clone(), make_latents()
    average.observe(latent_BDhw, torch.zeros(BATCH, 2, 2, dtype=torch.int64), random_at(0))
    metrics = average.end_update(True)  # of the others half is left
    outputs = latent_BDhw.movedim(1, 3).reshape(-1, WIDTH)
    for code in range(1, CODES):
        assert bool((outputs == book.codebook[code]).all(1).any()), code
    assert not torch.equal(book.codebook[0], before[0]) and not bool((outputs == book.codebook[0]).all(1).any())
    assert float(metrics["codes_revived"]) == pytest.approx(5 / 6)


def test_an_untrained_codebook_is_placed_on_outputs_of_the_encoder() -> None:
    average, book = begin(placed=False, revive_below=0.0)
    latent_BDhw = make_latents()
    average.observe(latent_BDhw, torch.zeros(BATCH, 2, 2, dtype=torch.int64), random_at(0))
    assert float(average.end_update(True)["codes_revived"]) == 0  # none was alive
    outputs = latent_BDhw.movedim(1, 3).reshape(-1, WIDTH)
    assert all(bool((outputs == entry).all(1).any()) for entry in book.codebook)
    assert len(book.codebook.unique(dim=0)) > 2


def test_how_the_batch_is_split_does_not_matter() -> None:
    whole, parts = begin(revive_below=0.9), begin(revive_below=0.9)
    for step in range(3):
        latent_BDhw, codes_Bhw = make_latents(seed=step), torch.randint(0, 3, (BATCH, 2, 2))
        whole[0].observe(latent_BDhw, codes_Bhw, random_at(step))
        for rows in (range(2, 4), range(2)):
            parts[0].observe(latent_BDhw[rows], codes_Bhw[rows], random_at(step, rows))
        ours, theirs = whole[0].end_update(True), parts[0].end_update(True)
        assert all(float(ours[name]) == pytest.approx(float(theirs[name])) for name in ours)
        assert torch.allclose(whole[1].codebook, parts[1].codebook, atol=1e-6)


def test_use_of_the_codes_is_measured() -> None:
    average, _ = begin()
    for codes, used, perplexity in ([[0, 1, 2, 3], 4 / 6, 4.0], [[0, 0, 0, 0], 1 / 6, 1.0]):
        chosen_Bhw = torch.tensor(codes).repeat(4).view(BATCH, 2, 2)
        average.observe(make_latents(), chosen_Bhw, random_at(0))
        metrics = average.end_update(True)
        assert float(metrics["codes_used"]) == pytest.approx(used)
        assert float(metrics["perplexity"]) == pytest.approx(perplexity, rel=1e-5)


def test_a_skipped_update_leaves_no_trace() -> None:
    (average, book), (other, theirs) = begin(revive_below=0.5), begin(revive_below=0.5)
    codes_Bhw = torch.ones(BATCH, 2, 2, dtype=torch.int64)
    average.observe(make_latents(seed=9) * torch.inf, codes_Bhw, random_at(0))
    assert average.end_update(False) == {}
    for one in (average, other):
        one.observe(make_latents(seed=2), codes_Bhw, random_at(1))
        one.end_update(True)
    assert torch.equal(book.codebook, theirs.codebook)


def test_it_goes_on_from_its_state() -> None:
    (average, book), (other, theirs) = begin(), begin()
    codes_Bhw = torch.ones(BATCH, 2, 2, dtype=torch.int64)
    average.observe(make_latents(), codes_Bhw, random_at(0))
    average.end_update(True)
    other.load_state({name: value.clone() for name, value in average.state().items()})
    assert torch.equal(book.codebook, theirs.codebook)
    for one in (average, other):
        one.observe(make_latents(seed=4), codes_Bhw, random_at(1))
        one.end_update(True)
    assert torch.equal(book.codebook, theirs.codebook)

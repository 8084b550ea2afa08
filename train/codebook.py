"""Training of a codebook by moving averages, the same for any number of ranks (van den Oord et al. 2017, appendix A.1).

Each entry is the mean of the encoder's outputs that were nearest to it, over recent updates. An entry that hardly
anything is near to is dead: it is moved to an output of the encoder (Dhariwal et al. 2020, Jukebox, section 3).

Shape legend: B batch, N positions, K codes, D numbers of a code, h w height and width in codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.loader.sampler import SampleRandom, sample_seed


class CodebookAverage:
    """Keeps the buffer ``codebook`` (K, D) of a module; a `train.task.Companion`.

    ``decay``: of the averages, per update. ``revive_below``: an entry is dead if it gets less than this share of an
    equal part of the positions. Counts are in units of that part: 1 for every entry if all are used equally.
    """

    def __init__(self, decay: float, revive_below: float, batch_size: int) -> None:
        self.decay, self.revive_below, self.batch_size = decay, revive_below, batch_size
        self.codebook: Tensor | None = None

    def begin(self, module: nn.Module) -> None:
        """Takes the codebook of ``module``, which lies on its device by now."""
        codebook = module.get_buffer("codebook")
        self.codebook = codebook
        self.entries_KD = codebook.detach().float().clone()
        self.counts_K = torch.ones(len(codebook), device=codebook.device)
        self.sums_KD = self.entries_KD.clone()
        self._clear()

    def _clear(self) -> None:
        self.update_counts_K = torch.zeros_like(self.counts_K)
        self.update_sums_KD = torch.zeros_like(self.entries_KD)
        self.candidates_KD = torch.zeros_like(self.entries_KD)

    @torch.no_grad()
    def observe(self, latent_BDhw: Tensor, codes_Bhw: Tensor, random: SampleRandom) -> None:
        """Adds a micro-batch of this rank: the encoder's outputs, and the codes that were nearest to them."""
        latent_BND = latent_BDhw.detach().float().flatten(2).transpose(1, 2)
        codes_N = codes_Bhw.flatten()
        self.update_counts_K.index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float32))
        self.update_sums_KD.index_add_(0, codes_N, latent_BND.flatten(0, 1))
        # Where an entry would be moved: a position that is a function of (seed, step), whichever rank has it.
        sample_K, place_K = self._draw(random, latent_BND.shape[1])
        found_BK = random.index_B[:, None] == sample_K[None] + random.step * self.batch_size
        row_K = found_BK.float().argmax(0)
        self.candidates_KD += latent_BND[row_K, place_K] * found_BK.any(0)[:, None]

    def _draw(self, random: SampleRandom, positions: int) -> tuple[Tensor, Tensor]:
        """Returns for each code the number of a sample of the global batch and of a position in it, int64 (K,)."""
        generator = torch.Generator().manual_seed(sample_seed(random.seed, random.step, 0, "revive"))
        uniform_2K = torch.rand(2, len(self.counts_K), generator=generator).to(self.counts_K.device)
        return (uniform_2K[0] * self.batch_size).long(), (uniform_2K[1] * positions).long()

    @torch.no_grad()
    def end_update(self, applied: bool) -> dict[str, Tensor]:
        """Ends an update: averages over the ranks, moves the entries, and writes them to the module.

        Returns scalars: ``codes_used``, the share of entries that something was nearest to; ``perplexity``, the number
        of entries that would carry as much if they were used equally; ``codes_revived``, the share that was dead.
        """
        assert self.codebook is not None, "begin() was not called"
        whole = torch.cat([self.update_counts_K[:, None], self.update_sums_KD, self.candidates_KD], dim=1)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(whole)
        width = self.entries_KD.shape[1]
        counts_K, sums_KD, candidates_KD = whole[:, 0], whole[:, 1 : 1 + width], whole[:, 1 + width :]
        self._clear()
        if not applied:
            return {}
        codes, share_K = len(counts_K), counts_K / counts_K.sum()
        untrained = ~self.entries_KD.any()  # then every entry is placed, none is moved
        self.counts_K.lerp_(share_K * codes, 1 - self.decay)
        self.sums_KD.lerp_(sums_KD * (codes / counts_K.sum()), 1 - self.decay)
        dead_K = (self.counts_K < self.revive_below) | untrained
        self.counts_K = torch.where(dead_K, torch.ones_like(self.counts_K), self.counts_K)
        self.sums_KD = torch.where(dead_K[:, None], candidates_KD, self.sums_KD)
        self.entries_KD = self.sums_KD / self.counts_K[:, None]
        self.codebook.copy_(self.entries_KD)
        entropy = -(share_K * share_K.clamp(min=1e-12).log()).sum()
        revived = (dead_K & ~untrained).float().mean()
        return {
            "codes_used": (counts_K > 0).float().mean(),
            "perplexity": entropy.clamp(max=math.log(codes)).exp(),
            "codes_revived": revived,
        }

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint stores."""
        return {"entries": self.entries_KD, "counts": self.counts_K, "sums": self.sums_KD}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Sets what `state` returned."""
        assert self.codebook is not None, "begin() was not called"
        self.entries_KD, self.counts_K, self.sums_KD = (
            state[name].to(self.codebook.device) for name in ("entries", "counts", "sums")
        )
        self.codebook.copy_(self.entries_KD)

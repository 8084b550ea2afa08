"""Wrapper of diffusers' UNet2DConditionModel as a `Denoiser`.

Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width, T steps of a noise schedule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.model_imports import import_diffusers
from train.beta_schedule import BetaSchedule, find_step, log_snr_table
from train.models.base import Conditions, check_conditions
from train.models.diffusers_unet.config import SUPPORTED_CONDITIONS, DiffusersUNetConfig


class DiffusersUNet(nn.Module):
    """Predicts eps, x0 or v, whichever the network is trained for; (B, 2C, H, W) where it learned a variance too.

    Parameters have diffusers' names below ``unet.``. The network reads the text encoder's output at `text_tokens`
    places, padding included, without a mask: shorter text is filled with zeros. Without a caption it reads the output
    for the empty text, which `set_empty_text` gives.
    """

    steps: Tensor
    lowres_steps: Tensor
    empty_text_LD: Tensor | None

    def __init__(self, config: DiffusersUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = import_diffusers().UNet2DConditionModel(**config.unet.model_dump())
        self.make_tables()
        self.register_buffer("empty_text_LD", None, persistent=False)

    def make_tables(self) -> None:
        """Computes the tables of log-SNRs, again after the network was built without memory for its tensors."""
        for name, betas in (("steps", self.config.betas), ("lowres_steps", self.config.lowres_betas)):
            self.register_buffer(name, _table_bits(betas), persistent=False)

    def set_empty_text(self, text_LD: Tensor) -> None:
        """Sets the text encoder's output (L, D) for the empty text, which stands for no caption."""
        place = next(self.parameters())
        self.empty_text_LD = self._fill(text_LD.to(place)[None])[0]

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the prediction, as `train.models.base.Denoiser` specifies.

        Requires text tokens; a super-resolution network also the low-resolution image and its log-SNR.
        """
        self._check_inputs(x_BCHW, conditions)
        given: dict[str, Any] = {"encoder_hidden_states": self._text(conditions).to(x_BCHW.dtype)}
        if conditions.lowres_BCHW is not None and conditions.lowres_log_snr_B is not None:
            x_BCHW = torch.cat([x_BCHW, conditions.lowres_BCHW.to(x_BCHW.dtype)], dim=1)
            given["class_labels"] = find_step(conditions.lowres_log_snr_B, _read_table(self.lowres_steps))
        step_B = find_step(log_snr_B, _read_table(self.steps))
        output_BCHW: Tensor = self.unet(x_BCHW, step_B, return_dict=False, **given)[0]
        return output_BCHW

    def enable_recompute(self) -> None:
        """From now on keeps only the input of each block for the backward pass and recomputes the rest there."""
        self.unet.enable_gradient_checkpointing()

    def _text(self, conditions: Conditions) -> Tensor:
        """Returns the text (B, L, D) that the network reads, with the empty text where a caption is dropped."""
        assert conditions.text_BLD is not None
        text_BLD, keep_B = self._fill(conditions.text_BLD), conditions.text_keep_B
        if keep_B is None:
            return text_BLD
        if self.empty_text_LD is None:
            raise ValueError("text_keep_B needs the encoder's output for the empty text; call set_empty_text first")
        return torch.where(keep_B[:, None, None], text_BLD, self.empty_text_LD.to(text_BLD.dtype))

    def _fill(self, text_BLD: Tensor) -> Tensor:
        """Appends zeros up to the number of tokens that the network takes."""
        more = self.config.text_tokens - text_BLD.shape[1]
        if more < 0:
            raise ValueError(f"text of {text_BLD.shape[1]} tokens; the network takes {self.config.text_tokens}")
        return functional.pad(text_BLD, (0, 0, 0, more)) if more else text_BLD

    def _check_inputs(self, x_BCHW: Tensor, conditions: Conditions) -> None:
        check_conditions(conditions, SUPPORTED_CONDITIONS, "diffusers_unet")
        multiple, size = self.config.size_multiple(), tuple(x_BCHW.shape[2:])
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"image of {size} pixels; height and width must be multiples of {multiple}")
        if conditions.text_BLD is None:
            raise ValueError("diffusers_unet needs text_BLD")
        given = conditions.lowres_BCHW is not None and conditions.lowres_log_snr_B is not None
        if self.config.lowres and not given:
            raise ValueError("a super-resolution network needs lowres_BCHW and lowres_log_snr_B")
        if not self.config.lowres and conditions.lowres_BCHW is not None:
            raise ValueError("this network takes no low-resolution image; its in_channels is 3")


def _table_bits(betas: BetaSchedule) -> Tensor:
    """Returns the float64 table of log-SNRs as int64: casts of a whole network to bf16 leave integers alone."""
    return log_snr_table(betas).view(torch.int64)


def _read_table(bits_T: Tensor) -> Tensor:
    return bits_T.view(torch.float64)

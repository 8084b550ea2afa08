"""Text-conditional diffusion transformer on the patches of an image, in pixel space.

After Peebles and Xie 2023 (DiT: adaLN-Zero), Chen et al. 2023 (PixArt: cross-attention, one modulation for all blocks)
and Li and He 2025 (JiT: large patches through a bottleneck, the clean image as output).

Shape legend: B batch, C channels, H W height and width, N patches, L caption tokens, D text width, T context tokens,
K context width, E width of the conditioning vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.models.base import Conditions, check_conditions
from train.models.conditioning import ImageEmbeddingConditioner, NoiseEmbedding, TextConditioner, append_tokens
from train.models.dit.attention import NORM_EPS, rotary_2d
from train.models.dit.block import MODULATIONS, DiTBlock, PatchCondition, modulate
from train.models.dit.config import SUPPORTED_CONDITIONS, DiTConfig
from train.models.layers import COORDINATE_FEATURES, add_to_prediction, coordinate_features, zero_init

NOISE_FEATURES = 256


class DiT(nn.Module):
    """Predicts eps, x0 or v (whichever it is trained for) of a noisy image from its noise level and a caption.

    Large patches hold more numbers than a token, which can carry the clean image but not noise: train those for x0.
    """

    def __init__(self, config: DiTConfig, given: int | None = None, predicted: int | None = None) -> None:
        """``given`` and ``predicted``: numbers of a patch that go in and out; None: those of the images."""
        super().__init__()
        self.config = config
        width, condition = config.width, config.condition_width
        self.noise = NoiseEmbedding(NOISE_FEATURES, condition)
        self.lowres_noise = NoiseEmbedding(NOISE_FEATURES, condition) if config.lowres else None
        self.text = TextConditioner(
            config.text_dim, config.context_width, config.text_layers, condition, config.text_directions
        )
        self.image_embedding = None
        if config.image_embedding_dim:
            self.image_embedding = ImageEmbeddingConditioner(
                config.image_embedding_dim, config.context_width, condition
            )
        patch = config.patch**2 * config.image_channels
        given = given or patch * (2 if config.lowres else 1)
        self.narrow = nn.Linear(given, config.bottleneck) if config.bottleneck else None
        self.embed = nn.Linear(config.bottleneck or given, width)
        self.place = nn.Linear(COORDINATE_FEATURES, width) if config.positions else None
        self.modulation = nn.Linear(condition, MODULATIONS * width) if config.modulation == "shared" else None
        self.blocks = nn.ModuleList(DiTBlock(config, shifted=number % 2 == 1) for number in range(config.depth))
        self.norm_out = nn.RMSNorm(width, NORM_EPS, elementwise_affine=False)
        predicted = predicted or config.patch**2 * config.output_channels()
        self.modulation_out, self.out = nn.Linear(condition, 2 * width), nn.Linear(width, predicted)
        self.recompute = False
        self._initialise()

    def _initialise(self) -> None:
        """Initialises linear layers outside the conditioners as in DiT: uniform by Glorot and Bengio 2010, or zero."""
        for part in (self.narrow, self.embed, self.place, *self.blocks.modules()):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            block.reset_branches()
        for layer in (self.modulation, self.modulation_out, self.out):
            if layer is not None:
                zero_init(layer)

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the prediction (B, C, H, W), as `train.models.base.Denoiser` specifies.

        Requires text tokens; for super-resolution also the low-resolution image and its log-SNR. An
        image embedding is optional, where the config has a width for it.
        """
        self._check_inputs(x_BCHW, conditions)
        lowres_BCHW, patch = conditions.lowres_BCHW, self.config.patch
        if lowres_BCHW is not None:
            x_BCHW = torch.cat([x_BCHW, lowres_BCHW], dim=1)
        size = x_BCHW.shape[2] // patch, x_BCHW.shape[3] // patch
        patches = self.out(self.transform(self.embed_patches(x_BCHW), size, log_snr_B, conditions))
        output_BCHW = functional.pixel_shuffle(patches.transpose(1, 2).unflatten(2, size), patch)
        if self.config.lowres_residual and lowres_BCHW is not None:
            output_BCHW = add_to_prediction(output_BCHW, lowres_BCHW)
        return output_BCHW

    def embed_patches(self, x_BCHW: Tensor) -> Tensor:
        """Returns an image as one token for each patch, (B, N, C)."""
        # pixel_unshuffle leaves the channels of a patch contiguous: (C, patch, patch).
        x_BNC = functional.pixel_unshuffle(x_BCHW, self.config.patch).flatten(2).transpose(1, 2)
        tokens: Tensor = self.embed(x_BNC if self.narrow is None else self.narrow(x_BNC))
        return tokens

    def transform(self, x_BNC: Tensor, size: tuple[int, int], log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the tokens (B, N, C) of a grid of ``size`` (height, width) after all blocks and the last norm."""
        vector_BE, text_BTK, mask_BT = self._condition(x_BNC.shape[0], log_snr_B, conditions)
        if self.place is not None:
            x_BNC = x_BNC + self.place(coordinate_features(*size, x_BNC).flatten(2).transpose(1, 2))
        side = (self.config.window,) * 2 if self.config.window else size
        condition = PatchCondition(
            vector_BE,
            None if self.modulation is None else self.modulation(vector_BE),
            text_BTK,
            self._mask_keys(mask_BT, size[0] * size[1]),
            rotary_2d(*side, self.config.head_width, x_BNC),
        )
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_BNC = checkpoint(block, x_BNC, condition, size, use_reentrant=False)
            else:
                x_BNC = block(x_BNC, condition, size)
        shift_BC, scale_BC = self.modulation_out(vector_BE).chunk(2, dim=1)
        return modulate(self.norm_out(x_BNC), shift_BC, scale_BC)

    def _condition(self, batch: int, log_snr_B: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the conditioning vector (B, E) after swish, context tokens (B, T, K) and their mask (B, T)."""
        text_BTK, mask_BT, vector_BE = self.text.read(conditions)
        vector_BE = vector_BE + self.noise(log_snr_B)
        if self.lowres_noise is not None:
            vector_BE = vector_BE + self.lowres_noise(conditions.lowres_log_snr_B)
        if self.image_embedding is not None:
            tokens, more_BE = self.image_embedding(conditions.image_embedding_BE, batch)
            vector_BE = vector_BE + more_BE
            text_BTK, mask_BT = append_tokens(text_BTK, mask_BT, tokens)
        return functional.silu(vector_BE), text_BTK, mask_BT

    def _mask_keys(self, mask_BT: Tensor | None, patches: int) -> Tensor | None:
        """Returns the mask (B, 1, 1, keys) of caption tokens; for joint attention all patches come first.

        None without a mask: SDPA's fastest kernel.
        """
        if mask_BT is None:
            return None
        if self.config.attention == "joint":
            mask_BT = torch.cat([mask_BT.new_ones(mask_BT.shape[0], patches), mask_BT], dim=1)
        return mask_BT[:, None, None, :]

    def encode_text(self, conditions: Conditions) -> Conditions:
        """Returns the conditions with features of the text in its place, see `TextEncodingDenoiser`."""
        return self.text.encode(conditions)

    def enable_recompute(self) -> None:
        """From now on keeps only the input of each block for the backward pass and recomputes the rest there."""
        self.recompute = True

    def _check_inputs(self, x_BCHW: Tensor, conditions: Conditions) -> None:
        check_conditions(conditions, SUPPORTED_CONDITIONS, "dit")
        multiple, size = self.config.size_multiple(), tuple(x_BCHW.shape[2:])
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"image of {size} pixels; height and width must be multiples of {multiple}")
        if conditions.text_BLD is None and conditions.encoded_text_BTC is None:
            raise ValueError("the DiT needs text_BLD")
        if self.config.lowres and (conditions.lowres_BCHW is None or conditions.lowres_log_snr_B is None):
            raise ValueError("a super-resolution DiT needs lowres_BCHW and lowres_log_snr_B")
        if not self.config.lowres and conditions.lowres_BCHW is not None:
            raise ValueError("this DiT takes no low-resolution image; set lowres: true in its config")
        if not self.config.image_embedding_dim and conditions.image_embedding_BE is not None:
            raise ValueError("this DiT takes no image embedding; set image_embedding_dim to its width in the config")

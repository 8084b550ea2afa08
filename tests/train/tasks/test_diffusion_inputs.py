"""What `DiffusionTask` gives its network in training, recorded by a stub: noise, dropped captions, the small image."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.recording import (
    RecordingDenoiser,
    assert_standard_normal,
    correlation,
    find_noise,
    resize_bilinear,
)
from train.diffusion.config import DiffusionConfig
from train.diffusion.likelihood import bound_levels
from train.diffusion.objective import log_snr_at_level, log_snr_at_time
from train.loader.feed import to_device
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom
from train.models.base import Conditions
from train.tasks.diffusion import GRID_STEPS, DiffusionTask, hide_tokens
from train.tasks.diffusion_config import DiffusionStageConfig

ROWS, SIDE, LOW = 2000, 16, 4
META = torch.device("meta")
PLAIN_SR: dict[str, Any] = {"model": "micro-sr", "model_overrides": {"lowres_residual": False}, "low_resolution": LOW}


@cache
def make_batch() -> Batch:
    """A batch of noise images; the small ones have nothing to do with the large ones."""
    generator = torch.Generator().manual_seed(7)

    def pixels(side: int) -> Tensor:
        return torch.randint(0, 256, (ROWS, side, side, 3), generator=generator).byte()

    return {
        f"pixels_{SIDE}": pixels(SIDE),
        f"pixels_{LOW}": pixels(LOW),
        "text_BLD": torch.randn(ROWS, 3, 8, generator=generator),
        "text_mask_BL": torch.rand(ROWS, 3, generator=generator) < 0.7,
    }


def scaled(pixels_BHWC: Tensor) -> Tensor:
    """uint8 to [-1, 1], channels second."""
    return pixels_BHWC.permute(0, 3, 1, 2).double().div(127.5).sub(1).float()


def observe(
    method: str = "loss", step: int = 3, **changes: Any
) -> tuple[DiffusionTask, Tensor, Tensor, Conditions, dict[str, Tensor]]:
    """Runs `DiffusionTask.loss` on the stub: the task, what the network saw, and the result by name."""
    settings: dict[str, Any] = {"resolution": SIDE, "model": "micro-base"} | changes
    task = DiffusionTask(DiffusionStageConfig(**settings), text_dim=8)
    model = RecordingDenoiser()
    loss, metrics = getattr(task, method)(model, make_batch(), SampleRandom(0, step, range(ROWS)))
    assert len(model.calls) == 1
    return task, *model.calls[0], {"loss": loss, **metrics}


@pytest.mark.parametrize("method", ["loss", "validate"])
@pytest.mark.parametrize("drop", [0.0, 0.1, 0.7])
def test_captions_are_kept_except_a_share_of_text_drop(method: str, drop: float) -> None:
    _, _, log_snr, conditions, _ = observe(method, text_drop=drop)
    assert conditions.text_keep_B is not None and conditions.text_keep_B.dtype == torch.bool
    dropped = 1 - float(conditions.text_keep_B.float().mean())
    assert abs(dropped - drop) < 4 * (drop * (1 - drop) / ROWS) ** 0.5 + 1e-9
    assert conditions.text_BLD is make_batch()["text_BLD"] and conditions.text_mask_BL is make_batch()["text_mask_BL"]
    if drop:
        assert correlation(conditions.text_keep_B.float(), log_snr) < 0.1


def test_the_dropped_captions_differ_between_steps() -> None:
    keeps = [observe(step=step)[3].text_keep_B for step in (3, 4)]
    assert not torch.equal(*keeps)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_tokens_are_hidden_by_a_share_of_token_drop(share: float) -> None:
    conditions, given = observe(token_drop=share)[3], make_batch()["text_mask_BL"]
    assert conditions.text_mask_BL is not None and conditions.text_BLD is make_batch()["text_BLD"]
    assert not (conditions.text_mask_BL & ~given).any()  # padding stays padding
    hidden = 1 - float(conditions.text_mask_BL.sum() / given.sum())
    assert abs(hidden - share) < 4 * (share * (1 - share) / int(given.sum())) ** 0.5


def test_hidden_tokens_do_not_depend_on_padding() -> None:
    random = SampleRandom(0, 3, range(50))
    short, long = (hide_tokens(torch.ones(50, length, dtype=torch.bool), random, 0.5) for length in (7, 40))
    assert torch.equal(short, long[:, :7]) and 0.4 < float(long.float().mean()) < 0.6


def test_the_first_updates_have_images_of_half_the_size() -> None:
    _, x, log_snr, _, _ = observe(step=3, half_size_steps=4)
    clean = scaled(make_batch()[f"pixels_{SIDE}"])
    halved = clean.unflatten(2, (SIDE // 2, 2)).unflatten(4, (SIDE // 2, 2)).mean((3, 5))
    assert_standard_normal(find_noise(x, halved, log_snr))
    for step in (4, -1):  # afterwards, and in validation
        assert observe(step=step, half_size_steps=4)[1].shape[-2:] == (SIDE, SIDE)


def test_the_noisy_image_has_the_noise_that_is_told() -> None:
    task, x, log_snr, _, results = observe()
    clean = scaled(make_batch()[f"pixels_{SIDE}"])
    noise = find_noise(x, clean, log_snr)
    assert_standard_normal(noise)
    # Times are uniform over [0, 1), so the quantiles of log-SNR are those of the schedule.
    even, ends = log_snr_at_time(task.config.diffusion, (torch.arange(ROWS) + 0.5) / ROWS), slice(20, -20)
    torch.testing.assert_close(log_snr.sort().values[ends], even.sort().values[ends], atol=0.1, rtol=0)
    # The stub predicts v = 0: the loss is the mean square of v, and x_0 is guessed as alpha x.
    alpha, sigma = (part.double().sigmoid().sqrt()[:, None, None, None] for part in (log_snr, -log_snr))
    assert float(results["loss"]) == pytest.approx(float((alpha * noise - sigma * clean).square().mean()), rel=1e-4)
    error = ((alpha * x).clamp(-1, 1) - clean).square().mean()
    assert float(results["x0_mse"]) == pytest.approx(float(error), rel=1e-4)


def test_validation_splits_the_loss_by_the_noise() -> None:
    _, x, log_snr, _, results = observe("validate")
    pairs = torch.stack([results[f"loss_noise_{quarter}of4"] for quarter in (1, 2, 3, 4)])
    counts = pairs[:, 1].long().tolist()
    assert sum(counts) == ROWS and all(abs(count - ROWS / 4) <= 2 for count in counts)
    clean = scaled(make_batch()[f"pixels_{SIDE}"])
    alpha, sigma = (part.double().sigmoid().sqrt()[:, None, None, None] for part in (log_snr, -log_snr))
    loss_B = (alpha * find_noise(x, clean, log_snr) - sigma * clean).square().mean(dim=(1, 2, 3))
    least_noise_first = loss_B[log_snr.argsort(descending=True)].split(counts)
    by_noise = torch.stack([losses.sum() for losses in least_noise_first])
    torch.testing.assert_close(pairs[:, 0].double(), by_noise, rtol=1e-4, atol=0)
    assert float(results["loss"]) == pytest.approx(float(loss_B.mean()), rel=1e-4)


@pytest.mark.parametrize("method", ["loss", "validate"])
@pytest.mark.parametrize("changes", [{}, {"lowres_max_level": 0.4}, {"lowres_schedule": "linear"}], ids=str)
def test_the_small_image_has_the_noise_that_is_told(method: str, changes: dict[str, Any]) -> None:
    task, x, log_snr, conditions, _ = observe(method, diffusion=changes, **PLAIN_SR)
    told, given = conditions.lowres_log_snr_B, conditions.lowres_BCHW
    assert told is not None and given is not None
    resized = resize_bilinear(scaled(make_batch()[f"pixels_{LOW}"]), SIDE)
    # Without the images of next to no noise, where rounding is divided by sigma.
    some = told < 8
    assert float(some.float().mean()) > 0.9
    noise = find_noise(given, resized, told)[some]
    assert_standard_normal(noise)
    # Levels are uniform up to the largest, and independent of time, image noise and caption.
    config = task.config.diffusion
    even = log_snr_at_level(config, (torch.arange(ROWS) + 0.5) / ROWS * config.lowres_max_level)
    quarters = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(told.quantile(quarters), even.quantile(quarters), atol=0.4, rtol=0.05)
    assert float(told.min()) >= float(even.min()) - 0.3
    image_noise = find_noise(x, scaled(make_batch()[f"pixels_{SIDE}"]), log_snr)[some]
    assert correlation(noise, image_noise) < 0.01
    assert conditions.text_keep_B is not None
    assert correlation(told, log_snr) < 0.1 and correlation(told, conditions.text_keep_B.float()) < 0.1


def test_the_small_image_without_noise_is_resized_bilinearly() -> None:
    _, _, _, conditions, _ = observe(diffusion={"lowres_max_level": 0.0}, **PLAIN_SR)
    resized = resize_bilinear(scaled(make_batch()[f"pixels_{LOW}"]), SIDE)
    given, told = conditions.lowres_BCHW, conditions.lowres_log_snr_B
    assert given is not None and told is not None
    sigma, alpha = float((-told[0]).sigmoid().sqrt()), told.sigmoid().sqrt()
    assert sigma < 0.02 and torch.equal(told, told[:1].expand(ROWS))
    assert float((given - alpha[:, None, None, None] * resized).abs().max()) < 6 * sigma
    assert float((given - resized).abs().mean()) < 2 * sigma


def test_a_base_stage_gets_no_small_image() -> None:
    conditions = observe()[3]
    assert conditions.given() == {"text_BLD", "text_mask_BL", "text_keep_B"}


def test_a_grid_has_the_captions_and_images_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    task = DiffusionTask(
        DiffusionStageConfig(resolution=SIDE, diffusion=DiffusionConfig(prediction="x0"), **PLAIN_SR), text_dim=8
    )
    model = RecordingDenoiser()
    monkeypatch.setattr(task, "build", lambda: model)
    batch = {name: value[:4] for name, value in make_batch().items()} | {
        "index": torch.arange(4),
        "index_B": torch.arange(4),
    }
    grid = task.sample_grid({}, batch, 0)
    assert grid.shape == (2 * SIDE, 4 * SIDE, 3) and len(model.calls) == GRID_STEPS
    assert (grid[:SIDE] == 128).all()  # the stub predicts grey
    for column in range(4):
        true = batch[f"pixels_{SIDE}"][column].numpy()
        assert (grid[SIDE:, column * SIDE : (column + 1) * SIDE] == true).all()
    resized = resize_bilinear(scaled(batch[f"pixels_{LOW}"]), SIDE)
    for _, _, conditions in model.calls:
        assert conditions.text_keep_B is not None and conditions.text_keep_B.all()
        for name in ("text_BLD", "text_mask_BL"):
            assert torch.equal(getattr(conditions, name), batch[name])
        assert conditions.lowres_BCHW is not None and conditions.lowres_log_snr_B is not None
        noise = find_noise(conditions.lowres_BCHW, resized, conditions.lowres_log_snr_B)
        assert_standard_normal(noise, tolerance=0.1)
    assert float(model.calls[0][1][0]) < -8 and all(
        float(one[1][0]) < float(other[1][0]) for one, other in zip(model.calls, model.calls[1:], strict=False)
    )


def on_meta() -> Batch:
    """The batch without data: an operation of its tensors with others of a CPU raises, as it does on a GPU."""
    return to_device({name: value[:4] for name, value in make_batch().items()} | {"index": torch.arange(4)}, META)


@pytest.mark.parametrize("changes", [{}, PLAIN_SR], ids=["base", "sr"])
def test_everything_is_computed_where_the_batch_lies(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"resolution": SIDE, "model": "micro-base"} | changes
    task, model = DiffusionTask(DiffusionStageConfig(**settings), text_dim=8), RecordingDenoiser()
    for compute in (task.loss, task.validate):
        loss, metrics = compute(model, on_meta(), SampleRandom.of_batch(0, 0, on_meta()))
        assert loss.is_meta and all(value.is_meta for value in metrics.values())
    monkeypatch.setattr(task, "build", lambda: model)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # only the finished grid
        task.sample_grid({}, on_meta(), 0)
    assert len(model.calls) == 2 + GRID_STEPS
    for x, log_snr, conditions in model.calls:
        given = [x, log_snr, *(getattr(conditions, name) for name in conditions.given())]
        assert all(value.is_meta for value in given)


@pytest.mark.parametrize("method", ["loss", "validate"])
@pytest.mark.parametrize("changes", [{}, PLAIN_SR], ids=["base", "sr"])
def test_a_prepared_batch_has_the_same_loss(method: str, changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"resolution": SIDE, "model": "micro-base"} | changes
    task, model = DiffusionTask(DiffusionStageConfig(**settings), text_dim=8), RecordingDenoiser()
    random = SampleRandom(0, 3, range(ROWS))
    prepared = task.prepare(make_batch(), random)
    found = [getattr(task, method)(model, batch, random) for batch in (make_batch(), prepared)]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
    assert torch.equal(model.calls[0][0], model.calls[1][0]) and model.calls[1][0] is prepared["inputs"].noised.x_BCHW


@pytest.mark.parametrize("method", ["loss", "validate"])
def test_a_flow_stage_is_trained_on_the_linear_path(method: str) -> None:
    task, x, at, _, _ = observe(method, diffusion=DiffusionConfig(schedule="flow", prediction="velocity"))
    t = (at / -2).sigmoid().view(-1, 1, 1, 1)
    noise = (x - (1 - t) * scaled(make_batch()[task.columns[0]])) / t
    assert_standard_normal(noise[t.flatten() > 0.2])


def test_a_flow_stage_draws_its_grid_along_the_linear_path(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = DiffusionConfig(schedule="flow", prediction="x0")
    task = DiffusionTask(DiffusionStageConfig(resolution=SIDE, model="micro-base", diffusion=diffusion), text_dim=8)
    model = RecordingDenoiser()
    monkeypatch.setattr(task, "build", lambda: model)
    numbers = {"index": torch.arange(4), "index_B": torch.arange(4)}
    task.sample_grid({}, {name: value[:4] for name, value in make_batch().items()} | numbers, 0)
    # The stub predicts 0, so z_t = t eps all the way, with one eps.
    first, *others = [x / (at / -2).sigmoid().view(-1, 1, 1, 1) for x, at, _ in model.calls]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-3)


class PixelDenoiser(RecordingDenoiser):
    """Predicts x_0 of data that is uniform on [-1, 1], roughly: the noisy image over its scale, as far as it tells."""

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        super().forward(x_BCHW, log_snr_B, conditions)
        variance, alpha2 = 1 / 3, log_snr_B.sigmoid().view(-1, 1, 1, 1)
        return x_BCHW * alpha2.sqrt() * variance / (alpha2 * variance + 1 - alpha2)


def test_validation_with_elbo_measures_the_bits_of_the_pixels() -> None:
    """Pixels are uniform over 256 values: 8 bits, of which a normal model of the same variance takes 0.25 more."""
    diffusion = DiffusionConfig(prediction="x0", weighting="elbo", log_snr_shift=2.0)
    task = DiffusionTask(DiffusionStageConfig(resolution=SIDE, model="micro-base", diffusion=diffusion), text_dim=8)
    model = PixelDenoiser()
    loss, metrics = task.validate(model, make_batch(), SampleRandom(0, -1, range(ROWS)))
    bits = {name.removeprefix("bits_"): float(value) for name, value in metrics.items() if name.startswith("bits_")}
    by_noise = [bits[f"noise_{quarter}of4"] for quarter in (1, 2, 3, 4)]
    assert sum(by_noise) == pytest.approx(float(loss) / math.log(2), rel=1e-4)
    assert bits["per_dim"] == pytest.approx(sum(by_noise) + bits["prior"] + bits["reconstruction"], rel=1e-4)
    assert 8.25 < bits["per_dim"] < 8.35 and 0 <= bits["prior"] < 1e-3
    # The second call is at the end of the bound, for the reconstruction.
    clean, (x, at, conditions) = scaled(make_batch()[task.columns[0]]), model.calls[1]
    assert set(at.tolist()) == {bound_levels(diffusion).most}
    assert_standard_normal(find_noise(x, clean, at))
    assert torch.equal(conditions.text_keep_B, model.calls[0][2].text_keep_B)  # type: ignore[arg-type]


def test_other_weightings_measure_no_bits() -> None:
    assert not [name for name in observe("validate")[4] if name.startswith("bits_")]

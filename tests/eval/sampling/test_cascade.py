"""The cascade: the same image in any batch, chained stages, options, and a refusal of each broken part."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.io.errors import UserError
from eval.captioning.config import ExpandConfig
from eval.captioning.prompt_expander import PromptExpander
from eval.clip.scorer import ClipScorer
from eval.sampling import loading, stage_sampler
from eval.sampling.cascade import Cascade
from eval.sampling.config import read_cascade, write_cascade
from eval.sampling.watermark import has_watermark
from tests.helpers.cascades import BASE, DIT_BASE, DIT_SR, SR, WordEncoder, difference, export, trained
from tests.helpers.dits import dit_config
from tests.helpers.unets import unet_config
from train.diffusion.config import DiffusionConfig
from train.models.base import DenoiserConfig
from train.models.export import save_stage
from train.models.refiner.config import PRESETS

IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 20, 3), np.uint8))
REFINER = PRESETS["refiner-micro"].model_copy(update={"text_dim": 8})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the text encoder by the word encoder; returns the folders that were loaded."""
    asked: list[str] = []

    class Loader:
        @staticmethod
        def from_folder(path: str, dtype: str, max_length: int, device: str, **options: bool) -> WordEncoder:
            asked.append(path)
            return WordEncoder()

    monkeypatch.setattr(loading, "TextEncoder", Loader)
    return asked


def test_images_sizes_and_order(folder: Path, encoder: list[str]) -> None:
    cascade = Cascade.from_pretrained(folder)
    assert encoder == [str(folder / "encoder")]
    samples = cascade(["a cat", "two dogs"], num=2)
    assert [image.size for image in samples.images] == [(16, 16)] * 4
    assert samples.prompts == ["a cat", "a cat", "two dogs", "two dogs"] and samples.indices == [0, 1, 0, 1]
    assert cascade("a cat", stop_at="base").images[0].size == (8, 8)


def test_a_cascade_of_transformers_samples_as_one_of_u_nets(tmp_path: Path, encoder: list[str]) -> None:
    cascade = Cascade.from_pretrained(export(tmp_path, DIT_BASE, DIT_SR))
    samples = cascade(["a cat", "two big dogs in the rain"], num=2, seed=7, size=(24, 16))
    assert [image.size for image in samples.images] == [(24, 16)] * 4
    alone = cascade("two big dogs in the rain", num=2, seed=7, size=(24, 16), batch_size=1)
    assert difference(samples.images[3], alone.images[1]) <= 2 < difference(samples.images[3], samples.images[1])
    mask = Image.new("L", IMAGE.size)
    mask.paste(255, (4, 4, 12, 12))
    for edit in ({"strength": 0.5}, {"mask": mask}):
        assert cascade("a cat", image=IMAGE, **edit).images[0].size == (16, 16)
    with pytest.raises(UserError, match="size 20x16: sides must be multiples of 8"):
        cascade("a cat", size=(20, 16))


def test_the_low_resolution_input_is_noised_no_more_than_in_training(
    folder: Path, encoder: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels, real = [], stage_sampler.augment_lowres

    def noted(lowres: Any, level: Any, *rest: Any) -> Any:
        levels.append(float(level[0]))
        return real(lowres, level, *rest)

    monkeypatch.setattr(stage_sampler, "augment_lowres", noted)
    cascade = Cascade.from_pretrained(folder)
    cascade("a cat", lowres_level=0.3)
    trained_to = [stage.diffusion.model_copy(update={"lowres_max_level": 0.05}) for stage in cascade.stages]
    shallow = [replace(stage, diffusion=to) for stage, to in zip(cascade.stages, trained_to, strict=True)]
    Cascade(shallow, cascade.encoder)("a cat", lowres_level=0.3)
    assert levels == pytest.approx([0.3, 0.05])


def test_same_image_in_any_batch(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    together = cascade(["a cat", "two big dogs in the rain", "a cat"], num=3, seed=7)
    alone = cascade("two big dogs in the rain", num=2, seed=7, batch_size=1)
    assert difference(together.images[3], alone.images[0]) <= 1
    assert difference(together.images[4], alone.images[1]) <= 1
    assert difference(together.images[0], together.images[6]) <= 1
    assert difference(together.images[0], together.images[1]) > 8
    assert difference(together.images[0], together.images[3]) > 8
    assert difference(together.images[0], cascade("a cat", seed=8).images[0]) > 8
    again = cascade(["a cat", "two big dogs in the rain", "a cat"], num=3, seed=7)
    assert all(difference(a, b) == 0 for a, b in zip(together.images, again.images, strict=True))


def test_the_call_overrides_defaults(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    plain = cascade("a cat").images[0]
    assert difference(plain, cascade("a cat", guidance={"sr": 2.0}, steps={"base": 3}).images[0]) == 0
    assert difference(plain, cascade("a cat", guidance={"base": 5.0}).images[0]) > 0
    assert difference(plain, cascade("a cat", steps=5).images[0]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"num": 0}, "num 0 is too small"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"stop_at": "sr9"}, "stop_at 'sr9' is not a stage; take one of base, sr"),
        ({"guidance": {"sr9": 2.0}}, "stage 'sr9' is unknown; take one of base, sr"),
        ({"steps": 0}, "steps 0: .*greater than or equal to 1"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"best_of": 0}, "best_of 0 is too small"),
        ({"best_of": 2}, "clip: this cascade has none, by which best_of chooses"),
        ({"guidence": 2.0}, r"setting 'guidence' is unknown; did you mean guidance\?"),
        ({"colour": 2.0}, "setting 'colour' is unknown; take one of guidance, "),
        ({"sampler": "euler"}, "sampler euler: "),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval \[0.5, 0.2\] is no interval"),
        ({"start_at": "sr"}, "start_at 'sr' enlarges an image; give it as image"),
        ({"start_at": "sr", "stop_at": "base"}, "start_at 'sr' comes after stop_at 'base'"),
        ({"mask": IMAGE}, "mask is given without an image"),
        ({"mask": IMAGE, "image": IMAGE, "start_at": "sr"}, "inpainting begins with the base; leave out start_at"),
        ({"size": (18, 16)}, "size 18x16: sides must be multiples of 4 at stage sr; take 16x16"),
        ({"image": IMAGE, "strength": 0.0}, "strength 0.0"),
        ({"prompts": "1 2 3 4 5 6 7 8 9 10 11 12", "overlong": "refuse"}, "does not read its end, '11 12'; shorten it"),
    ],
)
def test_wrong_calls(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cascade.from_pretrained(folder)(**({"prompts": "a cat"} | options))  # type: ignore[arg-type]


def test_each_setting_of_a_stage_counts(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    plain = cascade("a cat").images[0]
    for settings in (
        {"sampler": "unipc"},
        {"sampler": {"base": "ddpm"}},
        {"guidance_rescale": 0.7},
        {"guidance_interval": (0.4, 0.6)},
        {"spacing": "karras"},
        {"threshold": "none", "guidance": 9.0},
        {"guidance_parallel": 0.0},
        {"guidance_norm": 0.01},
        {"guidance_momentum": -0.5},
        {"guidance_every": 2},
    ):
        assert difference(plain, cascade("a cat", **settings).images[0]) > 0, settings
    assert difference(plain, cascade("a cat", sampler=None, guidance={"sr": None}).images[0]) == 0


def test_negative_prompt_replaces_the_unconditional_prediction(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    plain = cascade("a cat", num=2).images
    against = cascade("a cat", num=2, negative="two big dogs in the rain").images
    assert difference(plain[0], against[0]) > 0
    # Away from the prompt itself there is no direction: guidance has no effect at any weight.
    # (With one threshold, since by default it depends on guidance.)
    same = cascade("a cat", negative="a cat", guidance=7.0, threshold="static").images
    none = cascade("a cat", guidance=1.0, threshold="static").images
    assert difference(same[0], none[0]) <= 1
    assert (
        difference(against[1], cascade("a cat", num=2, batch_size=1, negative="two big dogs in the rain").images[1])
        <= 1
    )


def add_guide(folder: Path, network: Any, diffusion: DiffusionConfig | None = None) -> Path:
    """Exports a cascade whose base is guided away from ``network``."""
    export(folder)
    settings = (diffusion or DiffusionConfig()).model_dump(mode="json")
    save_stage(folder / "weak", network, network.config, settings, trained_steps=1)
    config = read_cascade(folder)
    base = config.stages[0].model_copy(update={"guide": "weak"})
    write_cascade(folder, config.model_copy(update={"stages": [base, config.stages[1]]}))
    return folder


def test_guidance_goes_away_from_a_weaker_network(folder: Path, tmp_path: Path) -> None:
    weak = trained(BASE)
    torch.nn.init.normal_(weak.out.weight, generator=torch.Generator().manual_seed(4))
    guided = Cascade.from_pretrained(add_guide(tmp_path / "weak", weak))
    plain = Cascade.from_pretrained(folder)
    images = [cascade("a cat", stop_at="base").images[0] for cascade in (plain, guided)]
    assert difference(*images) > 0 and plain.digest != guided.digest
    for options in ({"guidance": 1.0}, {"autoguidance": False}):  # then it has no part in the images
        same = [cascade("a cat", stop_at="base", **options).images[0] for cascade in (plain, guided)]
        assert difference(*same) == 0
    # Away from the network itself there is no direction: guidance has no effect at any weight.
    itself = Cascade.from_pretrained(add_guide(tmp_path / "same", trained(BASE)))
    # (With one threshold, since by default it depends on guidance.)
    alone = plain("a cat", stop_at="base", guidance=1.0, threshold="static").images[0]
    assert difference(itself("a cat", stop_at="base", guidance=7.0, threshold="static").images[0], alone) <= 1
    with pytest.raises(UserError, match="negative prompt: stage base is guided away from a weaker network instead"):
        guided("a cat", negative="a dog")
    guided("a cat", negative="a dog", autoguidance=False)


@pytest.mark.parametrize(
    ("network", "diffusion", "message"),
    [
        (BASE, DiffusionConfig(prediction="eps"), "has diffusion.prediction eps, the stage v"),
        (BASE, DiffusionConfig(schedule="flow"), "has diffusion.schedule flow, the stage cosine"),
        (unet_config("micro-base", text_dim=9), None, "has text_dim 9, the stage 8"),
        (SR, None, "has lowres True, the stage False"),
        (REFINER, None, "has task refinement, the stage diffusion"),
        (unet_config("micro-base", text_dim=8, image_embedding_dim=4), None, "has image_embedding_dim 4, the stage 0"),
        (unet_config("micro-base", text_dim=8, learned_variance=True), None, "has output_channels 6, the stage 3"),
        (dit_config("dit-micro-base", text_dim=8, patch=16), None, "takes sizes that are multiples of 16, the stage"),
    ],
)
def test_a_weaker_network_of_another_kind_is_refused(
    tmp_path: Path, network: DenoiserConfig, diffusion: DiffusionConfig | None, message: str
) -> None:
    with pytest.raises(UserError, match=f"stage base: guide .*weak: {message}"):
        Cascade.from_pretrained(add_guide(tmp_path / "c", trained(network), diffusion))


def test_sizes_of_every_stage(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade("a cat", size=(24, 16))
    assert samples.images[0].size == (24, 16) and samples.by_stage["base"][0].size == (12, 8)
    wide = IMAGE.resize((60, 20))
    assert cascade("a cat", image=wide).images[0].size == (28, 8)


def test_image_to_image_keeps_more_at_less_strength(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    apart = []
    for strength in (0.05, 0.6, 1.0):
        sampled = cascade("a cat", image=IMAGE, strength=strength, steps=20, stop_at="base").images[0]
        small = np.asarray(IMAGE.resize((8, 8), Image.Resampling.BOX), float)
        apart.append(float(np.abs(np.asarray(sampled, float) - small).mean()))
    assert apart[0] < apart[1] < apart[2] and apart[0] < 20
    plain = cascade("a cat", image=IMAGE, stop_at="base").images[0]  # its strength is not 1: the image counts
    assert difference(plain, cascade("a cat", stop_at="base").images[0]) > 0


def test_inpainting_keeps_unmasked_pixels(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    given, mask = IMAGE.resize((16, 16)), Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    samples = cascade("a cat", image=given, mask=mask, num=2, seed=5)
    inside = np.asarray(mask) > 0
    for image in samples.images:
        changed = (np.asarray(image) != np.asarray(given)).any(axis=2)
        assert not changed[~inside].any() and changed[inside].mean() > 0.9
    small = np.asarray(given.resize((8, 8), Image.Resampling.BOX), int)
    base = np.asarray(samples.by_stage["base"][0], int)
    assert np.abs(base - small)[~inside[::2, ::2]].max() <= 1
    assert difference(samples.images[0], samples.images[1]) > 8
    again = cascade("a cat", image=given, mask=mask, num=2, seed=5, batch_size=1)
    assert difference(samples.images[1], again.images[1]) <= 1


def test_given_image_is_enlarged(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade("a cat", image=IMAGE, start_at="sr")
    assert list(samples.by_stage) == ["sr"] and samples.images[0].size == (16, 16)
    other = cascade("a cat", image=Image.new("RGB", (20, 20), "red"), start_at="sr").images[0]
    assert difference(samples.images[0], other) > 8


def test_overlong_prompts_are_cut_with_a_warning(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    with pytest.warns(UserWarning, match="too long: the text encoder does not read its end, 'eleven twelve'"):
        cut = cascade("1 2 3 4 5 6 7 8 9 10 eleven twelve").images[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascade("1 2 3 4 5 6 7 8 9 10")
    assert cut.size == (16, 16)


def test_clip_picks_the_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Brightest:
        def similarity(self, images: list[np.ndarray], prompts: list[str]) -> np.ndarray:
            return np.asarray([image.mean() / 255 for image in images], np.float32)

    monkeypatch.setattr(ClipScorer, "load", lambda spec, device: Brightest())
    loaded = Cascade.from_pretrained(folder)
    cascade = Cascade(loaded.stages, loaded.encoder, clip="clip")
    every = cascade(["a cat", "a dog"], num=6, seed=2)
    best = cascade(["a cat", "a dog"], num=2, seed=2, best_of=3)
    light = [np.asarray(image).mean() for image in every.images]
    wanted = [max(range(start, start + 3), key=lambda i: light[i]) for start in (0, 3, 6, 9)]
    assert [difference(best.images[i], every.images[number]) for i, number in enumerate(wanted)] == [0] * 4
    assert best.indices == [every.indices[number] for number in wanted]
    assert best.prompts == ["a cat", "a cat", "a dog", "a dog"] and len(best.by_stage["base"]) == 4
    assert best.scores is not None
    assert best.scores == pytest.approx([light[number] / 255 for number in wanted], abs=1e-5)
    assert best.info(1)["score"] == round(best.scores[1], 4)


class Spells:
    """Writes a prompt out as what it is told."""

    def __init__(self, **written: str) -> None:
        self.config, self.written = ExpandConfig(model="a model"), written

    def expand(self, prompts: Sequence[str]) -> dict[str, str]:
        return {prompt: self.written[prompt] for prompt in prompts if prompt in self.written}


def test_what_a_prompt_is_written_out_to_is_drawn_in_its_place(folder: Path) -> None:
    plain = Cascade.from_pretrained(folder)(["cat", "dog"], seed=4, negative="cat")
    cascade = Cascade.from_pretrained(folder)
    cascade.expander = cast(PromptExpander, Spells(cat="two big dogs in the rain"))
    samples = cascade(["cat", "dog"], seed=4, negative="cat")
    assert difference(samples.images[0], plain.images[0]) > 2
    assert difference(samples.images[1], plain.images[1]) == 0  # neither it nor the negative prompt is written out
    assert samples.prompts == ["cat", "dog"]
    info = samples.info(0)
    assert (info["prompt"], info["expanded"], info["expand"]) == ("cat", "two big dogs in the rain", "a model")
    assert "expanded" not in samples.info(1)
    assert info["model"] != plain.info(0)["model"]  # another folder of many prompts


def test_metadata_of_an_image(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade("a cat", num=2, seed=4, negative="a dog", steps={"sr": 2})
    info = samples.info(1)
    assert {key: info[key] for key in ("prompt", "negative", "seed", "index", "size", "score")} == {
        "prompt": "a cat", "negative": "a dog", "seed": 4, "index": 1, "size": [16, 16], "score": None,
    }  # fmt: skip
    assert info["settings"]["sr"]["steps"] == 2 and info["settings"]["base"]["steps"] == 3
    assert len(info["model"]) == 16 and info["watermark"] is None
    assert info["model"] == Cascade.from_pretrained(folder).digest
    other = Cascade(cascade.stages[:1], cascade.encoder)
    assert other.digest != cascade.digest


def test_images_carry_the_watermark_of_the_cascade(folder: Path) -> None:
    loaded = Cascade.from_pretrained(folder)
    cascade = Cascade(loaded.stages, loaded.encoder, watermark="imagen-ray")
    samples = cascade("a cat", size=(64, 32))
    assert has_watermark(np.asarray(samples.images[0]), "imagen-ray") and samples.info(0)["watermark"] == "imagen-ray"
    plain = loaded("a cat", size=(64, 32))
    assert not has_watermark(np.asarray(plain.images[0]), "imagen-ray")
    assert difference(plain.by_stage["base"][0], samples.by_stage["base"][0]) == 0
    small = cascade("a cat")  # 16 pixels are too few, and the metadata say so
    assert small.info(0)["watermark"] is None and difference(small.images[0], loaded("a cat").images[0]) == 0


def test_broken_cascades_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Cascade.from_pretrained(tmp_path)

    refused("has no cascade.json")
    export(tmp_path)
    whole = json.loads((tmp_path / "cascade.json").read_text())

    def rewrite(change: dict[str, object], stage: int | None = None) -> None:
        value = json.loads(json.dumps(whole))
        (value if stage is None else value["stages"][stage]).update(change)
        (tmp_path / "cascade.json").write_text(json.dumps(value))

    rewrite({"stages": []})
    refused("stages is empty")
    rewrite({"low_resolution": 4}, stage=1)
    refused("stage sr: low_resolution is 4; it must be 8")
    rewrite({"colour": 4}, stage=1)
    refused("cascade.json: .*Extra inputs are not permitted")
    (tmp_path / "cascade.json").write_text("[")
    refused("cascade.json: .*export again")
    rewrite({"path": "sr"}, stage=0)
    refused("stage base: low_resolution None does not fit its network")
    rewrite({"resolution": 18}, stage=1)
    refused("resolution 18 is not a multiple of 4")
    rewrite({})
    save_stage(tmp_path / "sr", trained(SR), SR, {"schedule": "sine"}, 5)
    refused("stage sr: diffusion settings: ")
    save_stage(tmp_path / "sr", trained(SR), SR, {}, 5)
    monkeypatch.setattr(WordEncoder, "dim", 9)
    refused("encoder .*encoder: width 9, stage base was trained on width 8")

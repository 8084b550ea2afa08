"""Values that a config accepts, and one helpful line for those it does not."""

from __future__ import annotations

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from tests.helpers.paths import ROOT
from tests.helpers.priors import WITH_PRIOR
from train.tasks.distillation_config import DistillationTrainingConfig

SMOKE = str(ROOT / "configs" / "smoke.yaml")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_config_is_valid(name: str) -> None:
    assert load_config(str(ROOT / "configs" / name)).train


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("select.min_side=big", ["select.min_side='big'", "valid integer"]),
        ("select.max_aspect=0.5", ["select.max_aspect=0.5", "greater than or equal to 1"]),
        ("select.min_side=1.5", ["select.min_side=1.5", "integer"]),
        ("seed=-1", ["seed=-1"]),
        ("encoder.model=google/t5-v1_1-small", ["encoder", "exactly one"]),
        ("clip.min_similarity=2", ["clip.min_similarity=2"]),
        ("pack.resolutions=[16]", ["pack.resolutions=[16]", "train.sr32 needs 32"]),
        ("pack.aspects=[4:3, 4:3]", ["pack", "'4:3' is not a ratio or occurs twice"]),
        ("pack.aspects=[wide]", ["pack", "'wide' is not a ratio"]),
        ("pack.aspects=[1:1, 4:3]", ["4:3 and 1:1 are both 16x16 at resolution 16", "lower aspect_multiple"]),
        ("train.sr32.low_resolution=8", ["train.sr32.low_resolution=8", "set it to 16"]),
        ("sample.stages.sr1024.steps=3", ["sr1024", "base, sr32, sr64"]),
        ("sample.evaluate_at=top", ["top", "base, sr32, sr64"]),
        ("evaluate.sweep.stage=top", ["top", "base, sr32, sr64"]),
        ("evaluate.subsample=3", ["evaluate.subsample=3"]),
        ("train.base.model=big", ["train.base", "big", "micro-base"]),
        ("listing.source=table", ["listing", "path"]),
        ("train={}", ["train", "at least one stage"]),
        ("train.base.model=micro-if", ["diffusion.schedule=cosine", "has learned discrete"]),
        (
            "train.base={resolution: 16, model: micro-if, diffusion: {schedule: discrete}}",
            ["embed.pad=false", "embed.max_length=", "micro-if of train.base reads 77 tokens", "set pad to true"],
        ),
        ("pack.blur_faces=0.3", ["pack.blur_faces=0.3", "set annotate.faces"]),
        ("annotate.faces={detector: yunet}", ["annotate.faces", "detector=yunet needs model"]),
        ("annotate.text={}", ["annotate.text.model", "missing"]),
        ("score.labels={medium: [a photo]}", ["score.labels", "medium", "two or more different labels"]),
        ("score.labels={medium: [a photo, a photo]}", ["score.labels", "medium", "two or more different labels"]),
        ("score.labels={Medium: [a photo, a map]}", ["score.labels", "'Medium'", "lower-case letters"]),
        ("cluster.ranks=3", ["train.base.batch_size=8", "cluster.ranks=3"]),
        ("cluster.stages.train.ranks=3", ["train.base.batch_size=8", "cluster.stages: ranks=3"]),
        ("train.base.accumulation=3", ["train.base", "batch_size=8", "accumulation=3"]),
        ("sample.guides.top=runs/x", ["top", "base, sr32, sr64"]),
        ("sample.fit={stages: [top]}", ["top", "base, sr32, sr64"]),
        ("sample.fit={stages: []}", ["sample.fit.stages"]),
        ("sample.fit={stages: [base], levels: 2}", ["sample.fit.levels=2", "stages.base.steps=3", "set levels to"]),
        ("train.base.task=distillation", ["train.base.distillation: missing; add it"]),
        ("train.base.distillation={teacher: x}", ["train.base.distillation", "unknown key"]),
    ],
)
def test_a_wrong_value_gives_one_line_that_helps(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(SMOKE, [override])
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


DISTILLED = ["train.base.task=distillation", "train.base.distillation={teacher: runs/other, steps: 2}"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.stages.base={steps: 3}", r"sample.stages.base.steps=3: train.base is distilled, and brings its own"),
        ("sample.stages.base={guidance: 2.0}", r"sample.stages.base.guidance=2.0: train.base is distilled"),
        ("evaluate.sweep={steps: [2]}", r"evaluate.sweep.stage=base: train.base is distilled, so it has one setting"),
        ("evaluate.likelihood={}", r"evaluate.likelihood: train.base is distilled, so .* no likelihood; leave it out"),
        ("sample.fit={stages: [base]}", r"sample.fit.stages: base has noise levels of its own"),
    ],
)
def test_a_distilled_stage_takes_no_other_settings(override: str, message: str) -> None:
    plain = [*DISTILLED, "sample.stages.base={}"]
    config = load_config(SMOKE, [*plain, "sample.stages.base.lowres_level=0.2"])
    assert isinstance(config.train["base"], DistillationTrainingConfig)
    with pytest.raises(UserError, match=message):
        load_config(SMOKE, [*plain, override])


def test_a_bucket_that_a_stage_cannot_train_on_is_named() -> None:
    buckets = ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=3"]
    with pytest.raises(
        UserError, match=r"1:1 is 15x15 .*train.base.model=micro-base needs multiples of 2; set .* of 2"
    ):
        load_config(SMOKE, buckets)
    with pytest.raises(UserError, match=r"4:3 is 64x48 at resolution 64, and train.sr64.crop=64; take a smaller crop"):
        load_config(SMOKE, ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=4", "train.sr64.crop=64"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.base.half_size_steps=4"],
            r"train.base.half_size_steps=4 needs multiples of 4; set .* a multiple of 4",
        ),
        (
            ["train.vq32={task: vq, resolution: 32, model: vq-micro, adversarial: {}}"],
            r"4:3 is 36x28 at resolution 32, and train.vq32.adversarial.detail=8 needs multiples of 8; set .* of 4",
        ),
        (
            [
                "train.sr32.diffusion={prediction: x0, lowres_max_level: 0.3}",
                "train.sr32.model_overrides={lowres_residual: false}",
                "train.sr32.adversarial={}",
            ],
            r"train.sr32.adversarial.detail=8 needs multiples of 8",
        ),
    ],
)
def test_a_bucket_that_a_part_of_a_training_cannot_take_is_named(overrides: list[str], message: str) -> None:
    buckets = ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=2"]
    load_config(SMOKE, buckets)
    load_config(SMOKE, [buckets[0], "pack.aspect_multiple=4", *overrides])
    with pytest.raises(UserError, match=message):
        load_config(SMOKE, [*buckets, *overrides])


@pytest.mark.parametrize("name", ["imagen.yaml", "laion.yaml", "small_team.yaml"])
def test_configs_for_gpus_spend_no_compute_or_quality_for_nothing(name: str) -> None:
    config = load_config(str(ROOT / "configs" / name))
    assert (config.embed.dtype, config.embed.codec) == ("bfloat16", "int8")
    assert config.pack.raw_up_to == config.cascade()["base"].resolution  # the base does not learn from JPEGs
    assert not any(stage.activation_checkpointing for stage in config.train.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.prior=null"], "train.base.image_embedding=true: nothing predicts the embedding of an image"),
        (["train.base.image_embedding=false"], "train.prior: no stage takes its image embeddings; set image_embedding"),
        (["train.more={task: prior, model: prior-micro}"], "train.more: a cascade has one prior, which train.prior is"),
        (["pack.features=[clip_embedding]"], "train.prior reads clip_text_embedding; add it"),
        (["pack.features=[clip_text_embedding]"], "train.base reads clip_embedding; add it"),
        (["score.text_embeddings=false"], "score does not keep clip_text_embedding; set score.text_embeddings to true"),
        (["sample.evaluate_at=prior"], "there is no cascade stage 'prior'; the stages are base, sr32, sr64"),
        (["train.prior.task=vae"], "task=vae is unknown; take one of diffusion, distillation, prior"),
        (["train.prior.stepss=3"], "train.prior.stepss=3: unknown key; did you mean steps?"),
        (["train.prior.steps=many"], "train.prior.steps='many': input should be a valid integer"),
    ],
)
def test_parts_of_a_cascade_with_a_prior_that_do_not_fit_are_named(overrides: list[str], words: str) -> None:
    assert list(load_config(SMOKE, WITH_PRIOR).denoisers()) == ["base", "sr32", "sr64", "prior"]
    overrides = [item for item in WITH_PRIOR if item.partition("=")[0] not in (overrides[0].partition("=")[0],)] + (
        [] if overrides[0].endswith("=null") else overrides
    )
    with pytest.raises(UserError) as caught:
        load_config(SMOKE, overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)

"""The laboratory's corpus and the length of its trainings."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lab import draw_corpus, scale_length
from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.corpus import build_scene
from dataprep.synthetic.grammar import parse_caption
from eval.metrics.composition import check_image
from train.tasks.diffusion_config import DiffusionTrainingConfig


def test_the_corpus_has_the_rows_without_trouble() -> None:
    scenes = ScenesConfig(count=80, image_size=64)
    corpus = draw_corpus(scenes, 3, 32)
    kept = [row.caption for row in (build_scene(scenes, 3, index) for index in range(80)) if row.trouble is None]
    assert corpus.captions == kept and 0 < len(kept) < 80
    assert corpus.images_NHWC.shape == (len(kept), 32, 32, 3) and corpus.images_NHWC.dtype == np.uint8
    assert corpus.splits.count("validation") == -(-len(kept) // 16)
    claims = [parse_caption(caption) for caption in kept]
    right = [check_image(image, claim)["all"] for image, claim in zip(corpus.images_NHWC, claims, strict=True) if claim]
    assert np.mean(right) > 0.9  # so images and captions belong together


def test_another_length_keeps_the_shares_of_warm_up_and_ema() -> None:
    config = DiffusionTrainingConfig(resolution=16, steps=1000, warmup_steps=100, ema_decay=0.998, half_size_steps=400)
    short = scale_length(config, 250)
    assert (short.steps, short.warmup_steps, short.half_size_steps, short.zero_stage) == (250, 25, 100, 0)
    assert short.ema_decay == pytest.approx(0.992)
    assert scale_length(config, 1).ema_decay == 0.5

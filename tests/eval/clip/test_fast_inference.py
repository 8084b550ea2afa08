"""Fast inference gives what open_clip's own calls give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.io.model_imports import import_open_clip
from eval.clip.fast_inference import Preprocess, encode_captions, trim_model


@pytest.fixture(autouse=True, scope="module")
def open_clip_imported() -> None:
    """Makes `import open_clip` work in the tests."""
    import_open_clip()


def tiny(**text: Any) -> Any:
    import open_clip

    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    settings = {"context_length": 20, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2} | text
    return open_clip.CLIP(16, vision, settings).eval()


def ids() -> torch.Tensor:
    """Three captions of 4, 9 and 2 tokens, each ended by 49 and padded."""
    rows = torch.zeros(3, 20, dtype=torch.long)
    for row, length in enumerate((4, 9, 2)):
        rows[row, :length] = torch.randint(1, 48, (length,), generator=torch.Generator().manual_seed(row))
        rows[row, length - 1] = 49
    return rows


@pytest.mark.parametrize(
    "text", [{}, {"pool_type": "eos", "eos_id": 49}, {"proj_bias": True}], ids=["argmax", "eos", "bias"]
)
def test_padding_of_captions_is_skipped(text: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(**text)
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    with torch.inference_mode():
        expected = model.encode_text(ids())
        monkeypatch.setattr("eval.clip.fast_inference.GROUP", 2)
        found = encode_captions(model, ids())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert lengths == [20, 4, 9]


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_towers_that_read_the_padding_run_unchanged(text: dict[str, Any]) -> None:
    model = tiny(**text)
    with torch.inference_mode():
        torch.testing.assert_close(encode_captions(model, ids()), model.encode_text(ids()), rtol=0, atol=0)


def test_a_trimmed_image_tower_gives_the_same_features() -> None:
    model, images = tiny(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.encode_image(images)
        assert trim_model(model) is model
        shapes: list[Any] = []
        model.visual.transformer.register_forward_hook(lambda *found: shapes.append(found[-1].shape))
        torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-5, atol=1e-6)
        assert shapes == [(3, 1, 64)]
        torch.testing.assert_close(encode_captions(model, ids()), tiny().encode_text(ids()), rtol=1e-5, atol=1e-5)
        block = model.visual.transformer.resblocks[-1]
        assert trim_model(model).visual.transformer.resblocks[-1] is block  # a second call changes nothing


def test_a_tower_that_pools_all_tokens_keeps_them() -> None:
    model, images = tiny(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.visual.pool_type = "avg"
    with torch.inference_mode():
        expected = model.encode_image(images)
        torch.testing.assert_close(trim_model(model).encode_image(images), expected, rtol=1e-5, atol=1e-6)
        assert not any(getattr(block, "first_only", False) for block in model.visual.transformer.resblocks)


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (97, 256), (32, 50), (20, 20)])
def test_preprocessing_gives_the_floats_of_open_clip(size: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model = tiny()
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=32))
    steps = Preprocess.from_model(model)
    assert steps is not None
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = image_transform_v2(PreprocessCfg(size=32), is_train=False)(Image.fromarray(image))
    torch.testing.assert_close(steps.to_floats(steps.to_square(image)[None])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"resize_mode": "squash"}, {"interpolation": "random"}, {"size": (32, 48)}])
def test_other_preprocessing_is_not_replaced(change: dict[str, Any]) -> None:
    from open_clip.transform import PreprocessCfg

    model = tiny()
    assert Preprocess.from_model(model) is None
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=32)) | change
    assert Preprocess.from_model(model) is None

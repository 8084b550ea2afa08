"""Tiny untrained models in the folder layouts of others, and folders of drawings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataprep.io.model_imports import declare_torchvision_operators, import_transformers, let_transformers_find_scipy
from dataprep.synthetic.renderer import draw_scene
from eval.sampling.prompts import EvalPrompt, scene_prompts
from tests.helpers.encoders import save_encoder

SCENE_WORDS = (
    *("<pad>", "</s>", "<unk>", "a", "an", "of", "and", "one", "two", "three", "red", "blue", "green", "circle"),
    *("square", "triangle", "small", "large", "left", "right", "above", "below"),
)
PREPROCESSOR = {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}
PREPROCESSOR |= {"image_std": [0.25] * 3}


def save_small_clip(folder: Path) -> str:
    """Saves an untrained CLIP in the layout of the clip stage's export; returns the folder."""
    from train.models.clip import save_clip
    from train.models.clip_config import ClipModelConfig
    from train.models.clip_text import build_open_clip

    words = save_encoder(folder.with_name(f"{folder.name}-words"), "t5", SCENE_WORDS)
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(words)
    torch.manual_seed(0)
    config = ClipModelConfig(image_size=32, embed_dim=16, text_width=16, text_heads=2, context_length=16)
    model = build_open_clip(config, len(SCENE_WORDS), 1, 0)
    for parameter in model.parameters():
        if not parameter.any():  # the last norm of a residual block, without which images hardly differ
            torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(parameter, std=0.1)
    save_clip(folder, model.state_dict(), config, tokenizer)
    return str(folder)


def save_dinov2(folder: Path, side: int = 28, pooler: bool = True) -> str:
    """Saves an untrained DINOv2 with a preprocessor_config.json; returns the folder."""
    transformers = import_transformers()
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(image_size=side, patch_size=14, **sizes)
    transformers.Dinov2Model(config).eval().save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | size))
    return str(folder)


def save_clip_of_transformers(folder: Path) -> str:
    """Saves an untrained CLIPModel with tokenizer and preprocessor, the layout of PickScore; returns the folder."""
    save_encoder(folder, "t5", SCENE_WORDS)  # for the tokenizer's files
    transformers = import_transformers()
    torch.manual_seed(2)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(SCENE_WORDS),
        "max_position_embeddings": 12,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    more = {"image_processor_type": "CLIPImageProcessor", "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | size | more))
    return str(folder)


def save_detector(folder: Path, names: tuple[str, ...] = ("cat", "dog", "mouse")) -> str:
    """Saves an untrained YOLOS; returns the folder."""
    transformers = import_transformers()
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 6}
    config = transformers.YolosConfig(**sizes, id2label=dict(enumerate(names)))
    model = transformers.YolosForObjectDetection(config)
    model.class_labels_classifier.layers[-1].bias.data[:] = torch.tensor([2.0, 1.0, 0.0, -9.0])  # the last: no object
    model.save_pretrained(folder)
    more = {"image_processor_type": "YolosImageProcessor", "size": {"height": 32, "width": 32}, "do_pad": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | more))
    return str(folder)


def save_segmenter(folder: Path, none: float = -9.0) -> str:
    """Saves an untrained Mask2Former whose queries show no object with logit ``none``; returns the folder."""
    transformers = import_transformers()
    let_transformers_find_scipy()
    torch.manual_seed(5)
    backbone = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes: dict[str, Any] = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 4}
    sizes |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 2, "encoder_layers": 1}
    names = dict(enumerate(("cat", "dog", "mouse")))
    config = transformers.Mask2FormerConfig(backbone_config=backbone, decoder_layers=2, id2label=names, **sizes)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    model.class_predictor.bias.data[:] = torch.tensor([3.0, 0.0, -3.0, none])  # the last: no object
    model.save_pretrained(folder)
    more = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | more))
    return str(folder)


def save_answerer(folder: Path) -> str:
    """Saves an untrained ViLT that chooses between yes and no; returns the folder."""
    transformers = import_transformers()
    torch.manual_seed(4)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "there", "a", "red", "cat", "?")
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "image_size": 32, "patch_size": 8, "vocab_size": len(words)}
    config = transformers.ViltConfig(**sizes, max_position_embeddings=16, id2label={0: "no", 1: "yes"})
    transformers.ViltForQuestionAnswering(config).save_pretrained(folder)
    more = {"image_processor_type": "ViltImageProcessor", "processor_class": "ViltProcessor", "size_divisor": 8}
    more |= {"size": {"shortest_edge": 32}, "do_pad": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | more))
    return str(folder)


def save_latent_pipeline(folder: Path) -> str:
    """Saves an untrained StableDiffusionPipeline of 32-pixel images, by diffusers itself; returns the folder."""
    declare_torchvision_operators()
    import diffusers

    transformers = import_transformers()
    save_encoder(folder.with_name(f"{folder.name}-words"), "t5", SCENE_WORDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.with_name(f"{folder.name}-words"))
    torch.manual_seed(5)
    text = transformers.CLIPTextConfig(
        vocab_size=len(SCENE_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        **SPECIAL,
    )
    tokenizer.model_max_length = 12
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return str(folder)


def draw_folder(folder: Path, prompts: list[EvalPrompt], seed: int = 0, size: int = 32) -> list[np.ndarray]:
    """Writes a drawing of each prompt of the grammar as 0.png, 1.png ...; returns the drawings."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, prompt in enumerate(prompts):
        assert prompt.claim is not None
        images.append(draw_scene(prompt.claim, np.random.default_rng([seed, number]), size))
        Image.fromarray(images[-1]).save(folder / f"{number}.png")
    return images


def write_prompts(path: Path, count: int, seed: int = 0) -> list[EvalPrompt]:
    """Writes ``2 * count`` prompts of the grammar, one per line; returns them."""
    prompts = scene_prompts(count, seed)
    path.write_text("\n".join(prompt.prompt for prompt in prompts), encoding="utf-8")
    return prompts

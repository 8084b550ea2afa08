"""Vision-language models of transformers: tiny random ones of the real classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.captioning.config import CaptionPrompt
from eval.captioning.model_folder import check_model_folder
from eval.captioning.vision_language_model import VisionLanguageModel
from tests.helpers.images import picture
from tests.helpers.paths import ROOT
from tests.helpers.vision_language import save_llava

PROMPT = CaptionPrompt(prompt="describe the house", max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def model(folder: str) -> VisionLanguageModel:
    return VisionLanguageModel.load(folder)


def images(count: int) -> list[Image.Image]:
    return [Image.fromarray(picture(seed, 20 + 7 * seed, 40)) for seed in range(count)]


def write(model: VisionLanguageModel, count: int, prompt: CaptionPrompt = PROMPT) -> list[str]:
    return [answer.text for answer in model.answer(model.prepare(images(count), prompt), prompt.max_tokens)]


def test_an_answer_does_not_depend_on_its_batch(model: VisionLanguageModel) -> None:
    together = write(model, 4)
    alone = [model.answer(model.prepare([image], PROMPT), PROMPT.max_tokens)[0].text for image in images(4)]
    assert together == alone
    assert all(len(text.split()) == 6 for text in together)  # the answer alone


def test_the_image_is_seen(model: VisionLanguageModel) -> None:
    """With random weights the first logits of two images differ."""
    prepared = model.prepare([Image.new("RGB", (32, 32), "black"), Image.new("RGB", (32, 32), "white")], PROMPT)
    logits_BLV = model.model(**prepared).logits
    assert float((logits_BLV[0] - logits_BLV[1]).detach().abs().max()) > 1e-4


def test_the_prompt_is_a_turn_of_the_models_chat(model: VisionLanguageModel) -> None:
    turn = model.write_turn("describe the house")
    assert turn.split() == ["user", ":", "<image>", "describe", "the", "house"]


def test_a_model_without_a_chat_gets_image_and_prompt(tmp_path: Path) -> None:
    plain = VisionLanguageModel.load(save_llava(tmp_path, chat=False))
    assert plain.write_turn("describe") == "<image>\ndescribe"
    assert len(write(plain, 2)) == 2


def test_folders_that_are_no_such_model(folder: str, tmp_path: Path) -> None:
    check_model_folder(folder)
    with pytest.raises(UserError, match=r"caption.model=.*: no readable config.json in it; give the folder"):
        check_model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="a model of type t5 does not describe images"):
        check_model_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"caption.model=.*: cannot be loaded .* with its processor"):
        VisionLanguageModel.load(str(tmp_path))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_llava(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "projector" in name and name.endswith("weight"))
    rest = {key: np.ascontiguousarray(value) for key, value in weights.items() if key != name}
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing .*projector"):
        VisionLanguageModel.load(str(tmp_path))


CHECK = """
import sys
from PIL import Image
from eval.captioning.config import CaptionPrompt
from eval.captioning.vision_language_model import VisionLanguageModel
from tests.helpers.vision_language import save_qwen

model = VisionLanguageModel.load(save_qwen(sys.argv[1]))
prompt = CaptionPrompt(prompt="describe the house", max_tokens=5)
images = [Image.new("RGB", (48, 24), "red"), Image.new("RGB", (16, 16), "blue")]
together = model.answer(model.prepare(images, prompt), 5)
alone = [model.answer(model.prepare([image], prompt), 5)[0] for image in images]
assert together == alone, (together, alone)
assert all(len(answer.text.split()) == 5 for answer in together), together
"""


@pytest.mark.slow
def test_a_processor_that_needs_torchvision_and_images_of_many_sizes(tmp_path: Path) -> None:
    """In a process of its own, since in this one transformers may have been imported for text alone."""
    words = [sys.executable, "-c", CHECK, str(tmp_path / "qwen")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

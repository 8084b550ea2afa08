"""Any text-to-image pipeline folder of diffusers as a model to sample from, latent ones included. Reads local files."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from dataprep.io.progress_bars import disable_progress_bars
from eval.metrics.feature_models import digest_weights
from eval.sampling.options import SamplingOptions
from eval.sampling.prompts import clean_prompt
from eval.sampling.samples import Samples

INDEX_FILE = "model_index.json"
MISSING = "diffusers is not installed, which loads this folder; pip install 'imagen-ray[diffusers]'"
# Setting of ours -> argument of a pipeline.
ARGUMENTS = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def is_diffusers_folder(folder: str | Path) -> bool:
    """Whether ``folder`` is a pipeline in the layout of diffusers."""
    return (Path(folder) / INDEX_FILE).is_file()


class DiffusersModel:
    """A pipeline that maps prompts to images. The image of (prompt, seed, index) is the same in any call."""

    watermark = None
    additions: Mapping[str, Any] = {}

    def __init__(self, pipeline: Any, folder: str) -> None:
        self.pipeline, self.folder = pipeline, folder

    @classmethod
    def load(cls, folder: str, device: str = "cpu", dtype: str = "float32") -> DiffusersModel:
        """Loads the pipeline. Raises UserError without diffusers, and for a folder that makes no images from text."""
        diffusers = import_diffusers()
        try:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=DTYPES[dtype])
            pipeline = pipeline.to(device)
        except Exception as error:  # diffusers raises many types on a folder that it cannot load
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"MODEL {folder}: diffusers cannot load it ({reason}); give a whole folder") from error
        needed = [
            name
            for name, parameter in inspect.signature(pipeline.__call__).parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        takes = inspect.signature(pipeline.__call__).parameters
        if "prompt" not in takes or set(needed) - {"prompt"} or not callable(pipeline):
            lacks = f"needs {', '.join(set(needed) - {'prompt'})}" if set(needed) - {"prompt"} else "takes no prompt"
            kind = type(pipeline).__name__
            raise UserError(f"MODEL {folder}: {kind} {lacks}; give a pipeline that makes images from text alone")
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, folder)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        """Samples ``options.num`` images per prompt. Raises UserError for an option that the pipeline lacks."""
        prompts = [clean_prompt(prompt) for prompt in prompts]
        takes = inspect.signature(self.pipeline.__call__).parameters
        arguments = self._translate(options, takes)
        keys = [(prompt, index) for prompt in prompts for index in range(options.num)]
        images: list[Image.Image] = []
        for start in range(0, len(keys), options.batch_size):
            part = keys[start : start + options.batch_size]
            generators = [self._generator(options.seed, prompt, index) for prompt, index in part]
            more = dict(arguments)
            if options.negative:
                more["negative_prompt"] = [options.negative] * len(part)
            made = self.pipeline(prompt=[prompt for prompt, _ in part], generator=generators, **more)
            images += [image.convert("RGB") for image in made.images]
        making = {
            "negative": options.negative or None,
            "seed": options.seed,
            "size": list(images[0].size) if images else None,
            "model": self.digest,
            "settings": {type(self.pipeline).__name__: arguments},
        }
        return Samples(images, [p for p, _ in keys], [i for _, i in keys], {"pipeline": images}, making=making)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the files of the folder, which identify the model in an image's metadata."""
        return digest_weights(self.folder)

    def _translate(self, options: SamplingOptions, takes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the pipeline's arguments for our options; those not given keep the pipeline's defaults."""
        found: dict[str, Any] = {}
        for name, value in options.changes.items():
            if value is None:
                continue
            if ARGUMENTS.get(name) not in takes:
                raise UserError(f"{name}: {type(self.pipeline).__name__} has no such setting; leave it out")
            found[ARGUMENTS[name]] = value
        if options.negative and "negative_prompt" not in takes:
            raise UserError(f"negative: {type(self.pipeline).__name__} takes no negative prompt; leave it out")
        if options.size:
            found |= dict(zip(("width", "height"), options.size, strict=True))
        return found

    def _generator(self, seed: int, prompt: str, index: int) -> torch.Generator:
        """Returns the noise source of an image, on the CPU: the same images on every device up to rounding."""
        name = f"{seed}|{index}|{prompt}".encode()
        number = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
        return torch.Generator("cpu").manual_seed(number)


def import_diffusers() -> ModuleType:
    """Returns the module diffusers; raises UserError where it is not installed."""
    disable_progress_bars()
    declare_torchvision_operators()
    try:
        import diffusers
    except ImportError as error:
        raise UserError(MISSING) from error
    diffusers.utils.logging.set_verbosity_error()  # its advice on loading is not ours to give
    return diffusers

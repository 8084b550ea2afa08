"""The weights of a stage in diffusers' layout: one safetensors file or several with an index, of any variant."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.models.diffusers_unet.config import DiffusersUNetConfig
from train.models.diffusers_unet.folder_config import UNET
from train.models.diffusers_unet.network import DiffusersUNet

STEM = "diffusion_pytorch_model"
PREFIX = "unet."  # of parameter names in `DiffusersUNet`
# diffusion_pytorch_model[.VARIANT].safetensors, diffusion_pytorch_model.safetensors.index[.VARIANT].json
WHOLE = re.compile(STEM + r"(?:\.(\w+))?\.safetensors")
INDEX = re.compile(STEM + r"\.safetensors\.index(?:\.(\w+))?\.json")


def load_diffusers_unet_weights(folder: str | Path) -> dict[str, Tensor]:
    """Returns the state dict of a `DiffusersUNet` from a folder in diffusers' layout, with the dtypes of its files.

    Of several variants takes the one without a name, which is float32, else the first by name. Raises UserError for a
    file that is missing or damaged.
    """
    unet = Path(storage.local_folder(str(folder))) / UNET
    files = _find_files(unet)
    tensors: dict[str, Tensor] = {}
    try:
        for path in files:
            tensors |= load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({' '.join(str(error).split())}); copy the folder again") from error
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def load_folder_network(folder: str, config: DiffusersUNetConfig) -> DiffusersUNet:
    """Returns the network with the weights of ``folder``, float32, on the CPU; UserError where they do not fit it."""
    with torch.device("meta"):  # the weights come from the folder: no time and memory for random ones
        model = DiffusersUNet(config)
    weights = load_diffusers_unet_weights(folder)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    where = Path(folder) / UNET
    for what, names in (("lacks", wanted.keys() - weights.keys()), ("has unknown", weights.keys() - wanted.keys())):
        if names:
            first = min(names).removeprefix(PREFIX)
            raise UserError(f"{where}: {what} weights ({first}, {len(names)} in all); config.json is of another one")
    if wrong := [name for name in wanted if weights[name].shape != wanted[name]]:
        found, needed = (tuple(shapes[wrong[0]]) for shapes in ({wrong[0]: weights[wrong[0]].shape}, wanted))
        raise UserError(f"{where}: {wrong[0].removeprefix(PREFIX)} has shape {found}, config.json asks for {needed}")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    if broken := [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]:
        raise UserError(f"{where}: {broken[0].removeprefix(PREFIX)} is not finite; copy the folder again")
    model.make_tables()
    return model


def _find_files(unet: Path) -> list[Path]:
    """Returns the safetensors files to load."""
    whole, indexed = dict[str, Path](), dict[str, Path]()
    for path in sorted(unet.iterdir()) if unet.is_dir() else []:
        if match := WHOLE.fullmatch(path.name):
            whole[match[1] or ""] = path
        elif match := INDEX.fullmatch(path.name):
            indexed[match[1] or ""] = path
    if not whole and not indexed:
        hint = "convert the .bin file with diffusers' save_pretrained" if list(unet.glob("*.bin")) else "copy it again"
        raise UserError(f"{unet}: no weights ({STEM}.safetensors); {hint}")
    variant = min(whole.keys() | indexed.keys())
    if variant in whole:
        return [whole[variant]]
    names = storage.read_json(str(indexed[variant])).get("weight_map", {}).values()
    files = [unet / name for name in sorted(set(names))]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing, and {indexed[variant].name} names it; copy the folder again")
    return files

"""``imagen-ray export --push``: uploads an exported folder to a hub by huggingface_hub."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from dataprep.io.errors import UserError
from dataprep.io.progress_bars import disable_progress_bars
from eval.sampling.config import CASCADE_FILE

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
UNAUTHORISED = (401, 403)


def check_hub_name(name: str) -> None:
    """Raises UserError unless ``name`` can be that of a repository on a hub."""
    if not NAME.fullmatch(name) or "--" in name or ".." in name or len(name) > 96:
        raise UserError(f"--push {name}: is no name of a repository; give OWNER/NAME, such as me/my-cascade")


def push_folder(folder: Path, name: str, private: bool = False) -> str:
    """Uploads the exported cascade at ``folder`` to the repository ``name``, made where it is missing; returns its URL.

    The hub is that of HF_ENDPOINT, by default huggingface.co; the token that of HF_TOKEN or `hf auth login`. Files that
    are there already with the same content are not uploaded again.

    Raises:
        UserError: ``folder`` is not an export, there is no token, or it may not write there.
        ConnectionError: the hub cannot be reached or fails; the message says how to push again.
    """
    if not (folder / CASCADE_FILE).is_file():
        raise UserError(f"--push: {folder} has no {CASCADE_FILE}; name a folder that `imagen-ray export` wrote")
    disable_progress_bars()
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.get_token() is None:
        raise UserError(f"--push {name}: there is no token for the hub; set HF_TOKEN, or run `hf auth login`")
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="imagen-ray export")
    except Exception as error:  # the hub's HTTP client has error types of its own, which change with its version
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status in UNAUTHORISED:
            raise UserError(
                f"--push {name}: the hub refuses (HTTP {status}); give a name of your own, and a token that may write. "
                f"The export is in {folder}"
            ) from error
        again = shlex.join(["imagen-ray", "export", str(folder), "--push", name])
        raise ConnectionError(f"{api.endpoint} fails or cannot be reached ({error}); try again: {again}") from error
    return f"{api.endpoint}/{name}"

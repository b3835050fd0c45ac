"""Weights that others publish: from a file, torch's cache or the network, and never anything but tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


def load_published(
    network: nn.Module, url: str, path: str | Path | None, *, name: str, local_files_only: bool = False
) -> Path:
    """Put published weights into a network, which takes them over as they are (it may be on the device "meta").

    Args:
        network: whose state dict the file holds, whole and with nothing beside it.
        url: where the file is published; its name ends in the start of its SHA-256, as torch's hub has it.
        path: the file, from `torch.save` (read with `weights_only=True`) or in safetensors; by default the published
            one, from torch's cache or else downloaded into it and checked.
        name: of the network, for errors.
        local_files_only: download nothing.

    Returns:
        The file that was read.

    Raises:
        OSError: if the file cannot be had; the message says where it was looked for and what to pass instead.
        ValueError: if it holds no such state dict.

    Example:
        >>> load_published(nn.Linear(2, 1), "https://example.org/linear-12345678.pth", "nowhere.pth", name="a layer")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no file nowhere.pth with weights of a layer. Pass path= a file, or put ...
    """
    cache = Path(torch.hub.get_dir(), "checkpoints")
    file = Path(path) if path is not None else cache / url.rpartition("/")[2]
    if path is None and not file.is_file() and not local_files_only:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:  # no network, or a file of another hash
            raise OSError(
                f"{url} cannot be downloaded ({error}) and is not in torchvision's cache as {file}. Put it "
                "there, or pass path= a file with these weights."
            ) from error
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no file {file} with weights of {name}"
            f"{' and nothing may be downloaded' if path is None else ''}. Pass path= a file, or put {url} at {cache}."
        )
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        unsafe = isinstance(error, pickle.UnpicklingError)  # torch's words for it advise to read it all the same
        reason = "" if unsafe else f": {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"{file} holds no whole state dict of {name}, or objects beside tensors{reason}") from error
    return file

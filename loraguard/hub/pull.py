"""Loading a patch of the Hub or of a folder onto its generator, checked before anything is used."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from torch import nn

from loraguard.files import draft_folder, new_folder, said_of_the_disk, sync, writable_folder
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import GENERATORS, load_generator
from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.messages import refusing

from .errors import explained
from .local import read_config, read_patch
from .names import NEEDED, PATCH_FILES, check_adapter_name, is_folder
from .provenance import hosted_id
from .recorded import generator_of

_CACHE = "Nothing was loaded. HF_HUB_CACHE names a folder on another disk."


def load_patch(
    patch: str | Path,
    generator: nn.Module | str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    adapter_name: str = "default",
    ignore_fingerprint: bool = False,
) -> PeftModel:
    """A generator with a patch on it, from the Hub or from a folder.

    Before use: the files are safetensors and JSON and have the hashes that the Hub states; every value is in its range;
    names and shapes are those of the generator's layers; and the generator's weights are those that the patch was made
    for, where that is recorded. `docs/trust.md` says what a patch can do and what not.

    Args:
        patch: an id of the Hub, or a folder.
        generator: the network; or a file, folder or id with its weights; or None for those that the patch names, which
            have to be on the Hub, or in a folder of this machine for a patch that is, or come with loraguard. A model
            that has a patch already gets this one as well.
        revision: branch, tag or commit of a patch on the Hub.
        token: for a private one; by default the one that `hf auth login` or HF_TOKEN gave.
        adapter_name: of the patch in the model; none that is there already.
        ignore_fingerprint: go on with a generator of other weights than those that the patch was made for.

    Returns:
        The model, in evaluation mode, with the patch switched on.

    Raises:
        FileNotFoundError: if patch, revision or generator is not there.
        PermissionError: if the Hub does not let this token see it.
        ConnectionError: if the Hub or the connection fails.
        ValueError: if something is broken, does not fit, or is for other weights; for a folder and a revision, or a
            name with a dot.

    Example:
        >>> import tempfile
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.generators import DemoEditor
        >>> folder = tempfile.mkdtemp()
        >>> get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2)).save_pretrained(folder)
        >>> model = load_patch(folder, DemoEditor.pretrained())
        >>> type(model).__name__, type(model.get_base_model()).__name__
        ('PeftModel', 'DemoEditor')
    """
    check_adapter_name(adapter_name)
    remote = not is_folder(patch, revision)
    folder = patch_folder(patch, revision=revision, token=token)
    with refusing(str(patch), str(patch)):
        config = read_config(folder, str(patch))
        if not isinstance(generator, nn.Module):
            generator = _find_generator(config, str(patch), generator, remote, token)
        if not ignore_fingerprint:
            _check_fingerprint(config, str(patch), generator)
    if isinstance(generator, PeftModel):
        generator.load_adapter(str(folder), adapter_name)
        generator.set_adapter(adapter_name, inference_mode=True)
        return generator.eval()
    return PeftModel.from_pretrained(generator, str(folder), adapter_name=adapter_name)


def pull_patch(
    repo_id: str, output_dir: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Copy a patch of the Hub, with card, log and audit, into a new folder; checked, and whole or not at all.

    Raises:
        FileExistsError: if the folder exists and is not empty.
        OSError, ValueError: as :func:`load_patch`.
    """
    target = new_folder(output_dir)
    cached = fetch(repo_id, PATCH_FILES, revision=revision, token=token)
    read_patch(cached, repo_id)
    parent = writable_folder(target.parent)
    with (
        said_of_the_disk("patch", target, "It is in the Hub's cache; pull it elsewhere."),
        draft_folder(parent) as temporary,
    ):
        draft = temporary / "patch"
        draft.mkdir()
        for file in PATCH_FILES:
            if (cached / file).is_file():
                (draft / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(cached / file, draft / file)
        sync(draft)
        draft.replace(target)
    return target


def patch_folder(patch: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Where a patch's settings and weights are: its folder, or one in the Hub's cache.

    Raises:
        ValueError: for a folder and a revision.
        FileNotFoundError, PermissionError, ConnectionError: as :func:`load_patch`.
    """
    if is_folder(patch, revision):
        return Path(patch).expanduser()
    return fetch(str(patch), NEEDED, revision=revision, token=token)


def fetch(repo_id: str, files: Sequence[str], *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder in the Hub's cache with some of a repository's files, each with the hash that the Hub states.

    Without a connection (or with HF_HUB_OFFLINE) what is in the cache already is used.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: as :func:`load_patch`.
        ValueError: if a file is not what the Hub says that it is; it is removed from the cache.
    """
    if Path(repo_id).expanduser().is_file():
        raise FileNotFoundError(f"{repo_id} is a file; a patch is a folder, or OWNER/NAME on the Hub.")
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError("It has no owner.")
    except HFValidationError as error:
        raise FileNotFoundError(
            f"There is no patch {repo_id}: no such folder, and no id OWNER/NAME of the Hub. {error}"
        ) from None
    doing = f"pulling revision {revision!r}" if revision else "pulling"
    cache = Path(constants.HF_HUB_CACHE)
    with explained(repo_id, doing, " Nothing was loaded."), said_of_the_disk(f"download of {repo_id}", cache, _CACHE):
        refusal = _refusal(repo_id, token)
        folder = Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(files), max_workers=2)
        )
        for file in files:
            if (folder / file).is_file():
                _check_hash(folder, file, repo_id, token)
    if refusal is not None:
        warnings.warn(
            f"{repo_id} was taken from the local cache {constants.HF_HUB_CACHE}, as an earlier pull left it. The Hub "
            f"does not show it to this token, or without one, now ({refusal}).", stacklevel=3,
        )  # fmt: skip
    return folder


def _refusal(repo_id: str, token: str | bool | None) -> str | None:
    """Why the Hub does not show a repository to this token; None where it does, or cannot be asked.

    Its client takes such a repository from its cache without a word.
    """
    try:
        HfApi(token=token).model_info(repo_id)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            return f"{error.response.status_code}: {error.server_message or error.response.reason_phrase}"
    except (HTTPError, OSError):
        pass
    return None


def _check_hash(folder: Path, file: str, repo_id: str, token: str | bool | None) -> None:
    """Compare a cached file with the hash that it has on the Hub: SHA-256 for large files, git's for others."""
    path = folder / file
    if path.is_symlink():
        stated = Path(os.readlink(path)).name  # the cache names what it holds by the hash that the Hub states
    else:  # a cache on a disk without links
        entry = HfApi(token=token).get_paths_info(repo_id, [file], revision=folder.name)[0]
        assert isinstance(entry, RepoFile)
        stated = entry.lfs.sha256 if entry.lfs else entry.blob_id
    data = path.read_bytes()
    is_git = re.fullmatch(r"[0-9a-f]{40}", stated)
    found = hashlib.sha1(b"blob %d\0" % len(data) + data) if is_git else hashlib.sha256(data)
    if found.hexdigest() != stated:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{repo_id}/{file} is not what the Hub says that it is: its hash is {found.hexdigest()}, and {stated} was "
            "stated. It was removed from the cache; pull again, and trust neither if this happens twice."
        )


def _find_generator(
    config: GatedLoraConfig, name: str, given: str | Path | None, remote: bool, token: str | bool | None
) -> nn.Module:
    """The patch's generator from where it is said to be."""
    about = generator_of(config)
    kind, source = about.get("name"), config.base_model_name_or_path
    if given is not None:
        if kind is None:
            raise ValueError(
                f"{name} does not say which of loraguard's networks {given} is for; load it yourself and pass the "
                "network."
            )
        return load_generator(kind, given)
    if kind is not None and source and hosted_id(source):
        return load_generator(kind, source, token=token)
    if kind is not None and source and not remote and os.path.isdir(source):
        return load_generator(kind, source)
    if kind is not None and not source and hasattr(GENERATORS[kind], "pretrained"):
        return load_generator(kind)
    raise ValueError(
        f"{name} is for {about.get('class', 'a generator that it does not name')}, and does not say where its weights "
        "are; pass the generator: a network, or a file, folder or id with its weights."
    )


def _check_fingerprint(config: GatedLoraConfig, name: str, generator: nn.Module) -> None:
    about = generator_of(config)
    recorded = about.get("sha256")
    if recorded is None:
        return
    own = generator_fingerprint(generator)
    if own != recorded:
        network = generator.get_base_model() if isinstance(generator, PeftModel) else generator
        raise ValueError(
            f"{name} was made for a {about.get('class', 'generator')} with weights {recorded[:12]}…, and this "
            f"{type(network).__name__} has {own[:12]}…: other weights, or the same in another precision or after "
            "merging. Load those that it was made for; or go on with ignore_fingerprint=True (--ignore-fingerprint), "
            "and what the patch's card and audit say is not about this generator."
        )

"""Pushing a patch to the Hub with a card that is true, in one commit."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from peft import PeftModel

from loraguard.describing import without_paths
from loraguard.files import temporary_folder, write_json
from loraguard.tuner import GatedLoraConfig

from .audit import publishable
from .card import own_text, patch_card, read_card
from .errors import explained
from .findings import Findings, read_audit
from .local import Patch, read_patch, save_adapter
from .names import AUDIT_FILES, CARD, LOG, NEEDED
from .provenance import describe_generator, hosted_id


def push_patch(
    patch: PeftModel | str | Path,
    repo_id: str,
    *,
    audit: str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    card: str | Path | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push a patch to the Hub: safetensors, settings, and a card that says what it is.

    All of it goes up in one commit, so that others see the whole push or nothing of it; what has not changed makes no
    commit. A push at the same time as somebody else's fails and changes nothing. The card's own text and metadata stay
    as they are on the Hub; its generated parts are written anew. An audit stays in it as long as it is of the very
    weights that are pushed.

    Args:
        patch: a model, whose active adapter is pushed; or a folder with a patch.
        repo_id: "owner/name", or a name alone for one of your own. It is made where it does not exist.
        audit: the folder of an audit of this patch. Its `audit.json`, `grid.png`, `report.html`, `report.md` and
            `summary.csv` are pushed; table, findings and picture go into the card, figures into its `model-index`. By
            default the folder `audit` beside the patch, if it is of this patch.
        private: who may see a repository that is made; by default what the owner's settings say.
        revision: a branch; it is made where there is none.
        tag: a name for what was pushed.
        license: an identifier of the Hub; by default the one that the card has, or else the generator's.
        card: a file with the card's own text. By default the text on the Hub, or for a first push the folder's
            `README.md`.
        token: by default the one that `hf auth login` or HF_TOKEN gave.

    Returns:
        The commit; of a patch that was there already, the one that is.

    Raises:
        FileNotFoundError: if a folder or file is not there.
        ValueError: if patch, audit or card is broken, the audit is of another patch, the repository is not as private
            as asked for, or the tag stands elsewhere.
        PermissionError: if the token, or its absence, does not allow it.
        ConnectionError: if the Hub or the connection fails, or somebody else pushed at the same time.
    """
    api = HfApi(token=token, library_name="loraguard")
    with temporary_folder() as temporary:
        found = _gather(patch, temporary)
        findings = _findings(patch, audit, found)
        own_card = None if card is None else read_card(Path(card))
        local = found.folder / CARD
        here = read_card(local, f"the patch's {CARD}") if local.is_file() else None
        with explained(repo_id, "pushing"):
            if "/" not in repo_id:
                repo_id = f"{api.whoami()['name']}/{repo_id}"
            made = _ensure_repository(api, repo_id, private)
        after = f" Nothing was pushed{', and the new repository is empty' if made else ''}."
        with explained(repo_id, f"pushing to {revision or 'main'}", after):
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            remote = _look(api, repo_id, revision)
            text = _earlier_card(own_card, remote, here, repo_id)
            readme = patch_card(
                found.config, found.sha256, where=repo_id, audit=findings, earlier=text, license=license
            )
            contents: dict[str, str | bytes] = {file: str(found.folder / file) for file in NEEDED}
            if (found.folder / LOG).is_file():
                contents[LOG] = str(found.folder / LOG)
            contents |= publishable(findings) if findings else {}
            contents[CARD] = str(readme).encode()
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(file, content) for file, content in contents.items()]
                + [CommitOperationDelete(file) for file in _stale(remote, found, set(contents))],
                commit_message="Patch by loraguard",
                revision=revision,
                parent_commit=remote.head,
            )
        if tag is not None:
            _tag(api, repo_id, tag, commit.oid)
    return commit


@dataclass(frozen=True)
class _Remote:
    """A branch as it is: its last commit, its files, and its card."""

    head: str
    files: set[str]
    card: str | None


def _gather(patch: PeftModel | str | Path, folder: Path) -> Patch:
    """Copy what is pushed of a patch, checked, into an empty folder; what its settings say is for others to read."""
    if isinstance(patch, PeftModel):
        adapter = patch.active_adapter
        if not isinstance(patch.peft_config[adapter], GatedLoraConfig):
            raise ValueError(f"The active adapter {adapter!r} is no GATED_LORA adapter; push_patch pushes no other.")
        save_adapter(patch, adapter, folder)
        (folder / CARD).unlink()  # PEFT's
    else:
        source = read_patch(Path(patch).expanduser()).folder
        for file in (*NEEDED, CARD):
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        if (source / LOG).is_file():
            write_json(folder / LOG, without_paths(_read_json(source / LOG)))
    found = read_patch(folder, None if isinstance(patch, PeftModel) else str(patch))
    config = found.config
    base = config.base_model_name_or_path
    if isinstance(patch, PeftModel):
        network = patch.get_base_model()
        base = getattr(network, "name_or_path", None) or base
        if config.provenance is None:
            config.provenance = {"generator": describe_generator(network)}
    config.base_model_name_or_path = hosted_id(base)  # a path of this machine is nobody else's business
    config.save_pretrained(str(folder))
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Mend or remove it.") from error


def _findings(patch: PeftModel | str | Path, audit: str | Path | None, found: Patch) -> Findings | None:
    if audit is not None:
        return read_audit(Path(audit).expanduser(), found.sha256)
    beside = None if isinstance(patch, PeftModel) else Path(patch).expanduser() / "audit"
    if beside is None or not (beside / "audit.json").is_file():
        return None
    try:
        return read_audit(beside, found.sha256)
    except (ValueError, FileNotFoundError) as error:
        warnings.warn(f"The patch is pushed without an audit. {error}", stacklevel=3)
        return None


def _ensure_repository(api: HfApi, repo_id: str, private: bool | None) -> bool:
    """Make the repository where it does not exist; whether it was made."""
    try:
        is_private = bool(api.model_info(repo_id).private)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private)
        return True
    if private is not None and private != is_private:
        words = {True: "private", False: "public"}
        raise ValueError(
            f"{repo_id} exists and is {words[is_private]}; pushing with private={private} would not make it "
            f"{words[private]}. Change that in its settings, or leave `private` out."
        )
    return False


def _look(api: HfApi, repo_id: str, revision: str | None) -> _Remote:
    info = api.model_info(repo_id, revision=revision)
    assert info.sha is not None
    try:
        path = hf_hub_download(repo_id, CARD, revision=info.sha, token=api.token)
    except EntryNotFoundError:
        card = None
    else:
        card = read_card(Path(path), f"{CARD} of {repo_id}")
    return _Remote(info.sha, {one.rfilename for one in info.siblings or []}, card)


def _earlier_card(given: str | None, remote: _Remote, here: str | None, repo_id: str) -> str | None:
    """The card whose own text and metadata stay."""
    if given is not None:
        return given
    if remote.card is None or here is None:
        return remote.card or here
    mine, theirs = own_text(here), own_text(remote.card)
    if mine and mine != theirs:
        warnings.warn(
            f"The folder's {CARD} has text of its own that {repo_id} has not; the card there was kept. To push the "
            f"folder's, pass card=FOLDER/{CARD}.",
            stacklevel=3,
        )
    return remote.card


def _stale(remote: _Remote, found: Patch, pushed: set[str]) -> list[str]:
    """Files of an earlier push that are about other weights."""
    if remote.card is not None and found.sha256 in remote.card:
        return []
    return sorted(remote.files & {LOG, *AUDIT_FILES} - pushed)


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    with explained(repo_id, f"setting the tag {tag!r}", f" The patch itself was pushed, as commit {commit}."):
        try:
            api.create_tag(repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            stands = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
            if stands.get(tag) != commit:
                raise ValueError(
                    f"The tag {tag!r} of {repo_id} stands at {stands.get(tag)} already and was not moved. The patch "
                    f"itself was pushed, as commit {commit}."
                ) from error

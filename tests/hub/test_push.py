"""Pushing over HTTP to a local Hub: what is there afterwards, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hub_client import Client, HubError
from huggingface_hub import ModelCard
from local_hub import LocalHub
from processes import forked_ranks
from pushing import train_and_push
from safetensors.torch import load_file, save_file

FILES = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "training_log.json",
    "audit/audit.json",
    "audit/grid.png",
    "audit/report.html",
    "audit/report.md",
    "audit/summary.csv",
}


def change(patch: Path) -> None:
    """Other weights, with their hash in the config."""
    weights, config = patch / "adapter_model.safetensors", patch / "adapter_config.json"
    tensors = load_file(weights)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, weights, {"format": "pt"})
    settings = json.loads(config.read_text())
    settings["provenance"]["file_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    config.write_text(json.dumps(settings))


def test_create_and_push_again(hub: LocalHub, client: Client, patch: Path) -> None:
    first = client.push(patch, "me/first")
    repo = hub.repos["me/first"]
    assert set(repo.files()) == FILES
    assert not repo.private
    assert len(repo.commits) == 2
    assert repo.files()["adapter_model.safetensors"] == (patch / "adapter_model.safetensors").read_bytes()
    pushed, here = (
        json.loads(text) for text in (repo.files()["training_log.json"], (patch / "training_log.json").read_text())
    )
    assert pushed["steps"] == here["steps"]
    assert pushed["settings"] == here["settings"] | {"output_dir": "patch"}
    sent = [request for request in hub.requests if "lfs-upload" in request]
    assert client.push(patch, "me/first") == first
    assert len(repo.commits) == 2
    assert [request for request in hub.requests if "lfs-upload" in request] == sent


def test_a_name_alone_is_ones_own(hub: LocalHub, client: Client, patch: Path) -> None:
    client.push(patch, "alone")
    assert "me/alone" in hub.repos


def test_branch_and_tag(hub: LocalHub, client: Client, patch: Path) -> None:
    first = client.push(patch, "me/branches", tag="v1")
    change(patch)
    with pytest.raises(HubError, match=r"ValueError: The audit in .* is not of this patch"):
        client.push(patch, "me/branches", audit=str(patch / "audit"))
    second = client.push(patch, "me/branches", revision="trial")
    assert any("pushed without an audit" in one for one in client.warnings)
    repo = hub.repos["me/branches"]
    assert repo.branches == {"main": first, "trial": second}
    assert repo.tags == {"v1": first}
    assert client.push(patch, "me/branches", revision="trial", tag="v2") == second
    assert client.push(patch, "me/branches", revision="trial", tag="v2") == second
    with pytest.raises(HubError, match=f"ValueError: The tag 'v1' .* stands at {first} already .* commit {second}"):
        client.push(patch, "me/branches", revision="trial", tag="v1")
    assert repo.tags == {"v1": first, "v2": second}


def test_what_is_about_other_weights_goes(hub: LocalHub, client: Client, patch: Path) -> None:
    client.push(patch, "me/changes")
    before = ModelCard(hub.repos["me/changes"].files()["README.md"].decode())
    assert before.data.eval_results
    change(patch)
    (patch / "training_log.json").unlink()
    client.push(patch, "me/changes")
    files = hub.repos["me/changes"].files()
    assert set(files) == {name for name in FILES if "audit" not in name and "log" not in name}
    after = ModelCard(files["README.md"].decode())
    assert after.data.eval_results is None
    assert "## Audit" in before.text
    assert "## Audit" not in after.text


def test_an_audit_stays_with_its_weights(hub: LocalHub, client: Client, trained: Path) -> None:
    """A model pushed after its folder: same weights, so log and audit stay, and nothing is committed."""
    commit = client.push(trained / "patch", "me/stays")
    code = """
model = loraguard.load_patch(patch, generator)
result = loraguard.push_patch(model, "me/stays").oid
"""
    assert client.run(code, patch=str(trained / "patch"), generator=str(trained / "generator")) == commit


def test_private(hub: LocalHub, client: Client, patch: Path) -> None:
    client.push(patch, "me/secret", private=True)
    assert hub.repos["me/secret"].private
    client.push(patch, "me/secret", private=True)
    client.push(patch, "me/secret")
    with pytest.raises(HubError, match=r"ValueError: me/secret exists and is private; .*would not make it public"):
        client.push(patch, "me/secret", private=False)
    client.push(patch, "me/open")
    with pytest.raises(HubError, match=r"me/open exists and is public; .*would not make it private"):
        client.push(patch, "me/open", private=True)


def test_no_path_of_this_machine_is_published(hub: LocalHub, client: Client, trained: Path) -> None:
    client.push(trained / "patch", "me/paths")
    config = json.loads((trained / "patch" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(trained / "generator")
    for name, data in hub.repos["me/paths"].files().items():
        assert str(trained).encode() not in data, name


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("POST /api/repos/create", 401, "PermissionError: .*needs a valid token"),
        ("POST /api/repos/create", 403, "PermissionError: .*token does not allow pushing"),
        ("POST /api/repos/create", 500, "ConnectionError: .*pushing failed. The Hub says 500: ordered by the test"),
        ("/preupload/", 500, "ConnectionError: .*Nothing was pushed, and the new repository is empty"),
        ("/commit/", 409, "ConnectionError: .*somebody else changed it meanwhile"),
        ("/commit/", 412, "ConnectionError: .*somebody else changed it meanwhile"),
        ("/commit/", 403, "PermissionError: .*does not allow pushing to main"),
        ("/commit/", 500, "ConnectionError: .*Nothing was pushed"),
        ("PUT /lfs-upload", 500, "ConnectionError: .*Nothing was pushed"),
        ("PUT /lfs-upload", None, "ConnectionError: The connection to .* broke while pushing"),
        ("/commit/", None, "ConnectionError: The connection to .* broke while pushing"),
        ("POST /api/validate-yaml", None, "ConnectionError: The connection to .* broke while pushing"),
    ],
)
def test_refusals(hub: LocalHub, client: Client, patch: Path, fault: str, status: int | None, said: str) -> None:
    """Nothing is half there, and pushing again mends it."""
    name = "me/refused-" + re.sub(r"\W+", "-", f"{fault.strip('/')} {status}")
    hub.stored.clear()
    with hub.faulty(fault, "drop" if status is None else "status", status or 0), pytest.raises(HubError, match=said):
        client.push(patch, name)
    if name in hub.repos:
        assert set(hub.repos[name].files()) == {".gitattributes"}
    client.push(patch, name)
    assert set(hub.repos[name].files()) == FILES


@pytest.mark.parametrize(
    "request_",
    ["GET /api/models/", "POST /api/repos/create", "/preupload/", "POST /api/models/.*/commit/", "lfs/objects"],
)
def test_a_page_in_place_of_an_answer(hub: LocalHub, client: Client, patch: Path, request_: str) -> None:
    """Of a proxy, or of a network that one has to log in to."""
    name = "me/paged-" + re.sub(r"\W+", "", request_)
    hub.stored.clear()
    with (
        hub.faulty(request_, "page"),
        pytest.raises(HubError, match=r"ConnectionError: .*a network's login page") as caught,
    ):
        client.push(patch, name)
    assert name in str(caught.value)
    assert "<!DOCTYPE html>" in str(caught.value)
    assert "\n" not in str(caught.value)
    client.push(patch, name)
    assert set(hub.repos[name].files()) == FILES


def test_no_connection_at_all(hub: LocalHub, client: Client, patch: Path) -> None:
    """What never began did not break, and the same again would not help."""
    code = f"constants.ENDPOINT, was = {hub.nowhere!r}, constants.ENDPOINT\n"
    code += "try: loraguard.push_patch(patch, 'me/new')\nfinally: constants.ENDPOINT = was\n"
    with pytest.raises(HubError, match=rf"ConnectionError: {hub.nowhere} cannot be reached, so .*Check") as caught:
        client.run(code, patch=str(patch))
    assert "kept" not in str(caught.value)


def test_a_dropped_upload_is_tried_again(hub: LocalHub, client: Client, patch: Path) -> None:
    hub.stored.clear()
    with hub.faulty("PUT /lfs-upload", "drop", times=1):
        client.push(patch, "me/retried")
    files = hub.repos["me/retried"].files()
    assert files["adapter_model.safetensors"] == (patch / "adapter_model.safetensors").read_bytes()


def test_somebody_elses_push_is_not_overwritten(hub: LocalHub, client: Client, patch: Path) -> None:
    """Their commit comes between our look at the branch and ours."""
    client.push(patch, "me/race")
    change(patch)
    repo = hub.repos["me/race"]
    before = dict(repo.branches)
    code = """
from huggingface_hub import HfApi
ours = HfApi.create_commit
def late(api, repo_id, operations, **options):
    theirs = [huggingface_hub.CommitOperationAdd("theirs.txt", b"here")]
    ours(HfApi(), repo_id, theirs, commit_message="theirs")
    HfApi.create_commit = ours
    return ours(api, repo_id, operations, **options)
HfApi.create_commit = late
try:
    loraguard.push_patch(patch, "me/race")
finally:
    HfApi.create_commit = ours
"""
    with pytest.raises(HubError, match=r"ConnectionError: .*somebody else changed it meanwhile"):
        client.run(code, patch=str(patch))
    assert repo.files()["theirs.txt"] == b"here"
    assert repo.files()["adapter_model.safetensors"] != (patch / "adapter_model.safetensors").read_bytes()
    assert before != repo.branches
    client.push(patch, "me/race")
    assert repo.files()["theirs.txt"] == b"here"
    assert repo.files()["adapter_model.safetensors"] == (patch / "adapter_model.safetensors").read_bytes()


def test_tokens(client: Client, hub: LocalHub, patch: Path) -> None:
    client.push(patch, "me/mine")
    with pytest.raises(HubError, match=r"PermissionError: .*this token does not allow"):
        client.push(patch, "me/mine", token="token-of-you")
    with pytest.raises(HubError, match=r"PermissionError: .*this token does not allow"):
        client.push(patch, "me/not-yours", token="token-of-you")
    with pytest.raises(HubError, match=r"PermissionError: .*needs a valid token"):
        client.push(patch, "me/no-one", token=False)
    with pytest.raises(HubError, match=r"PermissionError|FileNotFoundError"):
        client.push(patch, "me/mine", token="token-of-nobody")
    assert {"me/not-yours", "me/no-one"}.isdisjoint(hub.repos)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("pickle", r"ValueError: .*holds no adapter_model.safetensors. loraguard does not read adapter_model.bin"),
        ("nan", r"ValueError: .*holds nan at"),
        ("short", r"ValueError: .*is no whole safetensors file"),
        ("config", r"ValueError: .*unknown field 'gate_function'"),
        ("lora", r"ValueError: .*is an adapter of type LORA, not GATED_LORA"),
        ("nowhere", r"FileNotFoundError: There is no patch .*: no such folder"),
    ],
)
def test_broken_patches_are_not_pushed(hub: LocalHub, client: Client, patch: Path, damage: str, said: str) -> None:
    weights, config = patch / "adapter_model.safetensors", patch / "adapter_config.json"
    settings = json.loads(config.read_text())
    if damage == "pickle":
        torch.save(load_file(weights), patch / "adapter_model.bin")
        weights.unlink()
    elif damage == "nan":
        save_file({name: value * torch.nan for name, value in load_file(weights).items()}, weights)
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "config":
        config.write_text(json.dumps(settings | {"gate_function": "x"}))
    elif damage == "lora":
        ours = ("gate_type", "gate_init", "freeze_norm_stats", "provenance")
        config.write_text(json.dumps({k: v for k, v in settings.items() if k not in ours} | {"peft_type": "LORA"}))
    asked = len(hub.requests)
    with pytest.raises(HubError, match=said):
        client.push(patch if damage != "nowhere" else patch / "nowhere", "me/broken")
    assert len(hub.requests) == asked


def test_stock_push_to_hub(hub: LocalHub, client: Client, trained: Path) -> None:
    """PEFT's own; its card says less, and what says for which weights the patch is goes with it."""
    code = """
model = PeftModel.from_pretrained(DemoEditor.from_pretrained(generator), patch)
model.push_to_hub("me/stock")
loaded = PeftModel.from_pretrained(DemoEditor.from_pretrained(generator), "me/stock")
result = loaded.peft_config["default"].provenance["kind"]
"""
    places = {"patch": str(trained / "patch"), "generator": str(trained / "generator")}
    assert client.run(code, **places) == "defensive"
    client.push(trained / "patch", "me/stock")
    text = ModelCard(hub.repos["me/stock"].files()["README.md"].decode()).text
    assert "# Model Card for Model ID" not in text
    assert "# A defensive patch for DemoEditor" in text


def test_the_trainer_pushes(hub: LocalHub, client: Client, trained: Path, tmp_path: Path) -> None:
    """With `push_to_hub`; a second run renews the card and keeps what was written on it."""
    code = """
from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
model = get_peft_model(DemoEditor.from_pretrained(generator), GatedLoraConfig(r=2))
arguments = PatchTrainingArguments(
    out, adversary=Disrupting(steps=1), max_train_steps=1, cpu=True, disable_tqdm=True,
    push_to_hub=True, hub_model_id="from-training", hub_private_repo=True, hub_token="token-of-me",
)
PatchTrainer(model, DemoFaces(8, size=32), arguments).train()
"""
    client.run(code, generator=str(trained / "generator"), out=str(tmp_path / "out"))
    repo = hub.repos["me/from-training"]
    assert repo.private
    assert "# A standard patch for DemoEditor" in repo.files()["README.md"].decode()
    assert 'load_patch("me/from-training"' in repo.files()["README.md"].decode()
    assert not [name for name, data in repo.files().items() if b"token-of-me" in data or str(tmp_path).encode() in data]


def test_two_processes_push_once(hub: LocalHub, tmp_path: Path) -> None:
    """With checkpoints, validation and a tracker, and where the Hub fails: both leave, and the patch is there."""
    hub.repos.pop("me/together", None)
    done = forked_ranks(train_and_push, hub.url, tmp_path / "home", tmp_path / "patch", "tensorboard")
    for one in done:
        assert one.returncode == 0, one.stderr
        assert one.stdout.splitlines()[-1] == "together 2", one
    repo = hub.repos["me/together"]
    assert len(repo.commits) == 2
    weights = "adapter_model.safetensors"
    assert repo.files()[weights] == (tmp_path / "patch" / weights).read_bytes()
    with hub.faulty("/commit/", "status", 500):
        first, second = forked_ranks(train_and_push, hub.url, tmp_path / "home", tmp_path / "again", "tensorboard")
    (said,) = [line for line in first.stdout.splitlines() if line.startswith("OSError")]
    assert said.startswith(f"OSError: The patch is whole in {tmp_path / 'again'}, and was not pushed: ")
    assert f"loraguard push {tmp_path / 'again'} me/together" in said
    assert "OSError: The first process could not" in second.stdout
    assert [one.stdout.splitlines()[-1] for one in (first, second)] == ["together 2"] * 2
    assert (tmp_path / "again" / weights).is_file()

"""Pulling over HTTP from a local Hub: the patch that was pushed, or a clear word and nothing half done."""

from __future__ import annotations

import json
import shutil
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from hub_client import Client, HubError
from local_hub import Blob, LocalHub, Repo
from peft import PeftModel
from processes import forked
from safetensors.torch import load_file, save_file

from loraguard import load_patch
from loraguard.generators import DemoEditor
from loraguard.hub import describe_patch

PULL = "loraguard.hub.pull_patch(repo_id, target, **options)"
SETUP = """
import torch
PHOTO = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32), torch.ones(1, 5)
"""
LOAD = """
model = loraguard.load_patch(repo_id, **options)
result = model(*PHOTO).square().sum().item()
"""


@pytest.fixture(scope="session")  # a worker may come back to this file, and the Hub is the same still
def pushed(hub: LocalHub, client: Client, trained: Path) -> str:
    """A patch whose generator is on the Hub as well; the tag v1 is the patch as trained, main has other weights."""
    code = """
generator = DemoEditor.from_pretrained(folder)
generator.push_to_hub("me/base")
model = loraguard.load_patch(patch, generator)
result = loraguard.push_patch(model, "me/pulled", tag="v1").oid
with torch.no_grad():
    next(value for name, value in model.named_parameters() if "lora_B" in name).add_(0.1)
loraguard.push_patch(model, "me/pulled")
"""
    return client.run(SETUP + code, folder=str(trained / "generator"), patch=str(trained / "patch"))


def photo() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32), torch.ones(1, 5)


def load(client: Client, repo_id: str = "me/pulled", **options: object) -> float:
    return client.run(SETUP + LOAD, repo_id=repo_id, options=options)


def expected(trained: Path) -> float:
    model = load_patch(trained / "patch", DemoEditor.from_pretrained(str(trained / "generator")))
    with torch.no_grad():
        return model(*photo()).square().sum().item()


def test_generator_and_patch_in_one_call(hub: LocalHub, client: Client, trained: Path, pushed: str) -> None:
    """By tag and by commit; the branch has another one by now."""
    assert hub.repos["me/pulled"].tags == {"v1": pushed}
    config = json.loads(hub.repos["me/pulled"].files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/base"
    assert load(client, revision="v1") == load(client, revision=pushed) == pytest.approx(expected(trained), rel=1e-4)
    assert load(client) != pytest.approx(expected(trained), rel=1e-3)


def test_a_second_time_nothing_is_downloaded(hub: LocalHub, client: Client, pushed: str) -> None:
    client.empty_cache()
    load(client, revision="v1")
    asked = len(hub.requests)
    load(client, revision="v1")
    assert not [request for request in hub.requests[asked:] if "/lfs/" in request]


def test_stock_from_pretrained(client: Client, trained: Path, pushed: str) -> None:
    code = """
model = PeftModel.from_pretrained(DemoEditor.from_pretrained("me/base"), "me/pulled", revision="v1")
result = model(*PHOTO).square().sum().item()
"""
    assert client.run(SETUP + code) == pytest.approx(expected(trained), rel=1e-4)


def test_without_a_connection(hub: LocalHub, client: Client, pushed: str) -> None:
    """What was pulled once is there, by revision and by commit, patch and generator."""
    client.empty_cache()
    online = load(client, revision="v1")
    code = f"was, constants.ENDPOINT = constants.ENDPOINT, {hub.nowhere!r}\ntry:{textwrap.indent(LOAD, '    ')}"
    code = f"{SETUP}{code}finally:\n    constants.ENDPOINT = was\n"
    for revision in ("v1", pushed):
        assert client.run(code, repo_id="me/pulled", options={"revision": revision}) == online
    client.empty_cache()
    with pytest.raises(HubError, match=r"FileNotFoundError: me/pulled is not whole in the local cache"):
        client.run(code, repo_id="me/pulled", options={"revision": "v1"})


def test_hf_hub_offline(hub: LocalHub, client: Client, pushed: str) -> None:
    """In a fork of a process that had the variable when it imported; the second patch was never pulled."""
    client.empty_cache()
    online = load(client, revision="v1")
    places = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(client.home / "hub")}
    code = "import loraguard\nfrom huggingface_hub import constants\nassert constants.HF_HUB_OFFLINE\n"
    code += f"vars(constants).update({places!r})\n{SETUP}repo_id, options = 'me/pulled', {{'revision': 'v1'}}\n{LOAD}"
    code += "print(result)\nloraguard.load_patch('me/never')\n"
    asked = len(hub.requests)
    done = forked(exec, code)
    assert len(hub.requests) == asked
    assert float(done.stdout) == online, done.stderr
    assert "FileNotFoundError: me/never is not whole in the local cache" in done.stderr


def test_private(hub: LocalHub, client: Client, pushed: str, tmp_path: Path) -> None:
    hub.repos["me/hidden"] = Repo(True, {pushed: hub.repos["me/pulled"].commits[pushed]}, {"main": pushed})
    load(client, "me/hidden")
    for token in (False, "token-of-you", "token-of-nobody"):
        client.empty_cache()
        with pytest.raises(HubError, match=r"(FileNotFoundError|PermissionError): .*token"):
            load(client, "me/hidden", token=token)
    load(client, "me/hidden", token="token-of-me")


@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk(client: Client, pushed: str, tmp_path: Path, cached: bool) -> None:
    """In the cache, or where the patch is copied to."""
    options = {"repo_id": "me/pulled", "target": str(tmp_path / "pulled"), "options": {"revision": "v1"}}
    client.empty_cache()
    if cached:
        client.run(PULL, **options)
        shutil.rmtree(tmp_path / "pulled")
    code = f"""
import resource
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
try:
    {PULL}
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
"""
    what = f"patch could not be written to {tmp_path}" if cached else "download of me/pulled could not be written to"
    with pytest.raises(HubError, match=f"NotWrittenError: The {what}.*: File too large .* MB free on that disk"):
        client.run(code, **options)
    assert list(tmp_path.iterdir()) == []
    client.run(PULL, **options)


def test_a_private_one_from_the_cache_is_said(hub: LocalHub, client: Client, pushed: str) -> None:
    """The client takes it from there without a word, whatever the token; by commit it asks nobody."""
    hub.repos["me/cached"] = Repo(True, {pushed: hub.repos["me/pulled"].commits[pushed]}, {"main": pushed})
    client.empty_cache()
    load(client, "me/cached")
    assert not [one for one in client.warnings if "cache" in one]
    for token in (False, "token-of-you", "token-of-nobody"):
        for revision in (None, pushed):
            load(client, "me/cached", token=token, revision=revision)
            (said,) = [one for one in client.warnings if "cache" in one]
            assert said.startswith("me/cached was taken from the local cache ")
            assert "40" in said


def test_a_folder_has_no_revision(patch: Path, generator: DemoEditor) -> None:
    for call in (partial(load_patch, patch, generator), partial(describe_patch, patch)):
        with pytest.raises(ValueError, match="is a folder, which has no revision 'v1'"):
            call(revision="v1")


@pytest.mark.parametrize("name", ["x.y", "", "."])
def test_names_that_no_adapter_can_have(name: str, patch: Path, generator: DemoEditor) -> None:
    with pytest.raises(ValueError, match=f"adapter_name={name!r} must have letters and no dot"):
        load_patch(patch, generator, adapter_name=name)


@pytest.mark.parametrize(
    ("repo_id", "options", "said"),
    [
        ("me/no-generator", {}, r"FileNotFoundError: There is no generator me/no-generator: no such folder, and"),
        ("me/hidden-base", {"token": "token-of-you"}, r"FileNotFoundError: There is no generator me/hidden-base"),
        ("me/base", {"revision": "v9"}, r"FileNotFoundError: me/base on \S+ has no such branch, tag or commit: 'v9'"),
        ("no id", {}, r"FileNotFoundError: There is no generator no id: no such folder, and no id OWNER/NAME of the"),
    ],
)
def test_generators_that_are_not_there(
    hub: LocalHub, client: Client, pushed: str, repo_id: str, options: dict, said: str
) -> None:
    head = hub.repos["me/base"].branches["main"]
    hub.repos["me/hidden-base"] = Repo(True, {head: hub.repos["me/base"].commits[head]}, {"main": head})
    with pytest.raises(HubError, match=said) as caught:
        client.run("DemoEditor.from_pretrained(repo_id, **options)", repo_id=repo_id, options=options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 600


def test_a_patch_that_names_a_generator_that_is_not_there(client: Client, hub: LocalHub, pushed: str) -> None:
    files = hub.repos["me/pulled"].files()
    config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "me/gone"}
    renamed = {**files, "adapter_config.json": json.dumps(config).encode()}
    hub.repos["me/orphan"] = Repo(False)
    hub.repos["me/orphan"].commit(
        "main", {name: Blob(data, name.endswith(".safetensors")) for name, data in renamed.items()}
    )
    with pytest.raises(HubError, match=r"FileNotFoundError: There is no generator me/gone: "):
        load(client, "me/orphan")


def test_gated(hub: LocalHub, client: Client, pushed: str) -> None:
    commits = {pushed: hub.repos["me/pulled"].commits[pushed]}
    hub.repos["me/gated"] = Repo(False, commits, {"main": pushed}, gated=True)
    with pytest.raises(HubError, match=r"PermissionError: me/gated on http.* is gated: accept its terms there"):
        load(client, "me/gated", token="token-of-you")


def test_what_is_not_there(client: Client, pushed: str) -> None:
    with pytest.raises(HubError, match=r"FileNotFoundError: There is no me/nothing on http.* that you may see"):
        load(client, "me/nothing")
    with pytest.raises(HubError, match=r"FileNotFoundError: me/pulled .* has no such branch.*pulling revision 'v9'"):
        load(client, revision="v9")


@pytest.mark.parametrize("request_", ["GET /api/models/me/pulled", "GET /lfs/", "(GET|HEAD) /me/pulled/resolve"])
@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("status", 500, r"(FileNotFoundError|ConnectionError|OSError): "),
        ("status", 403, r"(FileNotFoundError|PermissionError): "),
        ("drop", 0, r"(FileNotFoundError|ConnectionError): "),
        ("half", 0, r"(FileNotFoundError|ConnectionError): "),
        ("page", 0, r"(FileNotFoundError|ConnectionError): "),
    ],
)
def test_faults_leave_no_folder(
    hub: LocalHub, client: Client, pushed: str, tmp_path: Path, request_: str, kind: str, status: int, said: str
) -> None:
    """Each is said with the repository's name; pulling again is whole."""
    client.empty_cache()
    options = {"repo_id": "me/pulled", "target": str(tmp_path / "pulled"), "options": {"revision": "v1"}}
    with hub.faulty(request_, kind, status), pytest.raises(HubError, match=said) as caught:
        client.run(PULL, **options)
    assert "me/pulled" in str(caught.value)
    assert len(str(caught.value)) <= 650
    assert list(tmp_path.iterdir()) == []
    client.run(PULL, **options)
    assert load_file(tmp_path / "pulled" / "adapter_model.safetensors")


def test_a_dropped_download_goes_on(hub: LocalHub, client: Client, trained: Path, pushed: str, tmp_path: Path) -> None:
    client.empty_cache()
    with hub.faulty("GET /lfs/", "half", times=1):
        client.run(PULL, repo_id="me/pulled", target=str(tmp_path / "pulled"), options={"revision": "v1"})
    weights = "adapter_model.safetensors"
    assert (tmp_path / "pulled" / weights).read_bytes() == (trained / "patch" / weights).read_bytes()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize(
    ("request_", "file"), [("GET /lfs/", "adapter_model"), ("GET .*config.json", "adapter_config")]
)
def test_another_hash(
    hub: LocalHub, client: Client, pushed: str, tmp_path: Path, links: bool, request_: str, file: str
) -> None:
    """A byte of a file is another one on the way: refused, out of the cache, and whole the next time."""
    client.empty_cache()
    target = str(tmp_path / "pulled")
    code = f"constants.HF_HUB_DISABLE_SYMLINKS = {not links}\ntry:\n    {PULL}\nfinally:\n" + (
        "    constants.HF_HUB_DISABLE_SYMLINKS = False\n"
    )
    options = {"repo_id": "me/pulled", "target": target, "options": {"revision": "v1"}}
    with (
        hub.faulty(request_, "flip"),
        pytest.raises(
            HubError, match=rf"ValueError: me/pulled/{file}\S+ is not what the Hub says that it is: its hash"
        ),
    ):
        client.run(code, **options)
    assert list(tmp_path.iterdir()) == []
    client.run(code, **options)


def test_a_pulled_folder_is_new_and_loads(client: Client, trained: Path, pushed: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "pulled"
    options = {"repo_id": "me/pulled", "target": str(target), "options": {"revision": "v1"}}
    client.run(PULL, **options)
    assert {path.name for path in target.iterdir()} >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(HubError, match=r"FileExistsError: .* exists and is not empty"):
        client.run(PULL, **options)
    loaded = load_patch(target, DemoEditor.from_pretrained(str(trained / "generator")))
    with torch.no_grad():
        assert loaded(*photo()).square().sum().item() == pytest.approx(expected(trained), rel=1e-4)


def test_pickles_and_paths_of_a_stranger(hub: LocalHub, client: Client, trained: Path, pushed: str) -> None:
    """No pickle is even downloaded, and a path that a stranger's patch names is not opened."""
    files = dict(hub.repos["me/pulled"].commits[pushed])
    weights = files.pop("adapter_model.safetensors")
    pickled = Repo(False)
    pickled.commit("main", {**files, "adapter_model.bin": weights})
    hub.repos["me/pickled"] = pickled
    asked = len(hub.requests)
    with pytest.raises(HubError, match=r"ValueError: me/pickled holds no adapter_model.safetensors.*any other pickle"):
        load(client, "me/pickled")
    assert not [request for request in hub.requests[asked:] if ".bin" in request]
    config = json.loads(files["adapter_config.json"].data)
    config["base_model_name_or_path"] = str(trained / "generator")
    text = Blob(json.dumps(config).encode(), False)
    pointing = Repo(False)
    pointing.commit("main", {**files, "adapter_model.safetensors": weights, "adapter_config.json": text})
    hub.repos["me/pointing"] = pointing
    with pytest.raises(HubError, match=r"ValueError: me/pointing is for DemoEditor, and does not say where"):
        load(client, "me/pointing")


# Without the Hub.


def test_other_weights_are_named(patch: Path, generator: DemoEditor) -> None:
    """And one can go on deliberately."""
    for change in (
        lambda g: g.main[0].weight.data.add_(1e-6),
        lambda g: g.half(),
        lambda g: g.main[1].bias.data.add_(1),
    ):
        other = DemoEditor(conv_dim=4, num_blocks=1)
        other.load_state_dict(generator.state_dict())
        change(other)
        with pytest.raises(
            ValueError, match=r"was made for a DemoEditor with weights [0-9a-f]{12}…, and this DemoEditor"
        ):
            load_patch(patch, other)
        assert not any("lora" in name for name in other.state_dict())
        assert isinstance(load_patch(patch, other, ignore_fingerprint=True), PeftModel)


def test_the_fingerprint_is_of_the_weights_alone(patch: Path, generator: DemoEditor) -> None:
    """Not of mode, of what asks for gradients, or of adapters that are on already; two patches on one generator."""
    generator.train().requires_grad_(False)
    model = load_patch(patch, generator)
    assert load_patch(patch, model, adapter_name="again") is model
    assert list(model.peft_config) == ["default", "again"]
    assert model.active_adapter == "again"
    assert not model.training
    model.merge_adapter()
    with pytest.raises(ValueError, match="or after merging"):
        load_patch(patch, model, adapter_name="third")


def test_another_architecture(patch: Path) -> None:
    wider = DemoEditor(conv_dim=8, num_blocks=1)
    with pytest.raises(ValueError, match="and this DemoEditor has"):
        load_patch(patch, wider)
    with pytest.raises(ValueError, match=r"has shape \(.*and this DemoEditor takes"):
        load_patch(patch, wider, ignore_fingerprint=True)


def test_a_local_base_is_found(patch: Path, trained: Path) -> None:
    assert isinstance(load_patch(patch), PeftModel)
    assert isinstance(load_patch(patch, trained / "generator"), PeftModel)


def test_a_base_that_is_not_named(patch: Path, trained: Path, tmp_path: Path) -> None:
    config = json.loads((patch / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (patch / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not say where its weights are; pass the generator"):
        load_patch(patch)
    config["provenance"]["generator"]["name"] = None
    (patch / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not say which of loraguard's networks"):
        load_patch(patch, trained / "generator")


def test_without_provenance_there_is_nothing_to_compare(patch: Path) -> None:
    config = json.loads((patch / "adapter_config.json").read_text())
    for provenance in (
        None,
        {},
        {"generator": "x"},
        {"generator": {"sha256": 5}, "kind": ["x"], "settings": 3, "data": 1},
    ):
        (patch / "adapter_config.json").write_text(json.dumps({**config, "provenance": provenance}))
        assert isinstance(load_patch(patch, DemoEditor(conv_dim=4, num_blocks=1)), PeftModel)


def test_broken_weights_are_refused_before_the_generator_is_touched(patch: Path, generator: DemoEditor) -> None:
    weights = patch / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value * torch.inf for name, value in tensors.items()}, weights)
    with pytest.raises(ValueError, match="holds"):
        load_patch(patch, generator, ignore_fingerprint=True)
    assert not any("lora" in name for name in generator.state_dict())
    shutil.rmtree(patch)
    with pytest.raises(FileNotFoundError):
        load_patch(patch, generator)

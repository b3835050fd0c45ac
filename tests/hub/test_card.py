"""The card: what it says of each kind of patch, and what of it a person wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_client import Client
from huggingface_hub import ModelCard
from local_hub import LocalHub
from peft import get_peft_model

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.describing import without_paths
from loraguard.generators import DemoEditor
from loraguard.hub import describe_patch, patch_card, push_patch, read_audit, read_patch
from loraguard.hub.audit import publishable
from loraguard.hub.card import PARTS, own_text


def config(kind: str | None, **more: object) -> GatedLoraConfig:
    stamp = {"class": "Stamp", "text": "AI"} if kind == "defensive" else None
    record = {"kind": kind, "generator": {"class": "StarGAN", "name": "stargan", "sha256": "9" * 64}}
    record |= {"settings": {"stamp": stamp, "learning_rate": 0.01}, "data": {"class": "CelebA", "images": 1000}}
    return GatedLoraConfig(r=8, provenance=record | more if kind else None, base_model_name_or_path="me/stargan")


@pytest.mark.parametrize(
    ("kind", "first", "said"),
    [
        ("standard", "# A standard patch for StarGAN", ["auditing", "not for\nediting photos of people", "**Limits**"]),
        ("defensive", "# A defensive patch for StarGAN", ['the words "AI"', "ships\nthe merged network", "**Limits**"]),
        (None, "# A patch for generator, not recorded", ["nothing is recorded"]),
    ],
)
def test_what_it_says(kind: str | None, first: str, said: list[str]) -> None:
    card = patch_card(config(kind), "1" * 64, where="me/patch")
    lines = [line for line in card.text.splitlines() if line and not line.startswith("<!--")]
    assert lines[0].startswith(first)
    for words in [*said, "1" * 64, "rank 8, alpha 2"]:
        assert words in card.text
    assert card.text.index("import loraguard") < card.text.index('PeftModel.from_pretrained(generator, "me/patch")')
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.base_model == "me/stargan"
    assert card.data.tags == ["gated-lora", "loraguard", *([kind] if kind else [])]
    if kind:
        assert json.loads(card.text.split("```json\n")[1].split("```")[0])["settings"]["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("extractor", "by"), [("corners", ""), ({"class": "CornerNetwork", "sha256": "8" * 64}, " --extractor FOLDER")]
)
@pytest.mark.parametrize("stamp", [None, {"class": "Stamp", "text": "AI"}])
def test_of_a_mark_it_says_how_it_is_read(stamp: dict | None, extractor: object, by: str) -> None:
    """And what nobody sees is not called visible, nor a stamp."""
    mark = {"class": "Mark", "message": "c0de", "extractor": extractor}
    text = patch_card(config("defensive", settings={"stamp": stamp, "mark": mark}), "1" * 64, where="me/patch").text
    assert f"`loraguard mark read IMAGES --patch me/patch{by}`" in text
    assert "the message `c0de`" in text
    marked = "marked, visibly and for software to read, as" if stamp else "marked, for software to read, as"
    assert marked in text
    assert ("carry the stamp and mark under" if stamp else "carry the mark under") in text


def test_licence_and_data_of_the_hub() -> None:
    ours = config(
        "standard", generator={"class": "X", "license": "mit"}, data={"class": "HubImages", "path": "me/photos"}
    )
    card = patch_card(ours, "1" * 64)
    assert (card.data.license, card.data.datasets) == ("mit", ["me/photos"])
    again = patch_card(ours, "1" * 64, earlier=str(card), license="apache-2.0")
    assert again.data.license == "apache-2.0"
    assert patch_card(ours, "1" * 64, earlier=str(again)).data.license == "apache-2.0"


def test_no_folder_is_a_base_model(tmp_path: Path) -> None:
    ours = config("standard")
    ours.base_model_name_or_path = str(tmp_path)
    card = patch_card(ours, "1" * 64)
    assert card.data.base_model is None
    assert str(tmp_path) not in str(card)


def test_the_same_again_is_the_same(trained: Path) -> None:
    patch = read_patch(trained / "patch")
    audit = read_audit(trained / "patch" / "audit", patch.sha256)
    card = str(patch_card(patch.config, patch.sha256, audit=audit))
    assert str(patch_card(patch.config, patch.sha256, audit=audit, earlier=card)) == card
    assert str(patch_card(patch.config, patch.sha256, earlier=card)) == card


def test_a_part_that_is_there_twice_is_there_once_afterwards() -> None:
    """As earlier versions left it where somebody had deleted a marker."""
    card = patch_card(config("standard"), "1" * 64)
    again = patch_card(config("standard"), "1" * 64, earlier=f"{card}\nMine.\n{card.text}").text
    assert again.count("# A standard patch") == again.count("## Training") == again.count("Mine.") == 1


def test_what_a_person_wrote_stays() -> None:
    card = patch_card(config("standard"), "1" * 64)
    before, patch, training = card.text.partition("<!-- loraguard: training")
    below = "Below, with `code` | and <!-- a comment -->."
    mine = f"Written on top.\n{before}\nBetween \\1 and \\g<0>.\n\n{patch}{training}\n{below}\n"
    data = card.data.to_dict()
    earlier = ModelCard(f"---\n{card.data.to_yaml()}\nlanguage: en\nmine: {{a: 1}}\n---\n{mine}")
    earlier.data.tags = [*data["tags"], "faces"]
    again = patch_card(config("defensive"), "2" * 64, earlier=str(earlier))
    for words in ("Written on top.", "Between \\1 and \\g<0>.", below):
        assert again.text.count(words) == 1
    assert again.text.index("Written on top.") < again.text.index("# A defensive") < again.text.index("Between")
    assert again.text.index("Between") < again.text.index("## Training") < again.text.index("Below")
    assert again.data.tags == ["gated-lora", "loraguard", "defensive", "faces"]
    assert (again.data.language, again.data.mine) == ("en", {"a": 1})
    assert "1" * 64 not in again.text
    assert "standard patch" not in again.text


def test_a_part_that_was_deleted_comes_back() -> None:
    card = patch_card(config("standard"), "1" * 64)
    without = str(card).split("<!-- loraguard: training")[0] + "Mine.\n"
    again = patch_card(config("standard"), "1" * 64, earlier=without).text
    assert again.index("# A standard patch") < again.index("## Training") < again.index("Mine.")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("marker", ["<!-- loraguard: {0}", "<!-- /loraguard: {0}"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_marker_that_was_deleted_doubles_nothing(part: str, marker: str, ends: str, trained: Path) -> None:
    """What a person wrote around the parts stays, and the card is as with the marker."""
    patch = read_patch(trained / "patch")
    audit = read_audit(trained / "patch" / "audit", patch.sha256)
    card = str(patch_card(patch.config, patch.sha256, audit=audit))
    for name in PARTS:
        card = card.replace(f"<!-- /loraguard: {name} -->\n", f"<!-- /loraguard: {name} -->\nMine after {name}.\n")
    lines = [line for line in card.splitlines() if not line.startswith(marker.format(part))]
    assert len(lines) == len(card.splitlines()) - 1
    again = patch_card(patch.config, patch.sha256, audit=audit, earlier=ends.join(lines)).text
    for words in ("# A defensive patch", "## Audit", "## Training", *(f"Mine after {name}." for name in PARTS)):
        assert again.count(words) == 1, words
    for name in PARTS:
        assert again.count(f"<!-- loraguard: {name} ") == again.count(f"<!-- /loraguard: {name} -->") == 1
    assert own_text(ends.join(lines)).split() == " ".join(f"Mine after {name}." for name in PARTS).split()


def test_a_part_without_an_end_is_said() -> None:
    card = str(patch_card(config("standard"), "1" * 64)).split("## Training")[0] + "Mine."
    with pytest.raises(ValueError, match=r"lost a marker of its part 'training'.* Put it back"):
        patch_card(config("standard"), "1" * 64, earlier=card)


@pytest.mark.parametrize("above", ["Words.\n\n", "# Words\n\n---\n\nMore: of them\n\n---\n\n", "<!-- x -->\n", "\n\n"])
def test_text_above_the_metadata_makes_no_second_block(above: str) -> None:
    first = patch_card(config("standard"), "1" * 64, license="mit")
    again = str(patch_card(config("standard"), "1" * 64, earlier=f"{above}{first}"))
    assert again.count("library_name: peft") == 1
    assert again.startswith("---\n")
    assert ModelCard(again).data.license == "mit"
    assert above.strip() in again
    assert again.count("# A standard patch") == 1


def test_a_card_that_is_not_in_utf_8_is_named(patch: Path, generator: DemoEditor) -> None:
    """Before a training that would end with it, too."""
    readme = patch / "README.md"
    readme.write_bytes("Größe".encode("latin-1"))
    said = "README.md is not in UTF-8"
    with pytest.raises(ValueError, match=said):
        push_patch(patch, "me/latin")
    with pytest.raises(ValueError, match=said):
        push_patch(patch, "me/latin", card=readme)
    model = get_peft_model(generator, GatedLoraConfig(r=2))
    with pytest.raises(ValueError, match=said):
        PatchTrainer(model, DemoFaces(4, size=16), PatchTrainingArguments(patch, cpu=True, disable_tqdm=True)).train()


def test_cards_of_others() -> None:
    """A card without parts goes below; a template that nobody has filled in goes; broken metadata is said."""
    again = patch_card(config("standard"), "1" * 64, earlier="# My card\n\nWords.\n")
    assert again.text.index("# A standard patch") < again.text.index("# My card")
    template = ModelCard.from_template(ModelCard("---\n{}\n---\n").data)
    assert own_text(str(patch_card(config("standard"), "1" * 64, earlier=str(template)))) == ""
    with pytest.raises(ValueError, match=r"metadata block of the earlier README\.md cannot be read"):
        patch_card(config("standard"), "1" * 64, earlier="---\ntags: [a\n---\ntext")


def test_figures_are_the_audits(trained: Path) -> None:
    """Table and model-index against audit.json itself."""
    patch = read_patch(trained / "patch")
    audit = read_audit(trained / "patch" / "audit", patch.sha256)
    card = patch_card(patch.config, patch.sha256, where="me/patch", audit=audit)
    found = json.loads((trained / "patch" / "audit" / "audit.json").read_text())
    main = [one for one in found["situations"] if one["role"] == "main"]
    rows = {(one["generator"], one["knowledge"]): one["metrics"] for one in main}
    for (generator, _), metrics in rows.items():
        dsr = metrics["dsr"]
        assert f"{dsr['mean']:.1%} ({dsr['low']:.1%} – {dsr['high']:.1%})" in card.text, generator
    assert card.text.count("| untouched |") == 3
    assert card.text.count("| defensive |") == 4
    assert "![The same photos in every situation, one a row](audit/grid.png)" in card.text
    leak = next(one for one in card.data.eval_results if one.metric_name.startswith("MSE, photo disrupting, leak"))
    assert leak.metric_value == round(rows["defensive", "leak"]["mse"]["mean"], 6)
    assert leak.metric_args["n"] == 4
    assert leak.task_type == "image-to-image"
    assert ModelCard(str(card)).data.model_name == "patch"
    assert all(sentence in card.text.replace("&lt;", "<") for sentence in found["verdict"])


def test_channels_and_flags_are_named(patch: Path) -> None:
    file = patch / "audit" / "audit.json"
    found = json.loads(file.read_text())
    situation = next(one for one in found["situations"] if one["knowledge"] == "leak")
    found["situations"] += [situation | {"channel": "jpeg:75", "flags": ["weak-attack"]}, situation | {"role": "check"}]
    file.write_text(json.dumps(found))
    read = read_patch(patch)
    text = patch_card(read.config, read.sha256, audit=read_audit(patch / "audit", read.sha256)).text
    assert "| defensive | disrupting, leak, then jpeg:75; flagged: weak-attack |" in text
    assert text.count("| defensive |") == 5
    assert "docs/audit-checks.md" in text


def test_results_of_others_stay(trained: Path) -> None:
    patch = read_patch(trained / "patch")
    audit = read_audit(trained / "patch" / "audit", patch.sha256)
    card = patch_card(patch.config, patch.sha256, audit=audit)
    metric = {"type": "fid", "value": 12.0}
    theirs = {"task": {"type": "image-to-image"}, "dataset": {"name": "Faces", "type": "faces"}, "metrics": [metric]}
    text = str(card).replace("model-index:\n", "", 1)
    data = ModelCard(str(card)).data.to_dict()
    data["model-index"][0]["results"].append(theirs)
    text = f"---\n{json.dumps(data)}\n---\n{card.text}"
    again = patch_card(patch.config, "2" * 64, earlier=text)
    assert [one.metric_type for one in again.data.eval_results] == ["fid"]
    both = patch_card(patch.config, patch.sha256, audit=audit, earlier=text)
    assert len(both.data.eval_results) == len(card.data.eval_results) + 1


@pytest.mark.parametrize("damage", ["missing", "text", "keys", "another"])
def test_audits_that_are_none(patch: Path, damage: str) -> None:
    file = patch / "audit" / "audit.json"
    sha256 = read_patch(patch).sha256
    if damage == "missing":
        (patch / "audit" / "grid.png").unlink()
    elif damage != "another":
        file.write_text("{" if damage == "text" else "{}")
    error = FileNotFoundError if damage == "missing" else ValueError
    said = {"missing": "There is no .*grid.png", "another": "is not of this patch: it is of defensive, generator"}
    with pytest.raises(error, match=said.get(damage, "is not what an audit writes")):
        read_audit(patch / "audit", "0" * 64 if damage == "another" else sha256)


def test_an_audit_is_published_without_paths(patch: Path) -> None:
    file, page = patch / "audit" / "audit.json", patch / "audit" / "report.html"
    found = json.loads(file.read_text())
    found["settings"]["data"]["root"] = "/home/ann & bob/celeba"
    file.write_text(json.dumps(found))
    page.write_text(page.read_text() + "<p>/home/ann &amp; bob/celeba</p>")
    plain = patch / "audit" / "report.md"
    plain.write_text(plain.read_text() + "/home/ann & bob/celeba")
    files = publishable(read_audit(patch / "audit", read_patch(patch).sha256))
    assert json.loads(files["audit/audit.json"]) == without_paths(found)
    assert not [name for name, data in files.items() if b"/home/ann" in data]
    assert files["audit/report.html"].endswith(b"<p>celeba</p>")
    assert files["audit/report.md"].endswith(b"\nceleba")
    assert files["audit/summary.csv"] == (patch / "audit" / "summary.csv").read_bytes()


def test_edits_survive_pushes(hub: LocalHub, client: Client, patch: Path) -> None:
    """Text on the Hub stays; text in the folder goes up with the first push, or when asked for."""
    readme = patch / "README.md"
    readme.write_text(readme.read_text() + "\nFrom the folder.\n")
    client.push(patch, "me/edited")
    repo = hub.repos["me/edited"]
    assert "From the folder." in repo.files()["README.md"].decode()
    edit = """
from huggingface_hub import HfApi, hf_hub_download
text = open(hf_hub_download("me/edited", "README.md"), encoding="utf-8").read()
text = (text + "\\nFrom the Hub.\\n").encode()
HfApi().upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="me/edited")
"""
    client.run(edit)
    commit = repo.branches["main"]
    assert client.push(patch, "me/edited") == commit
    assert any("has text of its own that me/edited has not" in one for one in client.warnings)
    client.push(patch, "me/edited", card=str(readme))
    text = repo.files()["README.md"].decode()
    assert "From the folder." in text
    assert "From the Hub." not in text


def test_invalid_metadata_is_said_before_anything_is_sent(hub: LocalHub, client: Client, patch: Path) -> None:
    (patch / "README.md").write_text((patch / "README.md").read_text().replace("license: apache-2.0", "license: [mit]"))
    with pytest.raises(Exception, match=r'ValueError: Invalid metadata in README.md.\n- "license" must be a string'):
        client.push(patch, "me/invalid")
    assert set(hub.repos["me/invalid"].files()) == {".gitattributes"}


def test_info(trained: Path) -> None:
    rows = describe_patch(trained / "patch")
    said = dict(rows)
    assert said["kind"] == "defensive"
    assert said["generator"] == "DemoEditor"
    assert said["they are at"] == str(trained / "generator")
    assert "text=AI" in said["stamp"]
    assert said["training data"].startswith("DemoFaces(images=24")
    assert [text for label, text in rows if label == "audit"] == json.loads(
        (trained / "patch" / "audit" / "audit.json").read_text()
    )["verdict"]

"""Hosting a generator beside its patches: pushing it, and what a patch's card then says."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel, get_peft_model

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.generators import StarGAN


@pytest.fixture
def pushed(monkeypatch, tmp_path) -> Path:
    """What arrives at the Hub, in a folder."""

    def upload(self, *, repo_id: str, folder_path: Path, **rest: object) -> str:
        Path(folder_path).rename(tmp_path / "repository")
        return f"https://huggingface.co/{repo_id}/commit/main"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **rest: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return tmp_path / "repository"


def test_a_pushed_generator_is_the_base_of_its_patches(pushed: Path, tmp_path: Path) -> None:
    generator = StarGAN(conv_dim=4, repeat_num=1)
    generator.push_to_hub("me/stargan")
    assert {file.name for file in pushed.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = StarGAN.from_pretrained(pushed)
    assert again.config == {key: value for key, value in generator.config.items() if key != "_name_or_path"}

    model = get_peft_model(generator, GatedLoraConfig(r=2))
    model.save_pretrained(tmp_path / "patch")
    card = ModelCard.load(tmp_path / "patch" / "README.md")
    assert card.data.base_model == "me/stargan"
    assert card.data.library_name == "peft"
    assert "base_model:adapter:me/stargan" in card.data.tags
    assert PeftModel.from_pretrained(again, tmp_path / "patch").peft_config["default"].r == 2


def test_the_trainers_card_names_it_too(pushed: Path, tmp_path: Path) -> None:
    generator = StarGAN(conv_dim=4, repeat_num=1)
    generator.push_to_hub("me/stargan")
    faces = [(torch.rand(3, 16, 16) * 2 - 1, torch.zeros(5)) for _ in range(2)]
    settings = PatchTrainingArguments(tmp_path / "out", max_train_steps=1, cpu=True, disable_tqdm=True)
    PatchTrainer(get_peft_model(generator, GatedLoraConfig(r=2)), faces, settings).train()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "me/stargan"


def test_a_generator_from_nowhere_names_no_base(tmp_path: Path) -> None:
    model = get_peft_model(StarGAN(conv_dim=4, repeat_num=1), GatedLoraConfig(r=2))
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert model.peft_config["default"].base_model_name_or_path is None


def test_a_generator_that_cannot_be_fetched(tmp_path: Path, monkeypatch) -> None:
    def fetch(repo_id: str, filename: str, **rest: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("loraguard.generators.published.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **rest: str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="me/stargan is neither in the local cache"):
        StarGAN.from_pretrained("me/stargan")

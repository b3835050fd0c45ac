"""Hosting a generator beside its patches: pushing it, and what a patch's card then says."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.generators import CelebaVAE, StarGAN, load_generator


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>", "It is a web page: the download"),
        (b"<html>Sign in</html>", "It is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08\x00 and so on", "compressed by gzip"),
        (b"", "is empty. Download or save it again"),
        (b"PK\x03\x04 and so on", "cannot be read as tensors alone"),
    ],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_what_lies_in_the_place_of_weights_is_told(content: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"200000-G.{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        StarGAN.from_checkpoint(file)


def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    state = StarGAN(**StarGAN.small).state_dict()
    torch.save(state, tmp_path / "pickled.safetensors")
    save_file(state, tmp_path / "safe.pth")
    for file in tmp_path.iterdir():
        loaded = StarGAN.from_checkpoint(file).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in state.items())


def test_objects_that_would_run_code_are_named_and_do_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    state = StarGAN(**StarGAN.small).state_dict()
    torch.save({"G": state, "hooks": Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"holds objects that would run code \(here builtins\.exec\)"):
        StarGAN.from_checkpoint(tmp_path / "bad.ckpt")
    torch.save(StarGAN(**StarGAN.small), tmp_path / "whole.ckpt")
    with pytest.raises(
        ValueError, match=r"\(here .*loraguard\.generators\..* and \d+ more\).* Save its state_dict anew"
    ):
        StarGAN.from_checkpoint(tmp_path / "whole.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_said_in_a_line(kind: torch.dtype, tmp_path: Path, caplog) -> None:
    """From a file of torch.save, and from a folder of save_pretrained: the network computes in float32 all the same."""
    network = CelebaVAE(**CelebaVAE.small)
    state = {name: value.to(kind) for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    network.to(kind).save_pretrained(tmp_path / "folder")
    for source in (tmp_path / "model.pt", tmp_path / "folder"):
        caplog.clear()
        loaded = load_generator("celeba_vae", source)
        assert all(torch.equal(value, state[name].float()) for name, value in loaded.state_dict().items())
        expected = [] if kind == torch.float32 else [f"weights in {str(kind)[6:]} are read as float32"]
        assert len(caplog.messages) == len(expected)
        assert all(words in said and str(source) in said for words, said in zip(expected, caplog.messages, strict=True))

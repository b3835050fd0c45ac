"""Similarity of images to text against transformers' own, and as a choice of success in an audit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from loraguard.audit import run_audit
from loraguard.audit.success import Success
from loraguard.commands.audit_settings import AuditSettings
from loraguard.data import DemoFaces
from loraguard.defenses import RandomNoise
from loraguard.generators import DemoEditor
from loraguard.metrics import ClipSimilarity

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=16)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=54, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, **small
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=4)
    CLIPModel(config).eval().save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_it_is_the_cosine_of_transformers(folder) -> None:
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    texts = ["a cat", "glasses", "a cat"]
    mean, deviation = (torch.tensor(getattr(CLIPImageProcessor.from_pretrained(folder), f"image_{of}"))[:, None, None]
                       for of in ("mean", "std"))  # fmt: skip
    given = tokenizer(texts, padding=True, return_tensors="pt")
    truth = model(pixel_values=((images + 1) / 2 - mean) / deviation, **given).logits_per_image.diagonal()
    truth = truth / model.logit_scale.exp()
    similarity = ClipSimilarity.from_pretrained(folder)
    torch.testing.assert_close(similarity(images, texts), truth, rtol=0, atol=1e-5)
    assert list(similarity.known) == ["a cat", "glasses"]


class Colours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + 1


def test_success_by_the_edit_that_was_asked_for() -> None:
    """The figure is that of each photo's own edit, and a defense succeeds where it is under the threshold."""
    directions = {
        name: row for name, row in zip(DemoEditor.conditions(torch.zeros(1, 5)), torch.randn(5, 3), strict=True)
    }
    clip = ClipSimilarity(Colours(), lambda texts: torch.stack([directions[text] for text in texts]))
    asked = {"defenses": {"noise-1": RandomNoise(0.1)}, "patches": {}, "clip": clip, "disable_tqdm": True}
    result = run_audit(DemoEditor(conv_dim=4), DemoFaces(6, size=16), success="clip:0.1", **asked)
    row = result["untouched", "no-leak"]
    assert torch.equal(row.values["dsr"], (row.values["clip"] < 0.1).to(row.values["dsr"]))
    assert Success("clip:0.2").words == "CLIP under 0.2"
    with pytest.raises(ValueError, match=r"needs clip=, from ClipSimilarity\.from_pretrained; --clip"):
        run_audit(DemoEditor(conv_dim=4), DemoFaces(2, size=16), success="clip:0.1", **{**asked, "clip": None})
    with pytest.raises(ValueError, match="needs a CLIP or SigLIP: --clip FOLDER"):
        AuditSettings(success="clip:0.2")

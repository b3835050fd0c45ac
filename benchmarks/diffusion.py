"""Protections against latent editors, and what adapters of the autoencoder leave of them.

    python benchmarks/diffusion.py celeba --weights ../shared/weights --output out/celeba
    python benchmarks/diffusion.py taef2 --weights ../shared/weights --output out/taef2
    python benchmarks/diffusion.py demo --output out/demo

Each audits protections on an untouched editor and on adapters of equal rank and steps: GATED_LORA trained by our step
on the encoder, the decoder or both (and the denoiser, where there is one), and CAT, trained on photos that PhotoGuard
protected. Photos are crafted on the untouched editor (no leak) and on the adapted one (leak). `celeba` decodes random
latents of btcvae, faces that are nobody's, and judges what was crafted on it on the four others, too (transfer).
Writes `table.md` and the audit, which goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.audit import AuditResult, run_audit, write_report
from loraguard.audit.situation import NO_CHANNEL
from loraguard.data import DemoFaces, collate
from loraguard.defenses import SDS, Defense, EditShield, Mist, PhotoGuard, TextureOnly
from loraguard.files import writable_folder
from loraguard.generators import TAEF2, CelebaVAE, DemoDiffusion, conditions_of, labels_of, layers_in
from loraguard.pixels import LEVELS_PER_UNIT, from_picture
from loraguard.training import PatchTrainer, PatchTrainingArguments
from loraguard.training.cat import cat_config, train_cat
from loraguard.tuner import GatedLoraConfig

KNOWLEDGE = (
    {"knowledge": "no-leak", "role": "main"}, {"knowledge": "leak", "role": "main"}, {"knowledge": "transfer"}
)  # fmt: skip
OTHERS = ("VAE", "betaB", "betaH", "factor")


class Photos(Dataset[dict[str, Tensor]]):
    """Images (N, 3, H, W) as a data set."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One photo."""
        return {"image": self.images[index]}


def faces_of_nobody(count: int, weights: Path, seed: int) -> Tensor:
    """Faces (N, 3, 64, 64) of random latents."""
    editor = CelebaVAE.from_checkpoint(weights / "btcvae_celeba.pt")
    with torch.no_grad():
        return editor.decode(torch.randn(count, 10, generator=torch.Generator().manual_seed(seed)))


def real_photos(count: int, size: int, seed: int) -> Tensor:
    """Random crops (N, 3, size, size) of photos of scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]
    stream, crops = torch.Generator().manual_seed(seed), []
    for i in range(count):
        picture = Image.fromarray(pictures[i % len(pictures)])
        picture = picture.resize([round(side * 1.5 * size / min(picture.size)) for side in picture.size])
        left, top = (int(torch.randint(side - size + 1, (), generator=stream)) for side in picture.size)
        crops.append(from_picture(picture.crop((left, top, left + size, top + size))))
    return torch.stack(crops)


def subjects(args: argparse.Namespace) -> tuple[Any, Any, Any, dict[str, nn.Module], list[str]]:
    """The editor, photos to train on and to audit on, other networks, and the parts to adapt."""
    parts = ["encoder", "decoder", "encoder+decoder"]
    if args.on == "celeba":
        editor: Any = CelebaVAE.from_checkpoint(args.weights / "btcvae_celeba.pt")
        others = {name: CelebaVAE.from_checkpoint(args.weights / f"{name}_celeba.pt") for name in OTHERS}
        made = [Photos(faces_of_nobody(n, args.weights, seed)) for seed, n in ((1, args.train), (2, args.photos))]
        return editor, *made, others, parts
    if args.on == "taef2":
        editor = TAEF2.from_checkpoint(args.weights / "taef2_encoder.pth")
        made = [Photos(real_photos(n, args.size, seed)) for seed, n in ((1, args.train), (2, args.photos))]
        return editor, *made, {}, parts
    editor = DemoDiffusion.pretrained()
    return editor, DemoFaces(args.train), DemoFaces(args.photos, split="test"), {}, [*parts, "denoiser"]


def protections(args: argparse.Namespace) -> dict[str, Defense]:
    """What is audited, at the budget."""
    eps, steps = args.levels / LEVELS_PER_UNIT, args.steps
    found: dict[str, Defense] = {"photoguard": PhotoGuard(eps, steps), "editshield": EditShield(eps, steps)}
    if args.on != "celeba":
        found["texture"] = TextureOnly(eps, steps, step_size=2.5 * eps / steps)
    if args.on == "demo":
        found |= {
            "mist": Mist(eps, steps, step_size=2.5 * eps / steps), "sds": SDS(eps, steps, step_size=2.5 * eps / steps)
        }  # fmt: skip
    return found


def protected(editor: nn.Module, photos: Dataset[Any], defense: Defense) -> Tensor:
    """All photos, as PhotoGuard protects them from the untouched editor."""
    batch = collate([photos[i] for i in range(len(photos))])  # type: ignore[arg-type]
    edit = next(iter(conditions_of(editor, labels_of(batch, generator=editor)).values()))
    return defense(editor, batch["image"], edit)


def adapters(args: argparse.Namespace, editor: Any, photos: Any, parts: list[str], out: Path) -> dict[str, Path]:
    """Train each adapter that is not there yet; their folders by name."""
    folders = {f"ours {part}": out / f"ours-{part}" for part in parts} | {"CAT": out / "cat"}
    eps = args.levels / LEVELS_PER_UNIT
    for name, folder in folders.items():
        if (folder / "adapter_model.safetensors").is_file():
            continue
        torch.manual_seed(0)
        if name == "CAT":
            model = get_peft_model(editor, cat_config(editor, args.rank))
            train_cat(model, Photos(protected(editor, photos, PhotoGuard(eps, args.steps))), steps=args.patch_steps)
            model.save_pretrained(folder)
        else:
            layers = layers_in(editor, name.removeprefix("ours "))
            model = get_peft_model(editor, GatedLoraConfig(r=args.rank, lora_alpha=8, target_modules=layers))
            settings = PatchTrainingArguments(
                folder, recipe="fast", adversary=PhotoGuard(eps, 3, step_size=eps / 2), train_batch_size=4,
                max_train_steps=args.patch_steps, edits_per_step=1, cpu=True,
            )  # fmt: skip
            PatchTrainer(model, photos, settings).train()
        model.unload()
    return folders


def table(result: AuditResult, names: list[str], defenses: list[str]) -> str:
    """MSE against what the untouched editor gives for the plain photo, with intervals."""
    rows = ["| protection | knowledge | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    wanted: list[dict[str, str]] = [{"knowledge": "none"}, {"knowledge": "noise"}]
    wanted += [{"defense": one, **how} for one in defenses for how in KNOWLEDGE]
    for what in wanted:
        cells = []
        for name in names:
            found = result.find(generator=name, channel=NO_CHANNEL, **what)
            mse = found[0].estimates["mse"] if found else None
            cells.append("" if mse is None else f"{mse.mean:.4f} [{mse.low:.4f}, {mse.high:.4f}]")
        if any(cells):
            rows.append(f"| {what.get('defense', '-')} | {what['knowledge']} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Read the settings, train, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("on", choices=["celeba", "taef2", "demo"])
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--levels", type=float, default=16.0, help="the budget, in levels of 255")
    parser.add_argument("--photos", type=int, default=24, help="to audit on")
    parser.add_argument("--train", type=int, default=200, help="photos to train adapters on")
    parser.add_argument("--steps", type=int, default=30, help="of protections")
    parser.add_argument("--patch-steps", type=int, default=200, help="of each adapter's training")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of real photos")
    parser.add_argument("--channel", action="append", default=[], help="a purifier, as autoencoder:taef2,FILE")
    args = parser.parse_args()
    out = writable_folder(args.output)
    editor, photos, held_out, others, parts = subjects(args)
    folders = adapters(args, editor, photos, parts, out)
    model: Any = None
    for name, folder in folders.items():
        key = name.replace(" ", "-").replace("+", "-and-")
        if model is None:
            model = PeftModel.from_pretrained(editor, folder, adapter_name=key)
        else:
            model.load_adapter(folder, adapter_name=key)
    names = list(model.peft_config)
    result = run_audit(
        model, held_out, defenses=protections(args),
        patches=dict.fromkeys(names), generators=others, channels=args.channel, success="noise:0.95",
        transfer=["untouched"] if others else (), output_dir=out / "audit",
    )  # fmt: skip
    write_report(result, out)
    shown = table(result, ["untouched", *names, *others], [*protections(args)])
    (out / "table.md").write_text(shown, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()

"""Protections against latent editors, and what adapters and purifiers leave of them: docs/diffusion-results.md.

    python benchmarks/diffusion.py celeba --weights ../shared/weights --work-dir work
    python benchmarks/diffusion.py taef2 --weights ../shared/weights --work-dir work --pictures FOLDER
    python benchmarks/diffusion.py demo --weights ../shared/weights --work-dir work

Each audits protections on an untouched editor and on adapters of equal rank: GATED_LORA trained by our step on the
encoder, the decoder, both, and the denoiser where there is one; and CAT, for as many steps and for about as much time.
Photos are crafted on the untouched editor (no leak), on the adapted one (leak) and on another network (transfer), and
one protection is also sent through purifiers. Its tables take the place of those of its name in the page. What is
found is kept in the work folder: with --minutes a piece ends early, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusion_page import adapters_table, comparison_table, protections_table, purifiers_table, transfer_table
from diffusion_subjects import SUBJECTS, Photos, Subject
from pages import fill_tables
from peft import PeftModel, get_peft_model
from pieces import counted, stop_after
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraguard.audit import AuditResult, run_audit, write_report
from loraguard.channels import published
from loraguard.data import collate
from loraguard.defenses import SDS, Defense, EditShield, Mist, PhotoGuard, TextureOnly
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import conditions_of, labels_of, layers_in
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.training import PatchTrainer, PatchTrainingArguments, adapter_config
from loraguard.tuner import GatedLoraConfig

PAGE = Path(__file__).parents[1] / "docs" / "diffusion-results.md"
BOTH = "ours-encoder-and-decoder"


def protections(args: argparse.Namespace) -> dict[str, Defense]:
    """What is audited, at the budget."""
    eps, steps = args.levels / LEVELS_PER_UNIT, args.steps
    size = 2.5 * eps / steps
    found: dict[str, Defense] = {"PhotoGuard": PhotoGuard(eps, steps), "EditShield": EditShield(eps, steps)}
    if args.on != "celeba":  # whose latents are ten numbers, which no texture has
        found["texture"] = TextureOnly(eps, steps, step_size=size)
    if args.on == "demo":
        found |= {"Mist": Mist(eps, steps, step_size=size), "SDS": SDS(eps, steps, step_size=size)}
    return found


def protected(network: nn.Module, photos: Any, defense: Defense, condition: dict[str, Tensor] | None = None) -> Tensor:
    """All photos, as a defense that is crafted on a network makes them and as they are published.

    Args:
        network: that it is crafted on.
        photos: a data set.
        defense: it.
        condition: what the network takes for one photo; by default the first of its own edits.
    """
    made = []
    for rows in torch.arange(len(photos)).split(32):
        batch = collate([photos[i] for i in rows.tolist()])
        if condition is None:
            edit = next(iter(conditions_of(network, labels_of(batch, generator=network)).values()))
        else:
            edit = {key: value.expand(len(rows), -1) for key, value in condition.items()}
        made.append(published(defense(network, batch["image"], edit), batch["image"]))
    return torch.cat(made)


def kept(folder: Path, make: Callable[[], Tensor]) -> Tensor:
    """Photos that an earlier run left in a folder, or that are made now and left there."""
    file = folder / "photos.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        images = make()
        with whole_files(writable_folder(folder)) as draft:
            save_file({"images": images.contiguous()}, draft / file.name)
    return load_file(file)["images"]


def training_of(args: argparse.Namespace, subject: Subject, key: str, folder: Path) -> tuple[Any, Any, Any]:
    """An adapter's settings for the trainer, its config, and the photos that it learns on."""
    eps = args.levels / LEVELS_PER_UNIT
    shared: dict[str, Any] = {
        "output_dir": folder, "train_batch_size": 4, "edits_per_step": 1, "cpu": True, "disable_tqdm": True,
        "resume_from_checkpoint": "latest",
    }  # fmt: skip
    if key.startswith("cat"):
        steps = args.patch_steps * (args.longer if key == "cat-long" else 1)
        rate = subject.cat_learning_rate
        settings = PatchTrainingArguments(
            recipe="cat", max_train_steps=steps, learning_rate=rate, adam_beta1=0.9, **shared
        )
        guard = PhotoGuard(eps, args.steps)
        photos = kept(folder.parent / "protected", lambda: protected(subject.editor, subject.train, guard))
        return settings, adapter_config(subject.editor, settings, args.rank), Photos(photos, subject.train)
    settings = PatchTrainingArguments(
        recipe="fast", adversary=PhotoGuard(eps, 3, step_size=eps / 2), max_train_steps=args.patch_steps,
        learning_rate=subject.learning_rate, **shared,
    )  # fmt: skip
    layers = layers_in(subject.editor, key.removeprefix("ours-").replace("-and-", "+"))
    return settings, GatedLoraConfig(r=args.rank, lora_alpha=8, target_modules=layers), subject.train


def train(args: argparse.Namespace, subject: Subject, key: str, folder: Path) -> dict[str, Any]:
    """Train an adapter that is not there yet; what it is and took."""
    about, spent = folder / "about.json", writable_folder(folder) / "seconds.json"
    if not about.is_file():
        settings, config, photos = training_of(args, subject, key, folder)
        torch.manual_seed(0)
        model = get_peft_model(subject.editor, config)
        try:
            with counted(spent):
                PatchTrainer(model, photos, settings).train()
            learnt = sum(one.numel() for one in model.parameters() if one.requires_grad)
        finally:
            model.unload()
        write_json(about, {"steps": settings.max_train_steps, "parameters": learnt})
    return {**json.loads(about.read_text(encoding="utf-8")), "seconds": json.loads(spent.read_text(encoding="utf-8"))}


def patched(editor: nn.Module, folders: dict[str, Path]) -> Any:
    """The editor with adapters from their folders."""
    model: Any = None
    for key, folder in folders.items():
        if model is None:
            model = PeftModel.from_pretrained(editor, folder, adapter_name=key)
        else:
            model.load_adapter(folder, adapter_name=key)
    return model


def audited(
    args: argparse.Namespace, subject: Subject, folders: dict[str, Path], out: Path
) -> tuple[AuditResult, AuditResult]:
    """All protections on all adapters; and one of them through purifiers, on two adapters."""
    common: dict[str, Any] = {"success": "noise:0.95", "adaptive_channels": False}
    defenses: dict[str, Any] = {**protections(args)}
    guard = defenses["PhotoGuard"]
    for name, (network, condition) in subject.elsewhere.items():
        made = partial(protected, network, subject.held_out, guard, condition)
        defenses[f"PhotoGuard, {name}"] = Photos(kept(out / "elsewhere", made))
    model = patched(subject.editor, folders)
    all_of_them = run_audit(
        model, subject.held_out, defenses=defenses, patches=dict.fromkeys(folders), others=subject.others,
        transfer=["untouched", BOTH, "cat", *subject.others] if subject.others else (),
        output_dir=out / "audit", **common,
    )  # fmt: skip
    write_report(all_of_them, out / "audit")
    model.unload()
    few = {key: folders[key] for key in (BOTH, "cat")}
    behind = run_audit(
        patched(subject.editor, few), subject.held_out, defenses={"PhotoGuard": guard}, patches=dict.fromkeys(few),
        channels=list(subject.purifiers.values()), output_dir=out / "purified", **common,
    )  # fmt: skip
    write_report(behind, out / "purified")
    return all_of_them, behind


def tables(
    args: argparse.Namespace, subject: Subject, trained: dict[str, Any], found: tuple[AuditResult, AuditResult],
    spent: Path,
) -> dict[str, str]:  # fmt: skip
    """Each table of the page by its heading."""
    main, behind = found
    keys, names = ["untouched", *trained], [*protections(args)]
    carried = [name for name in main.defenses if name not in names]
    minutes = json.loads(spent.read_text(encoding="utf-8")) / 60
    return {
        "settings": (
            f"{len(subject.held_out)} photos, {len(subject.train)} others to train on, {args.levels:g}/255, "
            f"{args.steps} steps, rank {args.rank}; learning rates {subject.learning_rate:g} (ours) and "
            f"{subject.cat_learning_rate:g} (CAT). {minutes:.0f} minutes of one core."
        ),
        "adapters": adapters_table(main, trained),
        "protections": protections_table(main, names, keys),
        "comparison": comparison_table(main, names, BOTH, [key for key in keys if key.startswith("cat")]),
        "transfer": transfer_table(
            main, carried, "PhotoGuard", ["untouched", *subject.others], ["untouched", BOTH, "cat", *subject.others]
        ),
        "purifiers": purifiers_table(behind, "PhotoGuard", subject.purifiers, ["untouched", BOTH, "cat"]),
    }


def main() -> None:
    """Read the settings, train, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("on", choices=SUBJECTS)
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps adapters and audits")
    parser.add_argument("--pictures", type=Path, help="a folder with scikit-learn's china.jpg and flower.jpg")
    parser.add_argument("--levels", type=float, default=16.0, help="the budget, in levels of 255")
    parser.add_argument("--photos", type=int, default=24, help="to audit on")
    parser.add_argument("--train", type=int, default=64, help="photos to train adapters on")
    parser.add_argument("--steps", type=int, default=30, help="of protections")
    parser.add_argument("--patch-steps", type=int, default=100, help="of each adapter's training")
    parser.add_argument("--longer", type=int, default=4, help="times as many steps of CAT take about our time")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--size", type=int, default=48, help="of real photos")
    parser.add_argument("--minutes", type=float, help="of this piece; by default as long as it takes")
    parser.add_argument("--no-page", action="store_true", help="print the tables, and leave the page as it is")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stop_after(args.minutes)
    out = writable_folder(args.work_dir / args.on)
    with counted(out / "seconds.json"):
        subject = SUBJECTS[args.on](args.weights, args.train, args.photos, args.size, args.pictures)
        keys = [f"ours-{part.replace('+', '-and-')}" for part in subject.parts] + ["cat", "cat-long"]
        folders = {key: out / key for key in keys}
        trained = {key: train(args, subject, key, folder) for key, folder in folders.items()}
        found = audited(args, subject, folders, out)
    made = tables(args, subject, trained, found, out / "seconds.json")
    for heading, table in made.items():
        print(f"{heading}\n\n{table}\n")
    if not args.no_page:
        fill_tables(PAGE, args.on, made.__getitem__)


if __name__ == "__main__":
    main()

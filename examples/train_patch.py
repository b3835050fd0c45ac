r"""Train a patch with the flags of diffusers' and PEFT's training scripts.

    accelerate launch examples/train_patch.py --generator stargan --checkpoint 200000-G.ckpt --data /data/celeba \
        --train_size 1000 --config examples/configs/paper_standard.yaml --output_dir out
    torchrun --standalone --nproc_per_node 2 examples/train_patch.py --cpu ...     # processes on CPUs
    accelerate launch --config_file examples/configs/multi_gpu.yaml examples/train_patch.py ...

Every field of `PatchTrainingArguments` is a flag of the same name. A YAML file (`--config`) gives any of them; flags
override it.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import get_peft_model

from loraguard import PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.cli.flags import flags_of
from loraguard.data import open_data, split_photos
from loraguard.defenses import DEFENSES, Mixture, needs_fitting
from loraguard.generators import load_generator
from loraguard.losses import FeatureEncoder, MMFALoss
from loraguard.training import adapter_config


def parser() -> argparse.ArgumentParser:
    """Flags of this script, and one for each field of `PatchTrainingArguments`."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", type=Path, help="YAML with any of the flags below")
    flags.add_argument("--generator", default="demo", help="by name: `loraguard info generators`")
    flags.add_argument("--checkpoint", help="official weights (a file), or a folder or Hub id of save_pretrained")
    flags.add_argument("--image_size", type=int, help="of the generator, where its weights do not tell")
    flags.add_argument("--data", default="demo", help="NAME, NAME:PATH, PATH or HUB_ID: `loraguard info data`")
    flags.add_argument("--split", help="of the data set's own")
    flags.add_argument("--train_size", type=int, help="photos to train on")
    flags.add_argument("--validation_size", type=int, default=16, help="held-out photos for --validation_steps")
    flags.add_argument("--rank", type=int, help="of the adapter; by default 8, or 16 with a stamp")
    flags.add_argument("--lora_alpha", type=float, help="of the adapter; by the recipe")
    flags.add_argument("--gate_type", help="of the adapter; scalar")
    flags.add_argument("--init", choices=("identity", "paper"), help="of the adapter; by the recipe")
    flags.add_argument("--stamp", help="a text: trains a defensive patch")
    flags.add_argument("--adversary", nargs="+", metavar="NAME[:WEIGHT]", help="`loraguard info defenses`; several mix")
    flags.add_argument("--eps", type=float, help="budget of --adversary, on images in [-1, 1]; 0.05")
    flags.add_argument("--attack_steps", type=int, help="steps of --adversary, each a fifth of the budget; 10")
    flags.add_argument("--loss", choices=("pixel", "mmfa"), default="pixel", help="mmfa adds features as in the paper")
    flags.add_argument("--encoder", action="append", help="in place of the paper's: a folder or a Hub id; repeatable")
    taken = {action.dest for action in flags._actions}
    for name, flag in flags_of(PatchTrainingArguments).items():
        about: dict[str, Any] = {"help": flag.help.replace("%", "%%"), "default": None}
        if name in taken:
            continue
        if flag.choices:
            flags.add_argument(f"--{name}", choices=flag.choices, **about)
        elif flag.kind is bool:
            flags.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **about)
        else:
            flags.add_argument(f"--{name}", type=flag.kind, metavar=flag.kind.__name__.upper(), **about)
    return flags


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags, over the YAML file, over the defaults."""
    flags = parser()
    file = flags.parse_args(argv).config
    if file is not None:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        known = {action.dest for action in flags._actions}
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 3)
                flags.error(f"{file}: there is no setting {name!r:.80}; near are {', '.join(near) or 'none'} (--help)")
        for name in ("adversary", "encoder"):  # one alone needs no list
            if isinstance(settings.get(name), str):
                settings[name] = [settings[name]]
        flags.set_defaults(**settings)
    given = flags.parse_args(argv)
    if not given.adversary and (given.eps is not None or given.attack_steps is not None):
        flags.error(
            "--eps and --attack_steps are of --adversary, and the recipe has its own; add --adversary disrupting"
        )
    return given


def adversary_of(flags: argparse.Namespace) -> Any:
    """The defense, or the weighted mixture, that `--adversary` names; None leaves it to the recipe."""
    if not flags.adversary:
        return None
    parts, taken = [], set()
    for word in flags.adversary:
        name, _, weight = word.partition(":")
        settings = {
            "eps": 0.05 if flags.eps is None else flags.eps,
            "steps": 10 if flags.attack_steps is None else flags.attack_steps,
        }
        known = inspect.signature(DEFENSES[name]).parameters
        taken |= set(known)
        parts.append((DEFENSES[name](**{k: v for k, v in settings.items() if k in known}), float(weight or 1)))
    for flag, setting, value in (("eps", "eps", flags.eps), ("attack_steps", "steps", flags.attack_steps)):
        if value is not None and setting not in taken:
            raise ValueError(f"--{flag} {value}: {' '.join(flags.adversary)} takes no {setting}; leave it out.")
    if len(parts) == 1:
        return parts[0][0]
    return Mixture(tuple(defense for defense, _ in parts), tuple(weight for _, weight in parts))


def fitted(adversary: Any, generator: torch.nn.Module, photos: Any, *, disable_tqdm: bool) -> Any:
    """The adversary; what of it has to be fitted is, to the untouched generator on the photos of the training."""
    if not needs_fitting(adversary):
        return adversary
    if isinstance(adversary, Mixture):
        parts = [fitted(one, generator, photos, disable_tqdm=disable_tqdm) for one in adversary.defenses]
        return replace(adversary, defenses=tuple(parts))
    return adversary.fit(generator, photos, disable_tqdm=disable_tqdm)


def loss_of(flags: argparse.Namespace) -> Any:
    """Pixel MSE, or the multi-modal feature alignment loss."""
    if flags.loss == "pixel" and not flags.encoder:
        return torch.nn.functional.mse_loss
    if not flags.encoder:
        return MMFALoss.paper()
    return MMFALoss([FeatureEncoder.from_pretrained(where) for where in flags.encoder])


def main(argv: list[str] | None = None) -> None:
    """Train; what cannot be is said in a line."""
    flags = parse(argv)
    if flags.output_dir is None:
        parser().error("--output_dir is needed")
    try:
        train(flags)
    except (OSError, ValueError, TypeError, KeyError, ImportError, FloatingPointError) as error:
        parser().exit(2, f"Error: {error.args[0] if isinstance(error, KeyError) else error}\n")


def train(flags: argparse.Namespace) -> None:
    """Put generator, data, loss and settings together, and train."""
    given = {
        field.name: value
        for field in fields(PatchTrainingArguments)
        if field.name not in ("stamp", "adversary") and (value := getattr(flags, field.name, None)) is not None
    }
    stamp = None if flags.stamp is None else Stamp(flags.stamp)
    arguments = PatchTrainingArguments(stamp=stamp, adversary=adversary_of(flags), **given)
    loss = loss_of(flags)

    size = {} if flags.image_size is None else {"size": flags.image_size}
    generator = load_generator(flags.generator, flags.checkpoint, **size)
    preprocess = getattr(generator, "transform", None)
    dataset = open_data(
        flags.data,
        split=flags.split,
        attributes=getattr(generator, "attributes", ()),
        transform=None if preprocess is None else preprocess(),
    )
    photos, held_out = split_photos(
        dataset,
        train_size=flags.train_size,
        test_size=flags.validation_size if arguments.validation_steps else None,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)
    adversary = fitted(arguments.adversary, generator, photos, disable_tqdm=arguments.disable_tqdm)
    arguments = replace(arguments, adversary=adversary)
    config = adapter_config(generator, arguments, flags.rank)
    own = {"lora_alpha": flags.lora_alpha, "gate_type": flags.gate_type}
    own["init_lora_weights"] = {None: None, "paper": "paper", "identity": True}[flags.init]
    config = replace(config, **{key: value for key, value in own.items() if value is not None})
    model = get_peft_model(generator, config)
    validation = held_out if arguments.validation_steps else None
    trainer = PatchTrainer(model, photos, arguments, loss=loss, validation_dataset=validation)
    result = trainer.train()
    if trainer.accelerator.is_main_process:
        trained, _ = trainer.model.get_nb_trainable_parameters()
        print(f"{len(result.log)} steps, {trained:,} parameters. Patch: {result.output_dir}")


if __name__ == "__main__":
    main()

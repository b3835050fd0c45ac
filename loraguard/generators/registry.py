"""Generators by the name that the command line takes, and where their weights may be; nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

from loraguard.registry import Registry

GENERATORS = Registry(
    "loraguard.generators",
    {
        "demo": "loraguard.generators.demo:DemoEditor",
        "stargan": "loraguard.generators.stargan:StarGAN",
        "attgan": "loraguard.generators.attgan:AttGAN",
        "hisd": "loraguard.generators.hisd:HiSD",
        "cyclegan": "loraguard.generators.cyclegan:CycleGAN",
        "unet_256": "loraguard.generators.unet:UNet",
        "unet_128": "loraguard.generators.unet:UNet",
        "demo_diffusion": "loraguard.generators.diffusion.demo:DemoDiffusion",
        "latent_autoencoder": "loraguard.generators.diffusion.autoencoder:LatentAutoencoder",
        "latent_editor": "loraguard.generators.diffusion.editors:LatentEditor",
        "instruct_editor": "loraguard.generators.diffusion.editors:InstructEditor",
        "inpainter": "loraguard.generators.diffusion.editors:Inpainter",
        "taef2": "loraguard.generators.taef2:TAEF2",
        "celeba_vae": "loraguard.generators.celeba_vae:CelebaVAE",
    },
)
"""Generators by the name that the command line takes; :func:`load_generator` says how an entry is loaded."""

WEIGHT_FILES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors")
"""Suffixes that a path to a file has and an id of the Hub has not; "me/stargan-1.5" is an id."""


def check_generator(name: str, checkpoint: str | Path | None = None) -> None:
    """Check that the name in a generator's spec is known, and that its checkpoint is there or may be on the Hub.

    Raises:
        ValueError: if there is no such name.
        FileNotFoundError: if there is no such checkpoint.

    Example:
        >>> check_generator("stargam")
        Traceback (most recent call last):
        ...
        ValueError: There is no 'stargam' among loraguard.generators: ... Did you mean 'stargan'?
    """
    GENERATORS.check(name.partition(":")[0])
    if checkpoint is None:
        return
    path = Path(checkpoint).expanduser()
    if not path.exists() and (path.suffix in WEIGHT_FILES or str(checkpoint).count("/") != 1):
        raise FileNotFoundError(
            f"There is no checkpoint {checkpoint}: neither a file, nor a folder, nor an id of the Hub."
        )

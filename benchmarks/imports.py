"""What each dependency costs at import: the rows of the table in docs/contributing.md.

    python benchmarks/imports.py      # five minutes of processor time; Linux

Each import is in a fresh process, after the interpreter's own start, with files in the system's cache: processor time,
which neighbours change little, the least of three runs, and by how much the process' memory grew. What comes along
counts with it (`brings` names which of the others do), but for torch, which has its own row: it is there beforehand.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[1]
REPEATS = 3
CODE = """
import json, os, sys, time
def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for name in sys.argv[2:]:
    __import__(name)
before, start = memory(), time.process_time()
for name in sys.argv[1].split():
    __import__(name)
took = time.process_time() - start
print(json.dumps({"ms": 1e3 * took, "MB": (memory() - before) / 1e6, "modules": sorted(sys.modules)}))
"""


@dataclass(frozen=True)
class Dependency:
    """An entry of install_requires.

    Attributes:
        modules: what loraguard imports of it.
        use: what for.
        when: loraguard imports it.
    """

    modules: str
    use: str
    when: str


DEPENDENCIES = {
    "torch": Dependency("torch", "networks, gradients, images as tensors", "with the first network or photo"),
    "torchvision": Dependency(
        "torchvision.models torchvision.transforms",
        "crops and resizing of photos; AlexNet, Inception and ResNet-50",
        "with the first photo or such a network",
    ),
    "peft": Dependency("peft", "what GATED_LORA is a tuner of", "with the first adapter"),
    "transformers": Dependency(
        "transformers.pytorch_utils transformers.optimization",
        "encoders of losses and their preprocessing, learning-rate schedules",
        "with PEFT, which needs it",
    ),
    "accelerate": Dependency(
        "accelerate", "devices, processes, mixed precision, checkpoints, trackers", "with a training or an audit"
    ),
    "safetensors": Dependency("safetensors.torch", "weights in files, without pickles", "with weights from a file"),
    "huggingface_hub": Dependency("huggingface_hub.hf_api", "the Hub, and cards", "with a name on the Hub"),
    "datasets": Dependency("datasets", "photos of the Hub, in parquet or on disk", "with `HubImages`"),
    "pyarrow": Dependency("pyarrow.parquet", "every image's figures as parquet", "as an audit is written or compared"),
    "pyyaml": Dependency("yaml", "settings of an audit, metadata of a card", "with `AuditSettings` or a card"),
    "torchmetrics": Dependency(
        "torchmetrics.functional.image torchmetrics.image.fid", "PSNR, SSIM, Fréchet distance", "with the first metric"
    ),
    "lpips": Dependency("lpips", "LPIPS, by its authors", "as an `LPIPS` is made"),
    "kornia": Dependency(
        "kornia.filters kornia.color kornia.enhance", "blurs, Lab, differentiable JPEG", "as such a channel is called"
    ),
    "pillow": Dependency("PIL.Image", "files of photos, stamps", "with the first photo"),
    "matplotlib": Dependency(
        "matplotlib.figure matplotlib.font_manager", "curves of a report; finds fonts", "with a report or a stamp"
    ),
    "jinja2": Dependency("jinja2", "the page of a report", "with a report"),
    "typer": Dependency("typer", "the command line", "with any command"),
    "lazy_loader": Dependency("lazy_loader", "nothing is imported before it is used", "with `import loraguard`"),
    "pydantic": Dependency(
        "pydantic.type_adapter pydantic.fields pydantic.functional_validators",
        "checks settings against annotations",
        "with settings of an audit, a training or a spec",
    ),
    "annotated-types": Dependency("annotated_types", "ranges in annotations of settings", "with any command"),
    "tqdm": Dependency("tqdm.auto", "progress bars", "with long work"),
    "numpy": Dependency("numpy", "tables, pictures to and from Pillow", "with torch, which needs it"),
    "scipy": Dependency("scipy.special", "the exact bound of a share", "with a bound of `StampReader`; and by lpips"),
}
"""By the name in setup.cfg."""


def declared() -> list[str]:
    """The names in install_requires of setup.cfg, in order."""
    setup = configparser.ConfigParser()
    setup.read(HOUSE / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].split("\n")
    return [re.split(r"[<>=!\[; ]", line)[0] for line in lines if line.strip() and not line.startswith("#")]


def measure(name: str, repeats: int = REPEATS) -> tuple[float, float, list[str]]:
    """Milliseconds, megabytes, and the others that came along."""
    modules = {other: about.modules.split()[0] for other, about in DEPENDENCIES.items() if other != name}
    there = _run(name)["modules"]
    brings = [other for other, module in modules.items() if module in there]
    runs = [_run(name, *(["torch"] if "torch" in brings else [])) for _ in range(repeats)]
    return min(run["ms"] for run in runs), min(run["MB"] for run in runs), brings


def _run(name: str, *beforehand: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CODE, DEPENDENCIES[name].modules, *beforehand]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HOUSE)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str) -> list[str]:
    """The cells of a dependency's row that are not measured."""
    about = DEPENDENCIES[name]
    return [f"`{name}`", about.use, about.when]


def main() -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("names", nargs="*", help="of setup.cfg; by default all")
    names = flags.parse_args().names or declared()
    print("| dependency | for | imported | ms | MB | brings |\n|---|---|---|---|---|---|")
    for name in names:
        milliseconds, megabytes, brings = measure(name)
        print("|", " | ".join([*row(name), f"{milliseconds:.0f}", f"{megabytes:.0f}", ", ".join(brings)]), "|")


if __name__ == "__main__":
    main()

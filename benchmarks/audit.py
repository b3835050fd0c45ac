"""What an audit costs: time grows with images and with situations, memory with neither.

    python benchmarks/audit.py      # three minutes on one idle core

Each row is an audit in a process of its own, of the embedded default with one standard patch: CPU seconds of the audit
alone, and the process' peak memory above what it had before the audit.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import get_peft_model
from training import memory

from loraguard import GatedLoraConfig, run_audit
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor

STEPS, BATCH = 10, 10


def one(images: int, defenses: int) -> None:
    """Print an audit's CPU seconds, situations and peak memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=8, init_lora_weights="paper"))
    made = {f"pgd-{number}": Disrupting(0.05 + 0.01 * number, steps=STEPS) for number in range(defenses)}

    def audit(faces: DemoFaces) -> int:
        return len(run_audit(model, faces, defenses=made, patches={"default": None}, batch_size=BATCH,
                             disable_tqdm=True).situations)  # fmt: skip

    audit(DemoFaces(BATCH, split="test", seed=1))  # loads what is loaded once
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = memory("VmRSS"), time.process_time()
    situations = audit(DemoFaces(images, split="test"))
    print(time.process_time() - started, situations, memory("VmHWM") - before)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, type=int, metavar=("IMAGES", "DEFENSES"), help=argparse.SUPPRESS)
    parser.add_argument("--images", nargs="+", type=int, default=[20, 40, 80, 160])
    parser.add_argument("--defenses", nargs="+", type=int, default=[1, 2, 4, 8])
    flags = parser.parse_args()
    if flags.one:
        one(*flags.one)
        return
    print("| images | defenses | situations | CPU s | ms an image and situation | peak memory above the start, MiB |")
    print("|---|---|---|---|---|---|")
    for images, defenses in [(n, 1) for n in flags.images] + [(flags.images[0], k) for k in flags.defenses[1:]]:
        command = [sys.executable, __file__, "--one", str(images), str(defenses)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds, situations, peak = map(float, done.stdout.split())
        each = 1000 * seconds / images / situations
        print(f"| {images} | {defenses} | {situations:.0f} | {seconds:.1f} | {each:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()

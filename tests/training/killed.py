"""Trains in forked processes that kill themselves; a script, as fork needs a process with one thread.

`python killed.py FOLDER KILLS` trains once to the end, then once more in a process that is killed (SIGKILL) again and
again and each time resumed, and prints what came of it as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from peft import get_peft_model

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor

STEPS = 24


def train(folder: Path) -> None:
    torch.manual_seed(3)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2, lora_dropout=0.1))
    arguments = PatchTrainingArguments(
        folder, adversary=Disrupting(steps=2), max_train_steps=STEPS, train_batch_size=2, learning_rate=1e-2,
        lr_scheduler="cosine", edits_per_step=2, checkpointing_steps=1, checkpoints_total_limit=2,
        resume_from_checkpoint="latest", cpu=True, disable_tqdm=True,
    )  # fmt: skip
    PatchTrainer(model, DemoFaces(11, size=16), arguments).train()


def in_a_process(folder: Path, kill_after: float | None) -> tuple[int, float]:
    """Train in a child, killed after so many seconds; its exit status and how long it lived."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        try:
            train(folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        while time.monotonic() - started < kill_after and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def main(folder: Path, kills: int) -> None:
    status, seconds = in_a_process(folder / "whole", None)
    assert status == 0
    draws = random.Random(0)
    moments: list[str] = []
    rounds = 1
    while len(moments) < kills:
        current = folder / f"killed-{rounds}"
        status, _ = in_a_process(current, draws.uniform(0.1, 0.4) * seconds)
        if status == 0:  # done before it was killed: once more from the start
            rounds += 1
            continue
        assert status == -signal.SIGKILL, status
        found = [path.name for path in current.glob(".*checkpoint-*.partial")]
        moments.append("writing" if found else "between")
    status, _ = in_a_process(folder / f"killed-{rounds}", None)
    assert status == 0
    print(json.dumps({"moments": moments, "rounds": rounds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

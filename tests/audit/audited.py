"""An audit for test_protocol.py, in forks: whole, killed at exactly chosen moments, and shared by two processes."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from moments import signal_at_change
from peft import get_peft_model

from loraguard import GatedLoraConfig
from loraguard.audit import run_audit
from loraguard.audit.store import Store
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.files import write_json
from loraguard.fingerprint import digest
from loraguard.generators import DemoEditor

WHOLE = 77
"""The exit code where a finding was written before the moment to be killed came."""


def audit_photos(store: Path, out: Path) -> None:
    """Figures and pictures of 8 photos go to `out`."""
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2, init_lora_weights="paper"))
    result = run_audit(
        model, DemoFaces(8, size=16), defenses=Disrupting(0.1, 2), patches={"default": None}, batch_size=2,
        seeds=[0, 1], output_dir=store, disable_tqdm=True,
    )  # fmt: skip
    pictures = {" ".join(key): digest({"": images}) for key, images in result.pictures.items()}
    write_json(out, {"figures": result.to_dict(), "pictures": pictures})


def audit_share(store: Path, outs: Path) -> None:
    """What this process finds the whole to be goes to a file of its own."""
    audit_photos(store, outs / f"{os.environ['RANK']}.json")


def killed_before_a_change(store: Path, nth: int) -> None:
    """Before the n-th change to files that this process' first finding makes; or else right after all of them."""
    write = Store.write

    def first(self: Store, *args: Any) -> None:
        signal_at_change(signal.SIGKILL, nth)
        write(self, *args)
        os._exit(WHOLE)

    Store.write = first  # type: ignore[method-assign]
    audit_photos(store, store.with_name("none.json"))

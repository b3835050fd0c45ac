"""An audit for test_protocol.py, in forks: whole, killed at exactly chosen moments, and shared by two processes."""

import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from moments import signal_at_change
from peft import get_peft_model

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run, run_audit, write_report
from loraguard.audit.plan import Job
from loraguard.audit.store import Store
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.files import write_json
from loraguard.fingerprint import digest
from loraguard.generators import DemoEditor

WHOLE = 77
"""The exit code where a finding was written before the moment to be killed came."""


def audit_of(store: Path, photos: int = 6) -> AuditResult:
    """Of some photos, in batches of two."""
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2, init_lora_weights="paper"))
    return run_audit(
        model, DemoFaces(photos, size=16), defenses=Disrupting(0.1, 2), patches={"default": None}, batch_size=2,
        seeds=[0, 1], output_dir=store, disable_tqdm=True,
    )  # fmt: skip


def audit_photos(store: Path, out: Path) -> None:
    """Figures and pictures go to `out`."""
    result = audit_of(store)
    pictures = {" ".join(key): digest({"": images}) for key, images in result.pictures.items()}
    write_json(out, {"figures": result.to_dict(), "pictures": pictures})


def probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What probes find is computed by the first audit from here on; later ones, of the same photos, write it again."""
    for name in ("probe_generator", "probe_defense", "probe_leak"):
        probe, found = getattr(run, name), {}

        def once(*args: Any, probe: Callable[..., Any] = probe, found: dict[str, Any] = found) -> Any:
            of = str([one for one in args if isinstance(one, (str, Job))])
            if of not in found:
                made = probe(*args)
                found[of] = made if isinstance(made, tuple) else list(made)
            return found[of]

        monkeypatch.setattr(run, name, once)


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


def audited_on_full_disks(store: Path, photos: int, sizes: Sequence[int]) -> None:
    """The same audit and its report, again and again, with files of at most so many bytes; what is said is printed."""
    probed_once(pytest.MonkeyPatch())
    for size in (*sizes, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            write_report(audit_of(store, photos), store)
            said = "written"
        except OSError as error:
            said = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(size, said, [file.relative_to(store).as_posix() for file in store.rglob(".*")])

"""What only a GPU can show of the trainer and the audit; by hand, where there is one: `python tests/check_gpu.py`.

Every precision trains a patch that works, on the GPU and loaded on a CPU; resumed runs go on;
an audit agrees with that of a CPU.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model

from loraguard import GatedLoraConfig
from loraguard.commands.audit import audit_by_settings
from loraguard.commands.audit_settings import AuditSettings
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.stamp import Stamp
from loraguard.training import PatchTrainer, PatchTrainingArguments, TrainingResult, validate

DEVICE, STEPS = "cuda", 60
DATA = DemoFaces(64)


def train(folder: Path, **settings: Any) -> tuple[TrainingResult, PeftModel]:
    """A patch of the embedded network, in a fresh Accelerate."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=8))
    given = {"max_train_steps": STEPS, "disable_tqdm": True, **settings}
    result = PatchTrainer(model, DATA, PatchTrainingArguments(folder, **given)).train()
    return result, model


def worth(model: PeftModel, device: str, stamp: Stamp | None) -> dict[str, float]:
    """What `validate` finds on photos that were not trained on."""
    model = copy.deepcopy(model).to(device).eval()
    held_out = DemoFaces(16, split="test")
    batch = collate([held_out[i] for i in range(16)])
    condition = next(iter(model.get_base_model().conditions(batch["labels"].to(device)).values()))
    found, _ = validate(model, batch["image"].to(device), condition, adversary=Disrupting(), stamp=stamp, seed=0)
    return found


def check_precision(folder: Path, **settings: Any) -> None:
    """Losses fall, nothing but the adapter's own float32 is stored, and a CPU finds what the GPU does."""
    started = time.perf_counter()
    result, model = train(folder, **settings)
    seconds = time.perf_counter() - started
    losses = [entry["loss_adversarial"] for entry in result.log if not entry.get("skipped")]
    first, last = (sum(some) / len(some) for some in (losses[:5], losses[-5:]))
    assert len(losses) > STEPS - 8, f"too many steps were skipped: {result.log}"
    assert last < 0.8 * first, f"{settings}: the adversarial loss went from {first} to {last}"
    assert all(p.dtype == torch.float32 for p in model.parameters())
    loaded = PeftModel.from_pretrained(DemoEditor.pretrained(), folder)
    found = [worth(one, device, settings.get("stamp")) for one, device in ((model, DEVICE), (loaded, "cpu"))]
    rates, similarity = ([round(one[name], 2) for one in found] for name in ("no_leak_dsr", "clean_psnr"))
    print(f"{settings}: {seconds:.1f} s, loss {first:.4f} to {last:.4f}; {DEVICE} and cpu: no-leak DSR {rates}, clean "
          f"PSNR {similarity}", flush=True)  # fmt: skip
    assert max(rates) <= 0.2, "a trained patch must undo the defense"
    assert abs(similarity[0] - similarity[1]) < 0.5


def check_resumption(folder: Path, **settings: Any) -> None:
    """A run that goes on from a checkpoint logs what the whole run logged, up to a GPU's order of additions."""
    whole, _ = train(folder, checkpointing_steps=10, max_train_steps=20, **settings)
    for name in ("adapter_model.safetensors", "training_log.json"):
        (folder / name).unlink()
    resumed, _ = train(
        folder, checkpointing_steps=10, max_train_steps=20, resume_from_checkpoint=folder / "checkpoint-10", **settings
    )
    assert len(resumed.log) == 20
    for one, other in zip(whole.log, resumed.log, strict=True):
        for name in ("loss_clean", "loss_adversarial"):
            assert abs(one[name] - other[name]) <= 0.02 * one[name], f"{settings}, step {one['step']}: {one}, {other}"
    print(f"{settings}: resumed", flush=True)


def check_audit(folder: Path) -> None:
    """The same audit on both devices."""
    found = {}
    for device in ("auto", "cpu"):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = AuditSettings(defenses={"pgd": "disrupting"}, images=20, fit_images=1, checks=0, device=device)
        started = time.perf_counter()
        audit_by_settings(settings, folder / device, say=lambda _: None, disable_tqdm=True)
        seconds = time.perf_counter() - started
        audit = json.loads((folder / device / "audit.json").read_text())
        found[device] = {
            (s["generator"], s["knowledge"], s.get("defense"), name): value["mean"]
            for s in audit["situations"]
            for name, value in s["metrics"].items()
        }
        print(f"audit, device={device!r}: {seconds:.1f} s, {len(found[device])} figures", flush=True)
    assert found["auto"].keys() == found["cpu"].keys()
    rates = [key for key in found["cpu"] if key[-1] == "dsr"]
    assert rates
    for key in rates:
        assert abs(found["auto"][key] - found["cpu"][key]) <= 0.1, f"{key}: {found['auto'][key]}, {found['cpu'][key]}"
    print(f"audit: {len(rates)} success rates agree", flush=True)


CHECKS = {
    "no": lambda folder: check_precision(folder, mixed_precision="no"),
    "bf16": lambda folder: check_precision(folder, mixed_precision="bf16"),
    "fp16": lambda folder: check_precision(folder, mixed_precision="fp16"),
    "compile": lambda folder: check_precision(folder, mixed_precision="bf16", torch_compile=True),
    "stamp": lambda folder: check_precision(folder, mixed_precision="bf16", stamp=Stamp("AI"), max_train_steps=200),
    "resume": lambda folder: check_resumption(folder, mixed_precision="no"),
    "resume-fp16": lambda folder: check_resumption(folder, mixed_precision="fp16"),
    "audit": check_audit,
}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", default=list(CHECKS), help=f"some of {', '.join(CHECKS)}; all by default")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here; everything else is tested by `python -m pytest`.")
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    failed = []
    for name in flags.checks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                CHECKS[name](Path(folder))
            except Exception as error:  # the others are still worth their minutes
                failed.append(name)
                print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

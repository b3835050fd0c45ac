"""What the whole demo must show, read off its audit.json; CI calls this after `loraguard demo`."""

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    audit = json.loads(Path(path).read_text(encoding="utf-8"))
    mean = {
        (s["generator"], s["knowledge"], metric): value["mean"]
        for s in audit["situations"]
        if s["role"] == "main"
        for metric, value in s["metrics"].items()
    }
    assert audit["settings"]["n"] >= 100
    assert mean["untouched", "no-leak", "dsr"] >= 0.90, "the defense must work on the untouched generator"
    assert mean["untouched", "noise", "dsr"] <= 0.05, "random noise must not"
    assert mean["standard", "no-leak", "dsr"] <= 0.05, "the standard patch must undo the defense"
    assert mean["standard", "clean", "psnr"] >= 30, "and keep clean outputs"
    for photo in ("clean", "noise", "no-leak", "leak"):
        assert mean["defensive", photo, "stamp_rate"] >= 0.99, f"the stamp must be on every output: {photo}"
    for photo in ("clean", "noise", "no-leak"):
        assert mean["untouched", photo, "stamp_rate"] <= 0.01, f"and on none of the untouched generator's: {photo}"
    print("the demo shows what it must")


if __name__ == "__main__":
    main(sys.argv[1])

"""The tests' end of the process in which the local Hub is the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_hub import LocalHub
from processes import PATIENCE


class HubError(Exception):
    """What went wrong in the client's process: "Type: message"."""


class Client:
    """A process in which loraguard believes that the local Hub is the Hub."""

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.warnings: list[str] = []
        script = Path(__file__).with_name("client_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(),
            text=True,
        )

    def environment(self, **more: str) -> dict[str, str]:
        ours = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "token-of-me",
            "HF_HUB_ETAG_TIMEOUT": str(PATIENCE),  # ten seconds are too few where the machine is busy
            "HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE),
            "OMP_NUM_THREADS": "1",
        }
        return {**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **ours, **more}

    def run(self, code: str, **values: Any) -> Any:
        """Run code with these names set; gives its `result`.

        Raises:
            HubError: for what the code raises.
        """
        assignments = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"code": assignments + code}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.warnings = answer["warnings"]
        if "error" in answer:
            error = HubError(f"{answer['error']}: {answer['message']}")
            error.__cause__ = Exception(answer["trace"])
            raise error
        return answer["result"]

    def push(self, patch: Path, repo_id: str, **options: Any) -> str:
        """Push a folder; gives the commit."""
        code = "result = loraguard.push_patch(patch, repo_id, **options).oid"
        return self.run(code, patch=str(patch), repo_id=repo_id, options=options)

    def empty_cache(self) -> None:
        shutil.rmtree(self.home / "hub", ignore_errors=True)

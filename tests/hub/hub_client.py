"""The tests' end of the process in which the local Hub is the Hub."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

from client_process import serve
from local_hub import LocalHub
from processes import PATIENCE, Fork


class HubError(Exception):
    """What went wrong in the client's process: "Type: message"."""


class Client:
    """A process in which loraguard believes that the local Hub is the Hub."""

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.warnings: list[str] = []
        self.connection, theirs = multiprocessing.Pipe()
        self.process = Fork(serve, theirs, self.environment())
        theirs.close()  # so that its end is seen here

    def environment(self) -> dict[str, str]:
        """The variables that make the local Hub the Hub; no others whose names begin with HF_ are there."""
        return {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "token-of-me",
            "HF_HUB_ETAG_TIMEOUT": str(PATIENCE),  # ten seconds are too few where the machine is busy
            "HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE),
        }

    def close(self) -> None:
        """Have the process end."""
        self.connection.close()
        self.process.wait()

    def run(self, code: str, **values: Any) -> Any:
        """Run code with these names set; gives its `result`.

        Raises:
            HubError: for what the code raises.
        """
        assignments = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        self.connection.send(assignments + code)
        answer = self.connection.recv()
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

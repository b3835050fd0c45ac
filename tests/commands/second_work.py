"""What the second processes of `test_side_by_side.py` do; in a module of its own, as they have to import it."""

import os
import signal
import sys
import time
import warnings

from loraguard.commands.side_by_side import Sender


def work(first: Sender, what: str) -> None:
    if what == "answer":
        print("not to be seen")
        torch = sys.modules.get("torch")
        first.send((os.getpid(), torch.get_num_threads() if torch else os.environ["OMP_NUM_THREADS"]))
        warnings.warn("mind the gap", FutureWarning, stacklevel=1)
        first.send(2 * first.receive())
    if what == "fail":
        raise ValueError("eps=5 is too much.")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        first.send("waiting")
        while True:
            time.sleep(60)

"""Runs what the tests send it, in a process whose environment names the local Hub before anything is imported.

A line in is JSON with "code"; a line out is JSON with the code's `result`, its warnings, or the error. Waiting between
the client's own retries is left out.
"""

import json
import sys
import time
import traceback
import warnings
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from peft import PeftModel, get_peft_model

import loraguard
from loraguard.generators import DemoEditor

NAMES: dict[str, Any] = {
    "huggingface_hub": huggingface_hub,
    "constants": constants,
    "PeftModel": PeftModel,
    "get_peft_model": get_peft_model,
    "loraguard": loraguard,
    "DemoEditor": DemoEditor,
}


def answer(code: str) -> dict[str, Any]:
    scope = dict(NAMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(code, scope)
            found = {"result": scope.get("result")}
        except Exception as error:
            found = {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
    return {**found, "warnings": [str(one.message) for one in caught]}


if __name__ == "__main__":
    time.sleep = lambda seconds: None  # type: ignore[assignment]
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line)["code"])) + "\n")
        out.flush()

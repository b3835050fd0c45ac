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
from loraguard.generators import DemoEditor, StarGAN

time.sleep = lambda seconds: None  # type: ignore[assignment]
names: dict[str, Any] = {
    "huggingface_hub": huggingface_hub,
    "constants": constants,
    "PeftModel": PeftModel,
    "get_peft_model": get_peft_model,
    "loraguard": loraguard,
    "DemoEditor": DemoEditor,
    "StarGAN": StarGAN,
}
out = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    scope = dict(names)
    answer: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(json.loads(line)["code"], scope)
            answer["result"] = scope.get("result")
        except Exception as error:
            answer |= {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
    answer["warnings"] = [str(one.message) for one in caught]
    out.write(json.dumps(answer) + "\n")
    out.flush()

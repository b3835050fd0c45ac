"""Runs what the tests send it, in a fork whose `huggingface_hub` has read an environment that names the local Hub.

Code comes in; its `result`, its warnings, or the error go out. Waiting between the client's own retries is left out.
"""

import importlib
import os
import time
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
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


def serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Until the other end is closed."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(environment)
    importlib.reload(constants)  # in which huggingface_hub looks things up as it needs them, but for these two:
    huggingface_hub.hf_api.api.endpoint = constants.ENDPOINT
    huggingface_hub.utils.disable_progress_bars()
    time.sleep = lambda seconds: None  # type: ignore[assignment]
    while True:
        try:
            code = connection.recv()
        except EOFError:
            return
        connection.send(answer(code))

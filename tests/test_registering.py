"""Whoever imports loraguard and then PEFT, in whatever order and thread, finds GATED_LORA there.

The order of events is made by a stand-in for PEFT, a small package that says where it is and waits to be told to go on;
that it holds for PEFT itself is seen in processes of their own.
"""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from peft import get_peft_model
from torch import nn

import loraguard
from loraguard import GatedLoraConfig

PATIENCE = 1200  # seconds, against a hang alone

REAL = {
    "loraguard first": """
        import loraguard
        assert "peft" not in sys.modules
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(eval, ("__import__('peft.tuners.lora').PeftType('GATED_LORA').value",)) == "GATED_LORA"
        assert "peft" not in sys.modules
        import peft
        ours = {name for name in sys.modules if name.startswith("loraguard")}
        assert ours == {
            "loraguard", "loraguard._registering", "loraguard.tuner", "loraguard.tuner.registration",
            "loraguard.tuner.peft_loaders", "loraguard.tuner.peft_parts",
        }
        registered()
        assert type(peft.__spec__.loader) is type(sys.modules["json"].__spec__.loader)
        assert peft.__loader__ is peft.__spec__.loader
    """,
    "PEFT first": """
        import peft
        import loraguard
        registered()
    """,
    "in two threads, PEFT in one and the tuner in the other": """
        import loraguard
        threads = [
            threading.Thread(target=lambda: __import__("peft") and registered()),
            threading.Thread(target=lambda: __import__("loraguard.tuner.model") and registered()),
            threading.Thread(target=lambda: loraguard.GatedLoraConfig() and registered()),
            threading.Thread(target=lambda: [importlib.util.find_spec("peft") for _ in range(100)]),
        ]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        registered()
    """,
    "in a child process that is given a config": """
        with multiprocessing.get_context("fork").Pool(1) as pool:
            there = "sorted({'loraguard', 'peft'} & set(__import__('sys').modules))"
            assert pool.apply(eval, (there,)) == []
            import loraguard
            assert pool.apply(str, (loraguard.GatedLoraConfig(r=3).peft_type,)) == "PeftType.GATED_LORA"
            assert pool.apply(type, (loraguard.GatedLoraConfig(r=3),)) is loraguard.GatedLoraConfig
    """,
    "by a config that was pickled": """
        with open(sys.argv[1] + "/config.pickle", "rb") as file:
            config = pickle.load(file)
        from peft import PeftModel, PeftType
        assert config.peft_type is PeftType.GATED_LORA
        PeftModel.from_pretrained(nn.Sequential(nn.Conv2d(3, 3, 1)), sys.argv[1])
    """,
}
PREAMBLE = """
import importlib.util, multiprocessing, pickle, sys, threading
from torch import nn
failures = []
threading.excepthook = lambda args: failures.append(args)
def registered():
    peft = sys.modules["peft"]
    member = peft.PeftType("GATED_LORA")
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft import PeftConfig, get_peft_config
    assert PEFT_TYPE_TO_TUNER_MAPPING[member].__name__ == "GatedLoraModel"
    assert get_peft_config({"peft_type": "GATED_LORA", "task_type": None}).gate_type == "scalar"
    assert PeftConfig.from_peft_type(peft_type="GATED_LORA", r=3).r == 3
if __name__ == "__main__":
"""


def run(code: str, *path: Path) -> str:
    """What a fresh interpreter prints; it fails where the code does, in any thread."""
    paths = f"import sys; sys.path[:0] = {[str(one) for one in path]}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


EACH = """
import gc, importlib, json, os, runpy, sys, traceback
gc.disable()
import accelerate, huggingface_hub.hf_file_system, torch, torch._dynamo, torch.testing, torchvision, transformers
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, convert_slow_tokenizer
from transformers.integrations import deepspeed
from transformers.models.bloom import modeling_bloom
for extra in ("bitsandbytes", "torchao"):
    if importlib.util.find_spec(extra):
        importlib.import_module(extra)
ended = {}
for script in sys.argv[2:]:
    assert not {"loraguard", "peft"} & set(sys.modules)
    if not (child := os.fork()):
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ended[script] = os.waitpid(child, 0)[1]
print(json.dumps(ended))
"""
"""Runs scripts in forks of a process that has imported most of what PEFT imports, and neither PEFT nor loraguard."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """By order of the imports: how the process ended, and what all of them have said."""
    folder = tmp_path_factory.mktemp("orders")
    config = GatedLoraConfig(r=2)
    (folder / "config.pickle").write_bytes(pickle.dumps(config))
    get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), config).save_pretrained(str(folder))
    scripts = {}
    for at, (order, code) in enumerate(REAL.items()):
        scripts[order] = folder / f"script{at}.py"
        lines = [line[4:] for line in code.splitlines()]
        scripts[order].write_text(PREAMBLE + "\n".join(lines) + "\n    assert not failures, failures\n")
    done = subprocess.run(
        [sys.executable, "-c", EACH, folder, *scripts.values()], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return {order: (codes[str(script)], done.stderr) for order, script in scripts.items()}


@pytest.mark.parametrize("order", REAL)
def test_with_peft_itself(order: str, ended: dict[str, tuple[int, str]]) -> None:
    code, said = ended[order]
    assert code == 0, said


def test_the_whole_of_peft_is_imported_before_a_part_of_it() -> None:
    """A thread that begins with a part holds it while it waits for one that imports PEFT, and that one waits for it."""
    for file in sorted(Path(loraguard.__file__).parent.rglob("*.py")):
        found = [
            name
            for one in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(one, (ast.Import, ast.ImportFrom))
            for name in ([one.module or ""] if isinstance(one, ast.ImportFrom) else [each.name for each in one.names])
            if name.partition(".")[0] == "peft"
        ]
        assert found[:1] in ([], ["peft"]), file


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package `peft` whose import waits, and code that sees when GATED_LORA is registered."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text(
        "import driver\nhalf = True\ndriver.begun.set()\ndriver.go_on.wait()\nhalf = False\nregistered = False\n"
    )
    (tmp_path / "peft" / "tuners.py").write_text("")
    (tmp_path / "driver.py").write_text(
        "import threading\n"
        "import loraguard._registering as registering\n"
        "begun, go_on, failures = threading.Event(), threading.Event(), []\n"
        "threading.excepthook = failures.append\n"
        "def register():\n"
        "    import peft\n"
        "    assert not peft.half\n"
        "    peft.registered = True\n"
        "registering.register_now = register\n"
        "def see():\n"
        "    from peft import registered\n"
        "    assert registered\n"
        "def start(*jobs):\n"
        "    threads = [threading.Thread(target=job) for job in jobs]\n"
        "    for thread in threads: thread.start()\n"
        "    return threads\n"
        "def end(threads):\n"
        "    for thread in threads: thread.join()\n"
        "    assert not failures, failures\n"
    )
    return tmp_path


def test_threads_that_import_peft_meanwhile_wait_for_the_registration(stand_in: Path) -> None:
    run(
        "import driver\n"
        "threads = driver.start(driver.see, driver.see, driver.see)\n"
        "driver.begun.wait()\n"
        "driver.go_on.set()\n"
        "driver.end(threads)\n",
        stand_in,
    )


def test_a_thread_that_imports_loraguard_while_another_is_importing_peft(stand_in: Path) -> None:
    """The finder comes too late for that import; `import loraguard` ends when PEFT is there and is told."""
    run(
        "import driver\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'PeftFinder']\n"
        "threads = driver.start(lambda: __import__('peft'))\n"
        "driver.begun.wait()\n"
        "threads += driver.start(lambda: (driver.registering.register_with_peft(), driver.see()))\n"
        "driver.go_on.set()\n"
        "driver.end(threads)\n",
        stand_in,
    )


def test_a_registration_that_fails_or_is_interrupted_is_tried_again(stand_in: Path) -> None:
    """Ctrl-C in a notebook, say; wrapt's hooks would be gone by then, and the next import would pass without a word."""
    run(
        "import driver\n"
        "driver.go_on.set()\n"
        "works = driver.registering.register_now\n"
        "for failure in (RuntimeError, KeyboardInterrupt):\n"
        "    def fails(): raise failure\n"
        "    driver.registering.register_now = fails\n"
        "    try: import peft\n"
        "    except failure: pass\n"
        "    else: raise SystemExit('imported')\n"
        "assert 'peft' not in sys.modules\n"
        "driver.registering.register_now = works\n"
        "import peft.tuners\n"
        "driver.see()\n",
        stand_in,
    )


def test_peft_that_is_imported_anew_or_lazily(stand_in: Path) -> None:
    run(
        "import driver, importlib, importlib.util\n"
        "driver.go_on.set()\n"
        "import peft\n"
        "importlib.reload(peft)\n"
        "driver.see()\n"
        "del sys.modules['peft']\n"
        "driver.see()\n"
        "del sys.modules['peft']\n"
        "spec = importlib.util.find_spec('peft')\n"
        "spec.loader = importlib.util.LazyLoader(spec.loader)\n"
        "sys.modules['peft'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sys.modules['peft'])\n"
        "assert sys.modules['peft'].registered\n",
        stand_in,
    )


def test_without_peft_nothing_changes(tmp_path: Path) -> None:
    """As for any package that is not installed; other imports never meet the loader."""
    assert (
        run(
            "import loraguard, importlib.util\n"
            "sys.path[:] = [one for one in sys.path if 'site-packages' not in one]\n"
            "print(importlib.util.find_spec('peft'), type(importlib.util.find_spec('json').loader).__name__)",
            tmp_path,
        )
        == "None SourceFileLoader"
    )

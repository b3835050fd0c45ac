"""What the tests' fork server (processes.py) imports: all that commands, trainings, audits and examples need."""

import gc
from importlib import import_module
from importlib.util import find_spec
from pkgutil import walk_packages

gc.disable()  # while it imports: what imports make stays
loraguard = import_module("loraguard")
import_module("each_process").prepare()
for module in walk_packages(loraguard.__path__, "loraguard."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
for name in (
    "accelerate.commands.launch",
    "matplotlib.pyplot",
    "pytest",  # where it is the main module, `multiprocessing` imports it in each fork
    "transformers.models.swin2sr.modeling_swin2sr",
):
    import_module(name)
if find_spec("deepspeed"):  # Accelerate imports it at the end of a training
    import_module("deepspeed")
gc.collect()
gc.freeze()  # so that a fork's garbage collector does not touch, and copy, all of it
gc.enable()

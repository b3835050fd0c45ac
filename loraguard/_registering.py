"""Registers GATED_LORA with PEFT without importing PEFT, and torch with it, before somebody else does.

Where PEFT is imported already, it is told at once. Otherwise a finder at the head of `sys.meta_path` waits for the
import of `peft`, and tells it when its own code has run and before the import returns, in whichever thread that is:
Python locks a module while it is imported, so that nobody sees PEFT without the method.

`wrapt`'s post-import hooks do nearly the same, but are dropped before they run: where one is interrupted (Ctrl-C in a
notebook), the next import of PEFT would pass without it. This finder stays.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PEFT = "peft"


class RegisteringLoader:
    """Loads PEFT as its own loader does, and registers GATED_LORA afterwards."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As PEFT's own loader does."""
        created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run PEFT's own code, then the registration; PEFT keeps its own loader."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        register_now()


class PeftFinder:
    """Finds PEFT where the other finders do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """PEFT's spec with a loader that registers; None for every other module."""
        if fullname != PEFT:
            return None
        for finder in list(sys.meta_path):
            find = None if isinstance(finder, PeftFinder) else getattr(finder, "find_spec", None)
            if find is not None and (spec := find(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = RegisteringLoader(spec.loader)
                return spec
        return None


def register_with_peft() -> None:
    """Register GATED_LORA: now if PEFT is imported, or is being imported by another thread; else as soon as it is."""
    if not any(isinstance(finder, PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PeftFinder())
    if PEFT in sys.modules:
        import peft  # noqa: F401  # waits for a thread that is importing it

        register_now()


def register_now() -> None:
    """Tell PEFT the name; the tuner itself is imported when PEFT first uses it."""
    from loraguard.tuner.registration import register

    register()

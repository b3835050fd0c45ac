"""What commands do, a module of the command's name for each; for Python as well. `loraguard.cli` has their flags."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""`python -m loraguard.cli` is `loraguard`."""

from . import main

main()

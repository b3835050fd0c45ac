"""`python -m loraguard.cli` is `loraguard`."""

from . import main

if __name__ == "__main__":  # a process that is started beside this one imports it under another name
    main()

"""`python -m loraguard` is `loraguard`."""

from .cli import main

if __name__ == "__main__":
    main()

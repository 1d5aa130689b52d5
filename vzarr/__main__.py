"""``python -m vzarr``: the same as the command ``vzarr``."""

from vzarr.cli import main

if __name__ == "__main__":
    main()

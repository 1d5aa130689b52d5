"""Call one function in a fresh Python: ``Run.afresh`` starts it, and talks to it in pickles."""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    answer = os.fdopen(os.dup(1), "wb")
    # What the function prints must not mix with the answer.
    os.dup2(2, 1)
    function, arguments = pickle.load(sys.stdin.buffer)
    with answer:
        pickle.dump(function(*arguments), answer)


if __name__ == "__main__":
    main()

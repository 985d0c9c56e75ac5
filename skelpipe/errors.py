"""What goes wrong by the user's doing: named with its place, what was found, and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake the user can mend. The command line prints it without a traceback and exits with 2.

    Args:
        what: One sentence: what is wrong.
        file: The file or folder it is about.
        place: Where in that file (a line, a byte, a key).
        found: What stands there.
        expected: What should.
        remedy: What to do about it, a command where one helps.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | Path = "",
        place: str = "",
        found: object = "",
        expected: object = "",
        remedy: str = "",
    ) -> None:
        rows = {
            "file": file,
            "place": place,
            "found": found,
            "expected": expected,
            "to mend it": remedy,
        }
        details = [f"  {name}: {value}" for name, value in rows.items() if str(value)]
        super().__init__("\n".join([what, *details]))
        self.what = what


def nearest(name: str, known: Iterable[str]) -> str:
    """A question naming the closest known name, or the list of all where none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(options)}"

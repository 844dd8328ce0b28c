"""Which names a manifest may use. They become parts of file names, and words in a terminal, and come from strangers."""

import re
from typing import Any

from uid.errors import BundleError

NAME_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEY = re.compile(NAME_PART)  # of a constant
FILE = re.compile(rf"(?=.{{1,200}}\Z){NAME_PART}(/{NAME_PART})*")  # a path below the bundle's folder
# A symbol, a part of it such as "height/8", or a multiple such as "height*2".
DIMENSION = re.compile(rf"{NAME.pattern}(/[1-9][0-9]{{0,3}}|[*][1-9][0-9]?)?")
LONGEST_SHOWN = 80  # characters of a bad name in its error


def checked(name: Any, what: str, pattern: re.Pattern[str] = NAME) -> str:
    """``name`` if it fits the pattern; raises ``BundleError`` for a path, a glob, a terminal's codes and the like."""
    if isinstance(name, str) and pattern.fullmatch(name):
        return name
    allowed = "._-" if pattern is KEY else "_-"
    raise BundleError(
        f"the manifest has {what} {repr(name)[:LONGEST_SHOWN]}; expected at most 64 ASCII letters, digits and any of "
        f"{allowed}, with a letter or digit first: rename it where the bundle was made, and export it again"
    )

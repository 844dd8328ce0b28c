"""Which names a manifest may use. They become parts of file names, and words in a terminal, and come from strangers."""

import re
from typing import Any

from uid.bundles.values import Rule, obeying

NAME_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEY = re.compile(NAME_PART)  # of a constant
FILE = re.compile(rf"(?=.{{1,200}}\Z){NAME_PART}(/{NAME_PART})*")  # a path below the bundle's folder
# A symbol, a part of it such as "height/8", or a multiple such as "height*2".
DIMENSION = re.compile(rf"{NAME.pattern}(/[1-9][0-9]{{0,3}}|[*][1-9][0-9]?)?")
LONGEST_SHOWN = 80  # characters of a bad name in its error


def name_rule(pattern: re.Pattern[str] = NAME) -> Rule:
    """A name that fits the pattern: no path, glob, terminal's codes and the like."""
    allowed = "._-" if pattern is KEY else "_-"
    return Rule(
        f"at most 64 ASCII letters, digits and any of {allowed}, with a letter or digit first",
        lambda name: isinstance(name, str) and pattern.fullmatch(name) is not None,
    )


def checked(name: Any, what: str, pattern: re.Pattern[str] = NAME) -> str:
    """``name`` if it fits the pattern; raises ``BundleError`` otherwise."""
    return str(obeying(name, what, name_rule(pattern), "rename it where the bundle was made, and export it again"))

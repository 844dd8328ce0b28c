"""The tables of a page, each between two markers that say what it shows and of which rows."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from uid.bench.quality.tables import KINDS
from uid.bundles.files import written_whole
from uid.errors import InputError

MARKED = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def update(page: Path, folder: Path, *, check: bool = False) -> bool:
    """Write each marked table of a page from the rows in ``folder``; whether it was what they give.

    A table stands between ``<!-- table: KIND NAME -->`` and ``<!-- /table -->``: a kind of ``KINDS``, and the rows'
    file without its suffix. With ``check`` nothing is written. Raises ``InputError`` for a page without such a table.
    """
    before = page.read_text(encoding="utf-8")
    if not MARKED.search(before):
        raise InputError(f"{page} has no table; expected `<!-- table: KIND NAME -->` and `<!-- /table -->` around each")
    after = MARKED.sub(lambda found: f"{found[1]}\n{made(found[2], folder / found[3])}\n\n{found[5]}", before)
    if not check and after != before:
        with written_whole(page) as temporary:
            temporary.write_text(after, encoding="utf-8")
    return after == before


def made(kind: str, rows: Path) -> str:
    """A table of this kind from a file of rows, named without its suffix."""
    if kind not in KINDS:
        raise InputError(f"no table {kind!r}; expected one of {', '.join(KINDS)}")
    row_type, make = KINDS[kind]
    return "\n".join(make(read(rows.with_name(f"{rows.name}.jsonl"), row_type)))


def read(path: Path, row_type: type) -> list[Any]:
    """The rows of a type in a JSON Lines file, without what is common to all; raises ``InputError`` for other files."""
    names = [field.name for field in fields(row_type)]
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row_type(**{name: hashable(entry[name]) for name in names}) for entry in entries]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} has no rows with {', '.join(names)}; measure again with this version") from error


def hashable(value: Any) -> Any:
    """A JSON value as a row has it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value

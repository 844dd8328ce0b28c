"""The pages as a reader uses them: links lead somewhere, command lines have the options they show, code runs."""

import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from uid.bench import cli as bench
from uid.bench.hardware import __main__ as hardware
from uid.bench.hardware import rehearsal
from uid.bench.rows import read_rows
from uid.bench.speed.tables import update
from uid.bundles.declarations import built_in
from uid.export import cli as export
from uid.runtime.app import cli as runtime
from uid.serve import cli as serve
from uid.train import cli as train

ROOT = Path(__file__).parents[1]
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/results/README.md", "bundles/models/edge/README.md")
PAGES = [*MANUAL, *(ROOT / name for name in OTHERS)]
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells old names too
COMMANDS: dict[str, click.Command] = {
    "uid-run": runtime.run,
    "uid-run doctor": runtime.doctor,
    "uid-serve": serve.main,
    "uid-export": export.main,
    "uid-train": train.main,
    "uid-bench": bench.main,
}
MODULES: dict[str, click.Command] = {
    "uid.bench.hardware": hardware.main,
    "uid.bench.hardware.rehearsal": rehearsal.main,
}
DISTRIBUTION = "uid-runtime"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SEPARATORS = {"|", "||", "&", "&&", ";"}
REDIRECTIONS = {"<", ">", ">>"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=name_of)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [body for language, body in found if language in languages]


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings, those that are the same where GitHub shows a page and where mkdocs does."""
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", text) for text in HEADING.findall(prose(page))]
    return {github(text) for text in headings} & {mkdocs(text) for text in headings}


def github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def mkdocs(heading: str) -> str:
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@pages(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(SPAN.sub("", prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        inside = page.parent.name != "docs" or target.resolve().is_relative_to(page.parent)  # or a site would lack it
        if not (target.is_file() and inside and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert not broken


def test_the_site_shows_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"[\w-]+\.md", text)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert len(text.split()) < 900


# -- command lines ----------------------------------------------------------------------------------------------------


def calls(block: str) -> Iterator[list[str]]:
    """The words of each command in a block of shell lines, without comments, redirections and variables before it."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        call: list[str] = []
        words = iter([*lexer, ";"])
        for word in words:
            if word in SEPARATORS:
                yield call
                call = []
            elif word in REDIRECTIONS:
                next(words)
            elif call or not re.match(r"\w+=", word):
                call.append(word)


def resolved(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The project's command that a call is of, and its arguments; raises ``UsageError`` for an unknown subcommand."""
    if not words:
        return None
    if words[0].startswith("python") and words[1:2] == ["-m"] and words[2] in MODULES:
        return MODULES[words[2]], words[3:]
    command = COMMANDS.get(" ".join(words[:2])) or COMMANDS.get(Path(words[0]).name)
    if command is None:
        assert not words[0].startswith("uid-") or words[0] == DISTRIBUTION, f"unknown command {words[0]}"
        return None
    arguments = words[2:] if " ".join(words[:2]) in COMMANDS else words[1:]
    if isinstance(command, click.Group) and arguments:
        _, found, arguments = command.resolve_command(click.Context(command), arguments)
        assert found is not None
        command = found
    return command, arguments


def check(command: click.Command, arguments: list[str]) -> None:
    """Raise ``UsageError`` for an option that the command does not have, or a value that is none of its choices."""
    context = click.Context(command)
    values: dict[str, Any]
    values, left, _ = command.make_parser(context).parse_args(list(arguments))
    assert not left, f"too many arguments: {left}"
    for parameter in command.params:
        given = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and given is not None:
            for value in given if isinstance(given, (list, tuple)) else [given]:
                parameter.type.convert(value, parameter, context)


def wrong_calls(block: str) -> list[str]:
    """The calls in a block of shell lines that a command would refuse, and why."""
    wrong = []
    for call in calls(block):
        try:
            found = resolved(call)
            if found is not None and "--help" not in call:
                check(*found)
        except (click.UsageError, AssertionError) as error:
            wrong.append(f"{shlex.join(call)}: {error}")
    return wrong


@pages(CURRENT)
def test_command_lines_use_options_that_exist(page: Path) -> None:
    assert not [call for block in blocks(page, "sh", "bash") for call in wrong_calls(block)]


@pages(sorted((ROOT / "examples").glob("*.sh")))
def test_examples_use_options_that_exist(page: Path) -> None:
    assert not wrong_calls(page.read_text(encoding="utf-8"))


@pages(CURRENT)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    """Such as `uid-bench parity` and `--preset`, in code spans."""
    wrong = []
    for span in SPAN.findall(prose(page)):
        try:
            if span.startswith("uid-"):
                command, arguments = resolved(shlex.split(span)) or (click.Command(""), [])
                unknown = {word for word in arguments if word.startswith("--")} - flags(command) - {"--help"}
            else:
                unknown = set(re.findall(r"^--\w[\w-]*", span)) - known_flags()
            wrong += sorted(unknown)
        except (click.UsageError, AssertionError) as error:
            wrong.append(f"{span}: {error}")
    assert not wrong


def flags(command: click.Command) -> set[str]:
    """Every option of a command and of those below it."""
    own = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*(flags(one) for one in below))


def known_flags() -> set[str]:
    """Every option of every command."""
    return set().union(*(flags(command) for command in (*COMMANDS.values(), *MODULES.values())))


@pages(CURRENT)
def test_named_files_and_modules_exist(page: Path) -> None:
    """Such as `runtime/plan.py` and `uid.engines.trt.cache`, in code spans and command lines."""
    text = page.read_text(encoding="utf-8")
    folders = "bench|bundles|checkpoints|docs|engines|examples|export|families|runtime|serve|src|tests|train"
    paths = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w/?)(?![\w*-])", " ".join(SPAN.findall(prose(page))))
    missing = [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"(?:python -m |from |`)(uid(?:\.\w+)+)", text)
    missing += [module for module in modules if not is_module(module)]
    assert not missing


def is_module(name: str) -> bool:
    path = ROOT / "src" / name.replace(".", "/")
    parent = path.parent if path.parent.is_dir() else path.parent.with_suffix(".py")  # of a name in a module
    return path.is_dir() or path.with_suffix(".py").is_file() or (parent.is_file() and path.name in parent.read_text())


# -- code and figures -------------------------------------------------------------------------------------------------


ONE_PROGRAM = ("add-a-family.md",)  # pages whose blocks are one program, in order


def programs(page: Path) -> list[str]:
    found = blocks(page, "python")
    return ["\n".join(found)] if page.name in ONE_PROGRAM else found


CODE = [
    pytest.param(block, id=f"{name_of(page)}-{number}")
    for page in MANUAL
    for number, block in enumerate(programs(page))
]


@pytest.mark.parametrize("block", CODE)
def test_code_runs(block: str, tmp_path: Path) -> None:
    if "tensorrt" in block:
        pytest.importorskip("tensorrt_rtx")
    if 'Path("bundle")' in block:
        shutil.copytree(built_in(), tmp_path / "bundle")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_performance_page_shows_the_committed_rows() -> None:
    rows = [row for path in sorted((ROOT / "bench" / "results").glob("latency-*.jsonl")) for row in read_rows(path)]
    assert update(ROOT / "docs" / "performance.md", rows, check=True)

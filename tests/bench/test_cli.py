"""The options of ``uid-bench`` that have new names."""

from typing import Any

import pytest

from uid.bench.cli import main


@pytest.mark.parametrize(
    ("command", "words", "new", "value"),
    [
        ("host", ["--views", "1", "--views", "8"], "--transforms", (1, 8)),
        ("quality", ["--views", "2"], "--transforms", 2),
        ("tradeoff", ["--views=2"], "--transforms", (2,)),
        ("tradeoff", ["--reuse", "3"], "--cache-interval", (3,)),
        ("ablation", ["--pictures", "7", "--steps", "1", "."], "--images", 7),
        ("latency", ["--no-ceilings"], "--no-peaks", False),
    ],
)
def test_an_old_option_name_works_with_a_note(
    command: str, words: list[str], new: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {name: parameter.name for parameter in main.commands[command].params for name in parameter.opts}
    old = words[0].partition("=")[0]
    assert old not in options
    context = main.commands[command].make_context(command, list(words))
    assert context.params[options[new]] == value
    notes = capsys.readouterr().err.splitlines()
    assert set(notes) == {f"note: {old} is now called {new}; the old name will go in version 0.3"}

"""``uid-bench``: measurements of a bundle. Each row written says what ran, with which settings, on which versions."""

import click

from uid import __version__
from uid.bench.quality import cli as quality_cli
from uid.bench.quality import pairs_cli
from uid.bench.speed import cli as speed_cli
from uid.bench.speed import rows_cli

EXAMPLES = """\b
Examples:
  uid-bench quality -m bundle/ -o rows.jsonl --sheet sheet.png
  uid-bench quality --metric lpips --metric clip-iqa
  uid-bench pairs GOPRO/test -m bundle/ -m nafnet/ --metric lpips
  uid-bench tradeoff -m bundle/ --steps 1 --steps 4 --record
  uid-bench latency -m bundle/ --checkpoint checkpoint/ -o rows.jsonl --plot plot.png
  uid-bench compare before.jsonl after.jsonl
"""  # \b: click keeps the lines as they are


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="uid-bench")
def main() -> None:
    """Measure what a bundle does: how well, how fast, how large."""


for command in (*quality_cli.COMMANDS, *pairs_cli.COMMANDS, *speed_cli.COMMANDS, *rows_cli.COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()

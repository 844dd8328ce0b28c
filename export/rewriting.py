"""A faster start for onnxscript's rewrite rules, which PyTorch's exporter applies to every graph.

Every rule is tried at every node, and begins with bookkeeping; a rule with several outputs first lists the whole graph.
Most nodes cannot be what a rule begins with, by their operator alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from onnxscript.rewriter import MatchResult
from onnxscript.rewriter._matcher import SimplePatternMatcher


@contextmanager
def quick_matching() -> Iterator[None]:
    """Inside, a rule looks at the node's operator first; the results are the same."""
    slow = SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> MatchResult:
        first = self.pattern.output_nodes[0].op_identifier()
        if first is not None and (first[1] != node.op_type or first != node.op_identifier()):
            return MatchResult().fail("the node is not of the kind of the pattern's first output")
        return slow(self, model, graph, node, **options)

    with mock.patch.object(SimplePatternMatcher, "match", match):
        yield

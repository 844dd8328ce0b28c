"""A faster start for onnxscript's rewrite rules, which PyTorch's exporter applies to every graph.

A rule with several outputs lists the whole graph for every node, also where the node cannot be its first output. Over a
graph of N nodes that is N * N: most of an export's time from some thousands of nodes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from onnxscript.rewriter import MatchResult
from onnxscript.rewriter._matcher import SimplePatternMatcher


@contextmanager
def quick_matching() -> Iterator[None]:
    """Inside, such a rule looks at the node's operator first; the results are the same."""
    slow = SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> MatchResult:
        if not self.pattern.has_single_output_node:
            first = self.pattern.output_nodes[0].op_identifier()
            if first is not None and first != node.op_identifier():
                return MatchResult().fail("the node is not of the kind of the pattern's first output")
        return slow(self, model, graph, node, **options)

    with mock.patch.object(SimplePatternMatcher, "match", match):
        yield

"""Quick matching matches what onnxscript alone does."""

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnxscript.rewriter import pattern

from uid.export.rewriting import quick_matching


def halves() -> ir.Model:
    """The two halves of a tensor, multiplied."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "two", "last"], ["a"]),
        helper.make_node("Slice", ["x", "two", "four", "last"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["m"]),
        helper.make_node("Sigmoid", ["m"], ["z"]),
    ]
    numbers = {"zero": 0, "two": 2, "four": 4, "last": 1}
    weights = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in numbers.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("z", 2))]
    graph = helper.make_graph(nodes, "halves", ends[:1], ends[1:], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def two_outputs(op, x, begin, end, axes):  # type: ignore[no-untyped-def]
    return op.Slice(x, begin, end, axes), op.Mul(x, x)


def one_output(op, x):  # type: ignore[no-untyped-def]
    return op.Sigmoid(x)


def test_every_node_matches_as_before() -> None:
    model = halves()
    model.graph[2].replace_input_with(0, model.graph.inputs[0])
    model.graph[2].replace_input_with(1, model.graph.inputs[0])
    nodes = list(model.graph)
    rules = [pattern.RewriteRule(find, lambda op, **_: op.Identity()) for find in (two_outputs, one_output)]

    def matches() -> list[list[bool]]:
        def one(rule: pattern.RewriteRule, node: ir.Node) -> bool:
            return bool(rule.match(model, model.graph, node, check_nodes_are_removable=False))

        return [[one(rule, node) for node in nodes] for rule in rules]

    plain = matches()
    with quick_matching():
        quick = matches()
    assert plain == quick == [[True, True, False, False], [False, False, False, True]]

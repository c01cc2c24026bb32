"""Each operator of the table computes what onnxruntime computes, with the attributes that the standard gives it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from epsball.models.onnx_bounds import Bounded, folded  # noqa: E402
from epsball.models.onnx_graph import graph_of  # noqa: E402
from epsball.models.onnx_module import OnnxModule  # noqa: E402
from epsball.models.onnx_operators import OPERATORS, UNARY  # noqa: E402

IMAGE, ROWS = (2, 4, 6, 5), (3, 4)
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.2, 0.9, shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class Case(NamedTuple):
    """An operator, an input, its other inputs (None: left out) and attributes; `opset` where it is another form."""

    op: str
    x: np.ndarray
    others: tuple[np.ndarray | None, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012
    opset: int = 23
    outputs: int = 1


def variants(op: str, x: np.ndarray, *others: np.ndarray | None, over: list[dict[str, Any]], **more: Any) -> list[Case]:
    return [Case(op, x, others, attributes, **more) for attributes in over]


SCALAR = np.array(0.3, np.float32)
REDUCTIONS = [op for op in OPERATORS if op.startswith("Reduce")]
CASES = [
    *[Case(op, positive(*ROWS) + (1 if op == "Acosh" else 0)) for op in UNARY if op != "Not"],
    *[Case(op, normal(*ROWS), (normal(4),)) for op in ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum", "Mean")],
    *[Case(op, np.round(normal(*ROWS)), (np.round(normal(4)),)) for op in ("Equal", "Greater", "GreaterOrEqual")],
    *[Case(op, np.round(normal(*ROWS)), (np.round(normal(4)),)) for op in ("Less", "LessOrEqual")],
    *[Case("Max", normal(*ROWS), (normal(4), normal(3, 1))), Case("Sum", normal(*ROWS))],
    *[Case("Pow", positive(*ROWS), (np.array(p, np.float32),)) for p in (2, 0.5, -1)],
    Case("Pow", normal(*ROWS), (whole(3),)),
    *[Case("Mod", normal(*ROWS), (positive(4),), {"fmod": 1})],
    *variants("Celu", normal(*ROWS), over=[{}, {"alpha": 0.5}]),
    *[Case("Clip", normal(*ROWS), limits) for limits in ((), (-SCALAR, SCALAR), (None, SCALAR), (-SCALAR,))],
    Case("Clip", normal(*ROWS), (), {"min": -0.5, "max": 0.5}, opset=9),
    *variants("Elu", normal(*ROWS), over=[{}, {"alpha": 0.5}]),
    *variants("Gelu", normal(*ROWS), over=[{}, {"approximate": "tanh"}]),
    *variants("HardSigmoid", 4 * normal(*ROWS), over=[{}, {"alpha": 0.1, "beta": 0.6}]),
    *[Case("HardSwish", 4 * normal(*ROWS)), Case("Dropout", normal(*ROWS)), Case("Mish", normal(*ROWS))],
    *variants("IsInf", np.array([1, np.inf, -np.inf], np.float32), over=[{}, {"detect_negative": 0}]),
    *variants("LeakyRelu", normal(*ROWS), over=[{}, {"alpha": 0.2}]),
    Case("PRelu", normal(*ROWS), (positive(4),)),
    *variants("Selu", normal(*ROWS), over=[{}, {"alpha": 1.5, "gamma": 1.1}]),
    *variants("Shrink", normal(*ROWS), over=[{}, {"bias": 0.3, "lambd": 0.4}]),
    *variants("ThresholdedRelu", normal(*ROWS), over=[{}, {"alpha": 0.2}]),
    *[
        one
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for one in variants(op, normal(2, 3, 4), over=[{}, {"axis": 1}])
    ],
    # Layers
    *[
        Case("Gemm", normal(3, 4), (normal(4, 5), normal(5)), attributes)
        for attributes in ({}, {"alpha": 0.5, "beta": 2.0})
    ],
    Case("Gemm", normal(4, 3), (normal(5, 4), normal(5)), {"transA": 1, "transB": 1}),
    *[
        Case("Gemm", normal(3, 4), (normal(5, 4), normal(5)), {"transB": 1}),
        Case("Gemm", normal(3, 4), (normal(4, 5),)),
    ],
    *[Case("MatMul", normal(2, 3, 4), (normal(4, 5),)), Case("MatMul", normal(3, 4), (normal(4),))],
    *[Case("Einsum", normal(2, 3, 4), (normal(2, 4, 5),), {"equation": e}) for e in ("bij,bjk->bik", "bij,bjk->bk")],
    *variants(
        "Conv",
        normal(*IMAGE),
        normal(6, 4, 3, 2),
        normal(6),
        over=[
            {},
            {"pads": [1, 0, 1, 0], "strides": [2, 1]},
            {"pads": [1, 0, 2, 1]},
            {"dilations": [2, 1]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER"},
            {"auto_pad": "VALID"},
        ],
    ),
    *[
        Case("Conv", normal(*IMAGE), (normal(4, 1, 3, 3),), {"group": 4}),
        Case("Conv", normal(2, 4, 9), (normal(3, 4, 2),)),
    ],
    Case("Conv", normal(1, 2, 4, 4, 4), (normal(3, 2, 2, 2, 2), normal(3))),
    *variants(
        "ConvTranspose",
        normal(*IMAGE),
        normal(4, 6, 3, 2),
        normal(6),
        over=[
            {},
            {"pads": [1, 0, 1, 0], "strides": [2, 2]},
            {"pads": [1, 0, 0, 1], "strides": [2, 2], "output_padding": [1, 1]},
            {"strides": [2, 2], "output_shape": [12, 10]},
            {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        ],
    ),
    Case("ConvTranspose", normal(*IMAGE), (normal(4, 2, 3, 3),), {"group": 2, "dilations": [2, 1]}),
    *variants(
        "BatchNormalization", normal(*IMAGE), normal(4), normal(4), normal(4), positive(4), over=[{}, {"epsilon": 0.1}]
    ),
    *variants("InstanceNormalization", normal(*IMAGE), normal(4), normal(4), over=[{}, {"epsilon": 0.1}]),
    Case("GroupNormalization", normal(*IMAGE), (normal(4), normal(4)), {"num_groups": 2}),
    Case("LayerNormalization", normal(2, 3, 4), (normal(4), normal(4))),
    Case("LayerNormalization", normal(2, 3, 4), (normal(3, 4),), {"axis": 1, "epsilon": 0.1}),
    Case("LayerNormalization", normal(2, 3, 4), (normal(4), normal(4)), {"axis": 1}),
    Case("RMSNormalization", normal(2, 3, 4), (normal(4),), {"epsilon": 0.1}, opset=23),
    *variants("LpNormalization", normal(*ROWS), over=[{}, {"axis": 0, "p": 1}]),
    *variants("LRN", normal(*IMAGE), over=[{"size": 3}, {"size": 5, "alpha": 0.1, "beta": 0.5, "bias": 2.0}]),
    *variants("MeanVarianceNormalization", normal(*IMAGE), over=[{}, {"axes": [2, 3]}]),
    Case("Attention", normal(2, 3, 4, 6), (normal(2, 3, 5, 6), normal(2, 3, 5, 2)), opset=23),
    Case("Attention", normal(2, 4, 6), (normal(2, 5, 6), normal(2, 5, 6)), {"q_num_heads": 2, "kv_num_heads": 2}, 23),
    Case("Attention", normal(2, 4, 3, 6), (normal(2, 2, 3, 6), normal(2, 2, 3, 6)), {"is_causal": 1, "scale": 0.5}, 23),
    Case("Attention", normal(2, 3, 4, 6), (normal(2, 3, 5, 6), normal(2, 3, 5, 2), normal(4, 5)), {}, 23),
    # Images
    *variants(
        "AveragePool",
        normal(*IMAGE),
        over=[
            {"kernel_shape": [3, 2]},
            {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "strides": [2, 1]},
            {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1]},
            {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
            {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        ],
    ),
    *variants(
        "MaxPool",
        normal(*IMAGE),
        over=[
            {"kernel_shape": [3, 2]},
            {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "strides": [2, 1]},
            {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1]},
            {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
            {"kernel_shape": [2, 2], "dilations": [2, 2]},
        ],
    ),
    *[Case("MaxPool", normal(2, 3, 7), (), {"kernel_shape": [2]}), Case("GlobalAveragePool", normal(*IMAGE))],
    Case("GlobalMaxPool", normal(*IMAGE)),
    *variants("DepthToSpace", normal(2, 8, 3, 2), over=[{"blocksize": 2}, {"blocksize": 2, "mode": "CRD"}]),
    Case("SpaceToDepth", normal(2, 2, 4, 6), (), {"blocksize": 2}),
    *[
        Case("Pad", normal(*IMAGE), (whole(0, 0, 1, 2, 0, 0, 2, 0), *more), {"mode": mode})
        for mode, more in (("constant", ()), ("constant", (SCALAR,)), ("reflect", ()), ("edge", ()), ("wrap", ()))
    ],
    *[
        Case("Pad", normal(*IMAGE), (whole(1, 2, 0, 1), SCALAR, whole(3, 2))),
        Case("Pad", normal(3, 4), (whole(0, -1, 0, 1),)),
    ],
    Case("Pad", normal(3, 4), (), {"pads": [1, 0, 0, 2], "value": 0.5}, opset=10),
    *[
        Case(
            "Resize",
            normal(*IMAGE),
            (None, None, whole(2, 4, *sizes)),
            {"mode": mode, "coordinate_transformation_mode": c},
        )
        for sizes in ((9, 7), (3, 4))
        for mode in ("nearest", "linear", "cubic")
        for c in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    ],
    *[
        Case(
            "Resize",
            normal(*IMAGE),
            (None, np.array([1, 1, 1.5, 2], np.float32)),
            {"mode": "nearest", "nearest_mode": n},
        )
        for n in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ],
    Case("Resize", normal(*IMAGE), (None, np.array([1.5, 0.7], np.float32)), {"mode": "linear", "axes": [2, 3]}),
    *[
        Case("Upsample", normal(*IMAGE), (np.array([1, 1, 2, 3], np.float32),), {"mode": m}, 9)
        for m in ("nearest", "linear")
    ],
    Case("Upsample", normal(*IMAGE), (), {"scales": [1.0, 1.0, 2.0, 2.0]}, 7),
    # Reductions
    *[Case(op, positive(2, 3, 4), (whole(1),)) for op in REDUCTIONS],
    *[Case(op, positive(2, 3, 4), (whole(0, -1),), {"keepdims": 0}) for op in REDUCTIONS],
    *[Case(op, positive(2, 3, 4)) for op in REDUCTIONS],
    *[Case(op, positive(2, 3, 4), (), {"axes": [1]}, 11) for op in REDUCTIONS],
    Case("ReduceSum", positive(2, 3), (whole(),), {"noop_with_empty_axes": 1}),
    *[Case(op, normal(3, 4), (), a) for op in ("ArgMax", "ArgMin") for a in ({}, {"axis": 1, "keepdims": 0})],
    *[Case(op, np.ones((3, 4), np.float32), (), {"select_last_index": 1}) for op in ("ArgMax", "ArgMin")],
    *variants(
        "CumSum", normal(3, 4), np.array(1), over=[{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}]
    ),
    *variants("TopK", normal(3, 4), whole(2), over=[{}, {"largest": 0}, {"axis": 0}], outputs=2),
    # Shapes
    *[
        Case("Cast", 3 * normal(3, 4), (), {"to": to})
        for to in (TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE)
    ],
    *[Case("CastLike", normal(3, 4), (whole(1),)), Case("Concat", normal(3, 4), (normal(3, 2),), {"axis": -1})],
    *[Case("Expand", normal(3, 1), (whole(2, 1, 4),)), Case("EyeLike", normal(3, 4), (), {"k": 1})],
    *variants("Flatten", normal(2, 3, 4), over=[{}, {"axis": 0}, {"axis": -1}]),
    *[
        Case("Gather", normal(3, 4), (i,), {"axis": a})
        for i in (np.array(-1), whole(2, 0), np.array([[0], [1]]))
        for a in (0, 1)
    ],
    Case("GatherElements", normal(3, 4), (np.array([[0, -1], [1, 2], [3, 0]]),), {"axis": 1}),
    *[
        Case("GatherND", normal(3, 4), (np.array([[0, 1], [2, 3]]),)),
        Case("GatherND", normal(3, 4), (np.array([[1]]),)),
    ],
    *[Case("Reshape", normal(2, 3, 4), (s,)) for s in (whole(2, -1), whole(0, 2, 6), whole(-1))],
    *variants(
        "ScatterElements",
        normal(3, 4),
        np.array([[0, 1], [2, 3]]),
        normal(2, 2),
        over=[{"axis": 1}, {"reduction": "add", "axis": 1}],
    ),
    *variants("ScatterND", normal(3, 4), np.array([[0], [2]]), normal(2, 4), over=[{}, {"reduction": "add"}]),
    *variants("Shape", normal(2, 3, 4), over=[{}, {"start": 1}, {"start": -2, "end": -1}]),
    Case("Size", normal(2, 3)),
    *[
        Case("Slice", normal(5, 6), parts)
        for parts in (
            (whole(1), whole(4)),
            (whole(1, -3), whole(99, -1), whole(1, 0)),
            (whole(-1), whole(-99), whole(1), whole(-2)),
            (whole(0, 1), whole(5, 6), whole(0, 1), whole(2, 3)),
            (whole(4), whole(2)),
        )
    ],
    Case("Slice", normal(5, 6), (), {"starts": [1], "ends": [3], "axes": [1]}, 9),
    *[Case("Split", normal(5, 6), (whole(1, 5),), {"axis": 1}, outputs=2)],
    Case("Split", normal(5, 6), (), {"axis": 0, "num_outputs": 2}, outputs=2),
    Case("Split", normal(4, 6), (), {"axis": 1, "split": [2, 4]}, 11, 2),
    Case("Split", normal(4, 6), (), {"axis": 0}, 11, 2),
    *[
        Case("Squeeze", normal(1, 3, 1), (whole(0),)),
        Case("Squeeze", normal(1, 3, 1)),
        Case("Squeeze", normal(1, 3), (), {"axes": [0]}, 11),
    ],
    *[Case("Unsqueeze", normal(3, 4), (whole(0, -1),)), Case("Unsqueeze", normal(3, 4), (), {"axes": [1]}, 11)],
    Case("Tile", normal(3, 4), (whole(2, 1),)),
    *variants("Transpose", normal(2, 3, 4), over=[{}, {"perm": [1, 0, 2]}]),
    *[Case("Trilu", normal(4, 5), k, a) for k in ((), (np.array(1),)) for a in ({}, {"upper": 0})],
]
node = helper.make_node
COMPARED = [node("Greater", ["x", "zero"], ["a"]), node("Less", ["x", "one"], ["b"])]
CHAINS: dict[str, list[Any]] = {
    **{op: [*COMPARED, node(op, ["a", "b"], ["out0"])] for op in ("And", "Or", "Xor")},
    "Not": [*COMPARED[:1], node("Not", ["a"], ["out0"])],
    "Where": [*COMPARED[:1], node("Where", ["a", "x", "zero"], ["out0"])],
    "ConstantOfShape": [
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["s"], ["z"]),
        node("Add", ["x", "z"], ["out0"]),
    ],
    "OneHot": [
        node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        node("OneHot", ["i", "depth", "values"], ["out0"], axis=0),
    ],
    "Range": [node("Size", ["x"], ["n"]), node("Range", ["start", "n", "step"], ["out0"])],
}
"""Operators whose input is no number of the model's own, with those that make it."""
CONSTANTS = {
    "zero": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "depth": np.array(5),
    "values": np.array([-1, 2], np.float32),
    "start": np.array(1),
    "step": np.array(2),
}


def model_of(nodes: list[Any], x: np.ndarray, constants: dict[str, np.ndarray], outputs: int, opset: int) -> Any:
    """A model from x to the values out0, out1, ..."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info(f"out{place}") for place in range(outputs)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def check(model: Any, x: np.ndarray, outputs: int) -> None:
    """Each output equals that of onnxruntime, where it can run the model, or of onnx's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        expected = session.run(None, {"x": x})
    except Exception:
        expected = ReferenceEvaluator(model).run(None, {"x": x})
    for place in range(outputs):
        one = type(model).FromString(model.SerializeToString())
        del one.graph.output[:]
        one.graph.output.append(helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, None))
        graph, _ = graph_of(one)
        found = OnnxModule(folded(graph), torch.float32).values(torch.from_numpy(x), Bounded())[f"out{place}"]
        np.testing.assert_allclose(found.detach().numpy(), expected[place], rtol=1e-4, atol=1e-5)
        assert str(found.dtype)[6:] == str(expected[place].dtype)


OPS = sorted({case.op for case in CASES})


@pytest.mark.parametrize("op", OPS)
def test_an_operator_computes_what_onnxruntime_computes(op: str) -> None:
    check_cases([case for case in CASES if case.op == op][:2])


@pytest.mark.nightly
@pytest.mark.parametrize("op", OPS)
def test_an_operator_computes_what_onnxruntime_computes_in_all_its_forms(op: str) -> None:
    check_cases([case for case in CASES if case.op == op])


def check_cases(cases: list[Case]) -> None:
    for case in cases:
        constants = {f"c{place}": value for place, value in enumerate(case.others) if value is not None}
        names = [f"c{place}" if value is not None else "" for place, value in enumerate(case.others)]
        node = helper.make_node(case.op, ["x", *names], [f"out{i}" for i in range(case.outputs)], **case.attributes)
        model = model_of([node], case.x, constants, case.outputs, case.opset)
        try:
            check(model, case.x, case.outputs)
        except Exception as error:
            raise AssertionError(
                f"{case.op} {case.attributes} of opset {case.opset}, inputs {names}: {error}"
            ) from error


@pytest.mark.parametrize("op", CHAINS)
def test_an_operator_of_conditions_or_shapes_computes_what_onnxruntime_computes(op: str) -> None:
    x = 2 * normal(3, 4)
    check(model_of(CHAINS[op], x, CONSTANTS, 1, 17), x, 1)


def test_every_operator_of_the_table_is_tested() -> None:
    assert {case.op for case in CASES} | set(CHAINS) == set(OPERATORS)

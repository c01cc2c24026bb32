"""ONNX files become torch modules: the same logits, gradients and result as the network that was exported."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.last_activation import before_activation
from epsball.models.onnx_file import open_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper, version_converter  # noqa: E402
from onnx_nets import CLASSES, NETS, SHAPE, export, seeded  # noqa: E402

EPS = 8 / 255
ATTENTION = ("vit", "attention")
DAILY = [
    *[(name, 9, False, None) for name in NETS if name not in ATTENTION],
    *[("vit", 14, False, None), ("attention", 17, False, None), ("resnet", 13, False, None), ("vgg", 20, False, None)],
    *[("vit", 17, False, 1), ("vit", 18, False, 2), ("attention", 14, False, 1), ("mobilenet", 17, False, 3)],
    ("attention", 21, True, None),
]
ALL = [
    (name, opset, dynamo, rows)
    for name in NETS
    for dynamo, opsets in ((False, (9, 13, 17, 18, 20)), (True, (18, 20, 21, 23)))
    for opset in opsets
    for rows in (None, 1, 2)
    if opset > 13 or name not in ATTENTION
]


def opened(path: Path, **asked: object) -> Loaded:
    return open_onnx(Asked(spec=str(path), **asked))  # type: ignore[arg-type]


def module(found: Loaded) -> nn.Module:
    assert isinstance(found.model, nn.Module)
    assert not found.model.training
    return found.model


def rows(n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((model(x) * torch.arange(1.0, CLASSES + 1)).sum(), x)[0]


def check_equal(name: str, opset: int, dynamo: bool, fixed: int | None, path: Path) -> None:
    source = seeded(NETS[name])
    found = opened(export(source, path, opset=opset, dynamo=dynamo, rows=fixed))
    model = module(found)
    assert found.shape == SHAPE
    assert any("equal those of onnxruntime" in note for note in found.notes)
    for n in (1, 2, 5):
        torch.testing.assert_close(model(rows(n)), source(rows(n)), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient(model, rows(3)), gradient(source, rows(3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "opset", "dynamo", "fixed"), DAILY)
def test_a_file_gives_its_networks_logits_and_gradients(
    name: str, opset: int, dynamo: bool, fixed: int | None, tmp_path: Path
) -> None:
    check_equal(name, opset, dynamo, fixed, tmp_path / "model.onnx")


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "opset", "dynamo", "fixed"), ALL)
def test_every_exporter_and_opset_gives_its_networks_logits_and_gradients(
    name: str, opset: int, dynamo: bool, fixed: int | None, tmp_path: Path
) -> None:
    check_equal(name, opset, dynamo, fixed, tmp_path / "model.onnx")


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21, 23])
def test_a_file_of_any_opset_is_read(opset: int, tmp_path: Path) -> None:
    source = seeded(NETS["resnet"])
    path = export(source, tmp_path / "model.onnx", opset=9)
    onnx.save(version_converter.convert_version(onnx.load(path), opset), path)
    torch.testing.assert_close(module(opened(path))(rows(4)), source(rows(4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mobilenet", "vit"])
def test_gradients_equal_finite_differences(name: str, tmp_path: Path) -> None:
    model = module(opened(export(seeded(NETS[name]), tmp_path / "model.onnx", opset=17))).double()
    x = rows(1).double()
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (gradient(model, x) * along).sum()
    weights = torch.arange(1.0, CLASSES + 1)
    higher, lower = ((model(x + step * along) * weights).sum() for step in (1e-6, -1e-6))
    torch.testing.assert_close(slope, (higher - lower).detach() / 2e-6, rtol=1e-6, atol=1e-8)


def test_an_evaluation_gives_the_result_of_the_network_that_was_exported(tmp_path: Path) -> None:
    source = seeded(NETS["mlp"])
    model = module(opened(export(source, tmp_path / "model.onnx", opset=13, rows=1)))
    x = rows(10)
    y, ball = source(x).argmax(1), eb.Linf(eps=EPS, lo=0, hi=1)
    y[:4] = (y[:4] + 1) % CLASSES
    first, second = (eb.evaluate(one, (x, y), ball, "fast", diagnose=0) for one in (source, model))
    assert first.robust_accuracy == second.robust_accuracy
    assert first.records["status"].to_pylist() == second.records["status"].to_pylist()
    assert 0 < first.robust_accuracy < 1


def test_parameters_and_dtype_are_those_of_the_file(tmp_path: Path) -> None:
    source = seeded(NETS["vgg"])
    model = module(opened(export(source, tmp_path / "model.onnx", opset=13)))
    assert [p.shape for p in model.parameters()] == [p.shape for p in source.parameters()]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    double = module(opened(export(source.double(), tmp_path / "double.onnx", opset=13, dtype=torch.float64)))
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    torch.testing.assert_close(double(rows(2).double()), source(rows(2).double()), atol=1e-12, rtol=0)
    assert double(rows(2)).dtype == torch.float32


def test_a_file_of_half_precision_is_read_in_half_precision(tmp_path: Path) -> None:
    source = seeded(NETS["mlp"]).half()
    found = opened(export(source, tmp_path / "model.onnx", opset=17, dtype=torch.float16))
    assert {p.dtype for p in module(found).parameters()} == {torch.float16}
    torch.testing.assert_close(module(found)(rows(3).half()), source(rows(3).half()), atol=2e-3, rtol=0)
    assert module(found)(rows(3)).dtype == torch.float32


def test_a_module_can_be_copied_and_sent_to_another_process(tmp_path: Path) -> None:
    model = module(opened(export(seeded(NETS["vit"]), tmp_path / "model.onnx", opset=17, rows=1)))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(rows(2)), model(rows(2)))


# Files made by hand


def save(path: Path, nodes: list[onnx.NodeProto], *, given: tuple[int | str, ...] = ("n", 4), **more: object) -> Path:
    """A file of some nodes from `x` to `y`; `more`: its constants, `outputs`, opset, metadata."""
    constants = {name: value for name, value in more.items() if isinstance(value, np.ndarray)}
    outputs = more.get("outputs", {"y": TensorProto.FLOAT})
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],  # type: ignore[attr-defined]
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", more.get("opset", 17)), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    helper.set_model_props(model, more.get("metadata", {}))  # type: ignore[arg-type]
    onnx.save(model, path)
    return path


WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def test_a_softmax_at_the_end_leaves_the_logits_before_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
    for given in (("n", 4), (1, 4), (4,)):
        axis = helper.make_node("Softmax", ["z"], ["y"], axis=-1)
        model = module(
            opened(save(tmp_path / "m.onnx", [nodes[0], axis if len(given) == 1 else nodes[1]], given=given, w=WEIGHT))
        )
        logits, kind = before_activation(model, rows(2, (4,)))
        assert kind == "softmax"
        torch.testing.assert_close(logits, rows(2, (4,)) @ torch.from_numpy(WEIGHT))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("zipmap", [False, True])
def test_scikit_learns_mlp_gives_its_scores_and_the_names_of_its_classes(
    classes: int, zipmap: bool, tmp_path: Path
) -> None:
    pytest.importorskip("skl2onnx")
    import warnings

    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    x = np.random.default_rng(0).random((60, 4)).astype(np.float32)
    y = np.array(["ant", "bee", "cat"])[(x.sum(1) * 1.5).astype(int) % classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = MLPClassifier((6,), max_iter=20, random_state=0).fit(x, y)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(source, x[:1], options={"zipmap": zipmap}).SerializeToString())
    found = opened(path)
    assert found.label_names == ("ant", "bee", "cat")[:classes]
    assert found.shape == (4,)
    assert any("is taken for the scores" in note for note in found.notes)
    probabilities = module(found)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(probabilities, source.predict_proba(x), atol=1e-6)
    logits, kind = before_activation(module(found), torch.from_numpy(x))
    assert kind == "softmax"
    np.testing.assert_array_equal(np.array(found.label_names)[logits.argmax(1)], source.predict(x))


def test_an_output_of_labels_alone_leads_to_the_scores_behind_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("ArgMax", ["z"], ["y"], axis=1)]
    found = opened(save(tmp_path / "m.onnx", nodes, w=WEIGHT, outputs={"y": TensorProto.INT64}))
    torch.testing.assert_close(module(found)(rows(2, (4,))), rows(2, (4,)) @ torch.from_numpy(WEIGHT))
    assert "'z', whose largest it is" in " ".join(found.notes)


def test_of_several_outputs_the_logits_are_chosen_and_the_others_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("MatMul", ["hidden", "w"], ["logits"])]
    outputs = {"hidden": TensorProto.FLOAT, "logits": TensorProto.FLOAT}
    found = opened(save(tmp_path / "m.onnx", nodes, w=WEIGHT, outputs=outputs))
    assert module(found)(rows(2, (4,))).shape == (2, 3)
    assert "'logits' is taken for the scores, and 'hidden' is left out" in " ".join(found.notes)


def test_names_of_classes_in_the_metadata_are_read(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    for text in ('["a", "b", "c"]', '{"0": "a", "1": "b", "2": "c"}'):
        found = opened(save(tmp_path / "m.onnx", nodes, w=WEIGHT, metadata={"names": text}))
        assert found.label_names == ("a", "b", "c")


def test_initialisers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHT)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3)))
    model.ir_version = 3
    onnx.save(model, path)
    assert module(opened(path))(rows(2, (4,))).shape == (2, 3)


def test_external_data_beside_the_model_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=np.ones((4, 300), np.float32))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    torch.testing.assert_close(module(opened(path))(torch.ones(1, 4)), torch.full((1, 300), 4.0))


def test_a_file_without_a_dimension_for_rows_is_mapped_over_the_examples(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], given=(4,), w=WEIGHT)
    found = opened(path)
    assert found.shape == (4,)
    torch.testing.assert_close(module(found)(rows(5, (4,))), rows(5, (4,)) @ torch.from_numpy(WEIGHT))
    assert module(found)(rows(0, (4,))).shape == (0, 3)


def test_free_sides_of_an_example_need_a_shape(tmp_path: Path) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, given=("n", 3, "h", "w"))
    with pytest.raises(eb.BadInput, match="its examples have the shape 3x"):
        opened(path)
    found = opened(path, shape=(3, 6, 5))
    assert found.shape is None
    assert module(found)(rows(2, (3, 8, 8))).shape == (2, 3)


def test_an_unknown_operator_names_itself_its_node_and_the_black_box_which_works(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Det", ["q"], ["y"], name="last")]
    nodes.insert(1, helper.make_node("Reshape", ["z", "s"], ["q"]))
    path = save(tmp_path / "m.onnx", nodes, w=np.eye(4, dtype=np.float32), s=np.array([-1, 2, 2]))
    with pytest.raises(eb.BadInput, match=r"'last' is the operator Det.*--black-box"):
        opened(path)
    box = opened(path, black_box=True).model
    assert isinstance(box, BlackBox)
    torch.testing.assert_close(box(rows(3, (4,))), torch.linalg.det(rows(3, (4,)).reshape(3, 2, 2)))


def test_a_pad_in_a_file_for_one_row_keeps_its_value(tmp_path: Path) -> None:
    pads, value = np.array([0, 0, 0, 2]), np.array(0.5, np.float32)
    path = save(tmp_path / "m.onnx", [helper.make_node("Pad", ["x", "p", "v"], ["y"])], given=(1, 4), p=pads, v=value)
    assert torch.equal(module(opened(path))(rows(3, (4,)))[:, 4:], torch.full((3, 2), 0.5))


def test_rows_in_a_reshape_in_the_middle_of_a_shape_are_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "merged"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "split"], ["s"]),
        helper.make_node("ReduceSum", ["s", "first"], ["y"], keepdims=0),
    ]
    for fixed in (1, 2, 3):
        constants = {"merged": np.array([5 * fixed, 4]), "split": np.array([5, fixed, 3]), "first": np.array([0])}
        path = save(tmp_path / "m.onnx", nodes, given=(fixed, 5, 4), w=WEIGHT, **constants)
        found = opened(path)
        x = rows(4, (5, 4))
        torch.testing.assert_close(module(found)(x), (x @ torch.from_numpy(WEIGHT)).sum(1))
        assert any("freed for any number" in note for note in found.notes)


@pytest.mark.parametrize("fixed", [None, 1, 2])
def test_a_black_box_answers_as_the_network_also_for_a_fixed_number_of_rows(fixed: int | None, tmp_path: Path) -> None:
    source = seeded(NETS["vgg"])
    box = opened(export(source, tmp_path / "model.onnx", opset=13, rows=fixed), black_box=True).model
    assert isinstance(box, BlackBox)
    for other in (box, pickle.loads(pickle.dumps(box))):
        torch.testing.assert_close(other(rows(3)), source(rows(3)).detach(), atol=1e-5, rtol=0)


def test_weights_beside_a_file_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHT)
    with pytest.raises(eb.BadInput, match="`weights` must be left out"):
        opened(path, weights=tmp_path / "w.pt")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHT)
    with pytest.raises(eb.BadInput, match=r"did you mean .*model\.onnx"):
        opened(tmp_path / "modle.onnx")


def test_a_module_that_differs_from_onnxruntime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epsball.models.onnx_operators import OPERATORS, Operator

    monkeypatch.setitem(OPERATORS, "MatMul", Operator(lambda a, b: a @ b + 0.01))
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHT)
    with pytest.raises(eb.BadInput, match=r"must be within 1e-04 of onnxruntime .*differ by"):
        opened(path)


def test_small_outputs_have_to_agree_too() -> None:
    from epsball.models.onnx_compare import TOLERANCE, _difference

    uniform = np.full((3, 21_000), 1 / 21_000, np.float32)  # a softmax over many classes
    assert _difference(np.zeros_like(uniform), uniform) > TOLERANCE[torch.float32]
    assert _difference(uniform, uniform) == 0

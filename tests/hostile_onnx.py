"""ONNX files as somebody might send them, and the importer that they are put to.

`python tests/hostile_onnx.py WORK EVERY` opens each EVERY-th in this process, which may take 1 GiB beside what it has,
and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MOST_SECONDS, MOST_BYTES = 5, 1 << 30
"""Of processor time, and beside what the process has."""
HANG = 60
"""Seconds after which a file that makes the importer wait counts as failed."""
FLOAT = TensorProto.FLOAT
node = helper.make_node


def model(
    nodes: list[NodeProto], *, given: tuple[Any, ...] = ("n", 4), opset: int = 17, **constants: Any
) -> ModelProto:
    """A model from x to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, given)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("evil", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def sound() -> ModelProto:
    return model([node("MatMul", ["x", "w"], ["y"])], w=np.ones((4, 3), np.float32))


def changed(change: Callable[[ModelProto], Any]) -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        one = sound()
        change(one)
        return one

    return make


def after(*nodes: NodeProto, **constants: Any) -> Callable[[], ModelProto]:
    """A sound model with some nodes behind it, from z to y."""
    return lambda: model([node("MatMul", ["x", "w"], ["z"]), *nodes], w=np.ones((4, 3), np.float32), **constants)


def external(location: str, **more: str) -> Callable[[ModelProto], None]:
    def change(one: ModelProto) -> None:
        tensor = one.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def weight(**fields: Any) -> Callable[[ModelProto], None]:
    """Fields of the weight set to something else."""

    def change(one: ModelProto) -> None:
        tensor = one.graph.initializer[0]
        for name, value in fields.items():
            tensor.ClearField(name)  # type: ignore[arg-type]
            getattr(tensor, name).extend(value) if isinstance(value, list) else setattr(tensor, name, value)

    return change


def with_body(op: str, **attributes: Any) -> Callable[[], ModelProto]:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["still"]), node("Identity", ["state"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, ()), value("go", TensorProto.BOOL, ()), value("state", FLOAT, None)],
        [value("still", TensorProto.BOOL, ()), value("next", FLOAT, None)],
    )
    inputs = ["times", "true", "x"] if op == "Loop" else ["x"]
    return lambda: model(
        [node(op, inputs, ["y"], body=body, **attributes)], times=np.array(1 << 62), true=np.array(True)
    )


def nested(levels: int) -> bytes:
    """An If in an If, so many times, on the wire."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while True:
            size += bytes([length & 127 | (128 if length > 127 else 0)])
            length >>= 7
            if not length:
                return bytes([number << 3 | 2]) + size + content

    graph = b""
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(4, b"If") + field(2, b"y") + field(5, attribute))
    return sound().SerializeToString() + field(7, graph)


def doubling(levels: int) -> ModelProto:
    """A function that calls another twice, and so on."""
    one = sound()
    for level in range(levels):
        inner = f"f{level + 1}" if level + 1 < levels else "Identity"
        domain = "evil" if level + 1 < levels else ""
        body = [NodeProto(op_type=inner, domain=domain, input=["a"], output=[b]) for b in ("b", "c")]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
        one.functions.append(helper.make_function("evil", f"f{level}", ["a"], ["b"], body, imports))
    one.graph.node[0].CopyFrom(NodeProto(op_type="f0", domain="evil", input=["x"], output=["y"]))
    return one


def calls_itself() -> ModelProto:
    one = doubling(1)
    one.functions[0].node[0].CopyFrom(NodeProto(op_type="f0", domain="evil", input=["a"], output=["b"]))
    return one


def chain(count: int) -> ModelProto:
    """So many tensors of 40 MB that are all wanted at the end."""
    nodes = [node("Expand", ["x", "s"], ["z0"])]
    nodes += [node("Add", [f"z{i}", "one"], [f"z{i + 1}"]) for i in range(count)]
    return model([*nodes, node("Sum", [f"z{i}" for i in range(count)], ["y"])], s=[1, 2_500_000, 4], one=np.float32(1))


def products(count: int) -> ModelProto:
    """Products of matrices of 4,000 x 4,000."""
    nodes = [node("Expand", ["one", "s"], ["z0"])]
    nodes += [node("MatMul", [f"z{i}", "z0"], [f"z{i + 1}"]) for i in range(count)]
    return model(
        [*nodes, node("MatMul", ["x", f"z{count}"], ["y"])], given=(1, 4000), s=[4000, 4000], one=np.float32(0)
    )


HUGE, ADDED = 10**12, node("Add", ["z", "c"], ["y"])
MODELS: dict[str, Callable[[], ModelProto]] = {
    "an input of a terabyte": lambda: model([node("Relu", ["x"], ["y"])], given=(1, 1_000_000, 1_000_000)),
    "an input of negative sides": lambda: model([node("Relu", ["x"], ["y"])], given=(1, -5)),
    "no input": changed(lambda one: one.graph.ClearField("input")),
    "two inputs": changed(lambda one: one.graph.input.append(helper.make_tensor_value_info("q", FLOAT, (1, 4)))),
    "an input of text": changed(lambda one: setattr(one.graph.input[0].type.tensor_type, "elem_type", 8)),
    "no output": changed(lambda one: one.graph.ClearField("output")),
    "an output that nothing makes": changed(lambda one: setattr(one.graph.output[0], "name", "q")),
    "a weight of a terabyte": changed(weight(dims=[1_000_000, 1_000_000])),
    "a weight of 2^200 numbers": changed(weight(dims=[1 << 40] * 5)),
    "a weight of negative sides": changed(weight(dims=[-4, -3])),
    "a weight with too few bytes": changed(weight(raw_data=b"1234")),
    "a weight with odd bytes": changed(weight(raw_data=b"1" * 47)),
    "a weight of an unknown type": changed(weight(data_type=999)),
    "a weight of texts": changed(weight(data_type=8, raw_data=b"")),
    "a weight with numbers twice": changed(weight(raw_data=b"", float_data=[1.0] * 3)),
    "external data: up": changed(external("../../../../etc/passwd")),
    "external data: absolute": changed(external("/etc/passwd")),
    "external data: a link to elsewhere": changed(external("link")),
    "external data: a pipe": changed(external("pipe")),
    "external data: a device": changed(external("zero")),
    "external data: nowhere": changed(external("")),
    "external data: a name with a zero": changed(external("a\0b")),
    "external data: before the beginning": changed(external("data", offset="-8", length="48")),
    "external data: beyond the end": changed(external("data", offset="1" + "0" * 30)),
    "external data: at text": changed(external("data", offset="9" * 5000)),
    "a circle": lambda: model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
    "an input that nothing makes": lambda: model([node("Add", ["x", "q"], ["y"])]),
    "a name that two nodes make": lambda: model([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])]),
    "an attribute of another type": lambda: model([node("Softmax", ["x"], ["y"], axis="first")]),
    "an attribute that is unknown": lambda: model([node("Relu", ["x"], ["y"], __class__=3)]),
    "an attribute that is missing": after(node("Concat", ["z", "z"], ["y"])),
    "an attribute with a graph": lambda: model([node("Relu", ["x"], ["y"], body=sound().graph)]),
    "too few inputs": lambda: model([node("MatMul", ["x"], ["y"])]),
    "a loop without end": with_body("Loop"),
    "a scan": with_body("Scan", num_scan_inputs=1),
    "a domain of its own": lambda: model([node("Run", ["x"], ["y"], domain="evil")]),
    "python": lambda: model([node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")]),
    "a function that calls itself": calls_itself,
    "functions that double 40 times": lambda: doubling(40),
    "a constant of a terabyte": after(node("ConstantOfShape", ["s"], ["c"]), node("Add", ["z", "c"], ["y"]), s=[HUGE]),
    "a constant of a negative shape": after(
        node("ConstantOfShape", ["s"], ["c"]), node("Add", ["z", "c"], ["y"]), s=[-5]
    ),
    "a range of a terabyte": after(
        node("Range", ["a", "b", "c"], ["r"]), node("Add", ["z", "r"], ["y"]), a=0, b=HUGE, c=1
    ),
    "a range of no steps": after(node("Range", ["a", "b", "c"], ["r"]), node("Add", ["z", "r"], ["y"]), a=0, b=9, c=0),
    "an expansion to a terabyte": after(node("Expand", ["z", "s"], ["y"]), s=[1_000_000, 1_000_000, 1, 3]),
    "tiles of a terabyte": after(node("Tile", ["z", "s"], ["y"]), s=[1, HUGE]),
    "a pad of a terabyte": after(node("Pad", ["z", "s"], ["y"]), s=[0, 0, 0, HUGE]),
    "a mirror of a terabyte": after(node("Pad", ["z", "s"], ["y"], mode="edge"), s=[0, 0, 0, HUGE]),
    "a resize to a terabyte": after(node("Resize", ["z", "", "", "s"], ["y"]), s=[1, HUGE]),
    "a resize by infinity": after(node("Resize", ["z", "", "s"], ["y"]), s=np.array([1, np.inf], np.float32)),
    "a resize by nothing": after(node("Resize", ["z", "", "s"], ["y"]), s=np.array([1, np.nan], np.float32)),
    "classes of a terabyte": after(
        *(node("ArgMax", ["z"], ["i"]), node("OneHot", ["i", "d", "v"], ["y"])), d=HUGE, v=np.array([0, 1], np.float32)
    ),
    "a sum of a terabyte": after(
        *(node("Expand", ["o", "p"], ["a"]), node("Expand", ["o", "q"], ["b"]), node("Add", ["a", "b"], ["c"])),
        node("Add", ["z", "c"], ["y"]),
        o=np.float32(1),
        p=[1, 1_000_000],
        q=[1_000_000, 1],
    ),
    "an einsum with a terabyte on its way": after(
        *(node("Expand", ["z", "s"], ["a"]), node("Einsum", ["a", "a", "a"], ["y"], equation="ij,kl,mn->ikm")),
        s=[30_000, 3],
    ),
    "a convolution with pads of a terabyte": after(
        *(node("Reshape", ["z", "s"], ["a"]), node("Conv", ["a", "k"], ["y"], pads=[HUGE, 0])),
        s=[-1, 1, 3],
        k=np.ones((1, 1, 2), np.float32),
    ),
    "a pool with steps of 0": after(
        *(node("Reshape", ["z", "s"], ["a"]), node("MaxPool", ["a"], ["y"], kernel_shape=[2], strides=[0])),
        s=[-1, 1, 3],
    ),
    "a pool of 0 places": after(
        *(node("Reshape", ["z", "s"], ["a"]), node("AveragePool", ["a"], ["y"], kernel_shape=[0])), s=[-1, 1, 3]
    ),
    "a slice by steps of 0": after(node("Slice", ["z", "a", "b", "c", "d"], ["y"]), a=[0], b=[2], c=[1], d=[0]),
    "a selection beyond the end": after(node("Gather", ["z", "i"], ["y"]), i=[1 << 40]),
    "an axis that is not there": after(node("Softmax", ["z"], ["y"], axis=9)),
    "a mean over no axis": after(node("ReduceMean", ["z"], ["y"], axes=[1 << 40])),
    "the largest 10^12": after(node("TopK", ["z", "k"], ["y", "i"]), k=[HUGE]),
    "a cast to text": after(node("Cast", ["z"], ["y"], to=8)),
    "a split into too many": after(node("Split", ["z"], ["y", "q"], axis=9)),
    "tensors of 4 GB at a time": lambda: chain(100),
    "products of hours": lambda: products(1000),
    "a hundred thousand nodes": lambda: model(
        [node("Relu", [f"z{i}" if i else "x"], [f"z{i + 1}"]) for i in range(100_000)] + [node("Relu", ["z9"], ["y"])]
    ),
    "an opset of the future": lambda: model([node("Relu", ["x"], ["y"])], opset=999),
    "no opset": changed(lambda one: one.ClearField("opset_import")),
    "a name of 10 MB": lambda: model([node("Det", ["x"], ["y"], name="n" * 10_000_000)]),
    "a default of another kind": changed(
        lambda one: one.graph.node[0].attribute.append(AttributeProto(name="axis", type=AttributeProto.TENSORS))
    ),
}
BYTES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "noise": lambda: np.random.default_rng(0).bytes(100_000),
    "text": lambda: b"<!DOCTYPE html><html><body>Not found</body></html>",
    "cut off": lambda: sound().SerializeToString()[:-20],
    "a pickle": lambda: b"cos\nsystem\n(S'touch ran'\ntR.",
    "graphs in graphs, a thousand deep": lambda: nested(1000),
    "graphs in graphs, twelve deep": lambda: nested(12),
    "ten million empty nodes": lambda: b"\x3a" + varint(20_000_000) + b"\x0a\x00" * 10_000_000,
    "a hundred million numbers in as many bytes": lambda: field_of(field_of(bytes(100_000_000), 7), 5),
    "a length of 2^63": lambda: b"\x3a" + b"\xff" * 8 + b"\x7f",
    "a number without end": lambda: b"\x3a" + b"\xff" * 1000,
}


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field_of(content: bytes, number: int) -> bytes:
    """A graph with one field of an initialiser."""
    inner = bytes([number << 3 | 2]) + varint(len(content)) + content
    return bytes([7 << 3 | 2]) + varint(len(inner)) + inner if number == 5 else inner


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(struct.pack("<BB", 8, 8))
            file.truncate(size)

    return make


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "3 GB of zeros": sparse(3 << 30),
    "900 MB of zeros": sparse(900 << 20),
}
SOUND: dict[str, Callable[[], ModelProto]] = {
    "names of 100 MB": changed(lambda one: one.metadata_props.add(key="names", value='["a"' + ' ,"a"' * 20_000_000)),
    "names a million deep": changed(lambda one: one.metadata_props.add(key="names", value="[" * 1_000_000)),
}
"""Files that are read, whatever their metadata."""


def cases(every: int) -> dict[str, Callable[[Path], object]]:
    written = {name: (lambda path, make=make: path.write_bytes(make())) for name, make in BYTES.items()}
    models = {
        name: (lambda path, make=make: path.write_bytes(make().SerializeToString()))
        for name, make in (MODELS | SOUND).items()
    }
    everything = {**PLACES, **written, **models}
    return {name: everything[name] for name in list(everything)[::every]}


def too_long(*_: object) -> None:
    raise TimeoutError("longer than it may take")


def main(work: Path, every: int) -> None:
    from epsball.common.errors import BadInput
    from epsball.models.door import Asked
    from epsball.models.onnx_file import open_onnx

    (work / "first.onnx").write_bytes(sound().SerializeToString())
    open_onnx(Asked(spec=str(work / "first.onnx")))  # imports what it needs
    signal.signal(signal.SIGALRM, too_long)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, resource.RLIM_INFINITY))
    for number, (name, make) in enumerate(cases(every).items()):
        here = work / f"case{number}"
        here.mkdir()
        with chdir(here):
            os.mkfifo("pipe")
            Path("zero").symlink_to("/dev/zero")
            Path("link").symlink_to("/etc/passwd")
            Path("data").write_bytes(bytes(48))
            child = os.fork()
            if not child:
                make(Path("model.onnx"))
                os._exit(0)
            os.waitpid(child, 0)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            signal.alarm(HANG)
            try:
                text, kind = str(open_onnx(Asked(spec="model.onnx")).notes), "read"
            except BadInput as error:
                text, kind = str(error), "refused"
            except BaseException as error:  # nothing else should come through
                text, kind = f"{type(error).__name__}: {error}"[:500], "error"
            signal.alarm(0)
            seconds = time.process_time() - start
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            ran = Path("ran").exists()
        found = {"name": name, "kind": kind, "text": text, "seconds": seconds, "grown": grown, "ran": ran}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Files as somebody might send them: more than a hundred, made on the spot, and the commands that they are put to.

`python tests/hostile.py WORK EVERY` runs each EVERY-th case in this process, which may take 1 GiB beside what it has,
and prints a line of JSON for each. It begins with copies of WORK/sound, which it makes where it is not there.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from commands import run
from PIL import Image
from safetensors.torch import save_file

MOST_SECONDS, MOST_BYTES = 10, 1 << 30
"""Of processor time, whatever else the machine does now."""
HANG = 60
"""Seconds after which a command that waits is ended, and counts as failed."""
SHORT = ("--limit", "12", "--attacks", "fgsm", "--diagnose", "0")


@dataclass(frozen=True)
class Case:
    """A command (`{}` is the folder in which it runs) and what is done to the sound files before."""

    name: str
    command: tuple[str, ...]
    spoil: Callable[[Path], object]


class Runs:
    """What pickles to a command of the shell, which leaves a file `ran`."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch ran",)


VERIFY, REPORT = ("verify", "run"), ("report", "run")
COMPARE = ("compare", "run", "other")
AGAIN = ("evaluate", *SHORT, "--epochs", "1", "--out", "run")
FOLDER = ("evaluate", "--model", "trained", *SHORT)
RESUME = ("train", "--out", "trained", "--resume")
WEIGHTS = ("evaluate", "--model", "small-mlp", *SHORT, "--weights")
NPZ = ("evaluate", "--data", "data.npz", "--model", "small-mlp", "--weights", "trained/model.safetensors", *SHORT)
IMAGES = ("evaluate", "--data", "pictures", "--model", "small-mlp", "--weights", "trained/model.safetensors", *SHORT)
CONFIG = ("evaluate", "--config", "c.toml", *SHORT, "--epochs", "1")
LINEAR = ("linear", "attack", "--model", "m.skops", "--data", "rows.csv", "--target", "y", "--out", "a.csv")


def fit(data: str) -> tuple[str, ...]:
    return ("linear", "fit", "--data", data, "--target", "y", "--out", "new.skops")


def sound(work: Path) -> None:
    """A run, another, a trained model with its checkpoints, a table, a linear model, pictures, and a hostile module."""
    work.mkdir(parents=True)
    with chdir(work):
        Path("hostile_nets.py").write_text("open('ran', 'w').close()\n")
        for out in ("run", "other"):
            assert command("evaluate", *SHORT, "--epochs", "1", "--out", out)[0] == 0
        assert command("train", "--epochs", "1", "--limit", "100", "--out", "trained")[0] == 0
        rows = "".join(f"{i % 7},{(i * 3) % 5},{'ab'[i % 7 > 3]}\n" for i in range(40))
        Path("rows.csv").write_text(f"u,v,y\n{rows}")
        code, text = command("linear", "fit", "--data", "rows.csv", "--target", "y", "--out", "m.skops")
        assert code == 0, text
        np.savez("data.npz", x=np.zeros((12, 1, 8, 8), np.float32), y=np.zeros(12, np.int64))
        for label in ("a", "b"):
            Path("pictures", "test", label).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), number).save(f"pictures/test/{label}/{number}.png")


def command(*arguments: str) -> tuple[int, str]:
    """`epsball ARGUMENTS`: its exit code and what it writes."""
    found = run(*arguments)
    return found.returncode, found.stdout + found.stderr


# Anything in the place of a file

CHECKPOINT = "trained/training/newest"


def newest(place: str) -> str:
    """A place in which the newest checkpoint is called so."""
    last = sorted(Path("trained/training").glob("checkpoint-*"))[-1].name
    return place.replace("newest", last)


def put(place: str, content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda work: Path(newest(place)).write_bytes(data)


def instead(place: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(work: Path) -> None:
        path = Path(newest(place))
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def sparse(size: int) -> Callable[[Path], object]:
    """A file of so many zeros, which takes no room on the disk."""

    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(size)

    return make


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "4 GB of zeros": sparse(4 << 30),
    "nothing": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
}
JSON: dict[str, str | bytes] = {
    "a thousand levels": '{"a":' * 1000 + "1" + "}" * 1000,
    "a million levels": "[" * 1_000_000,
    "two million lists": "[" + "[]," * 2_000_000 + "[]]",
    "a list": "[1, 2]",
    "a number of 5,000 digits": '{"format": ' + "9" * 5000 + "}",
    "no text": b'{"a": "\xff\xfe"}',
    "one word": "null",
}
JSON_FILES = {
    "run/config.json": (VERIFY, REPORT),
    "run/command.json": (VERIFY, REPORT),
    "run/model.json": (VERIFY, AGAIN),
    "run/diagnosis.json": (REPORT,),
    "trained/model.json": (FOLDER,),
    "trained/command.json": (RESUME,),
    f"{CHECKPOINT}/checkpoint.json": (RESUME,),
}
OTHER_FILES = {
    "run/model.safetensors": VERIFY,
    "run/stages/00000-clean.parquet": VERIFY,
    "run/records/00000.parquet": COMPARE,
    "trained/model.safetensors": FOLDER,
    f"{CHECKPOINT}/00000.safetensors": RESUME,
    "data.npz": NPZ,
    "m.skops": LINEAR,
    "rows.csv": fit("rows.csv"),
    "rows.parquet": fit("rows.parquet"),
    "rows.npz": fit("rows.npz"),
    "c.toml": CONFIG,
    "w.pt": (*WEIGHTS, "w.pt"),
    "w.safetensors": (*WEIGHTS, "w.safetensors"),
    "pictures/test/a/0.png": IMAGES,
}


def places() -> Iterator[Case]:
    for place, commands in JSON_FILES.items():
        for number, (what, make) in enumerate((PLACES | {n: _writes(t) for n, t in JSON.items()}).items()):
            yield Case(f"{place}: {what}", commands[number % len(commands)], instead(place, make))
    for place, one in OTHER_FILES.items():
        for what, make in PLACES.items():
            yield Case(f"{place}: {what}", one, instead(place, make))


def _writes(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


# Values that no run has


def changed(place: str, *names: str, to: Any) -> Callable[[Path], object]:
    """An entry of a JSON file set to something else; the checksum is left out, as by whoever edits the file."""

    def spoil(work: Path) -> None:
        path = Path(newest(place))
        values = json.loads(path.read_text())
        values.pop("checksum", None)
        part = values
        for name in names[:-1]:
            part = part[int(name) if isinstance(part, list) else name]
        part[names[-1]] = to
        path.write_text(json.dumps(values))

    return spoil


STAGE = {"name": "fgsm-0.1", "attack": "fgsm", "eps": 0.1, "minimises": False, "within": None}
CONFIG_VALUES: dict[str, tuple[Any, ...]] = {
    "data n": (10**12, -1, "12", 1e300, None),
    "data shape": ([0], [-1, 8, 8], [10**9, 10**9], "8x8", [1.5], [[8]], None, [1] * 99),
    "data dtype": ("float31", "int64", "__class__", 3),
    "data class_names": ("abc", [1, 2], {"a": 1}),
    "data": ([], None),
    "shard_size": (0, -5, "a", 1e9),
    "stages": ({}, [], [1], [STAGE | {"name": "../../../etc/passwd"}], [STAGE | {"eps": "x"}], [STAGE | {"attack": 3}]),
    "radii": ([], "0.1", [{}], ["nan"], [[0.1]], None),
    "norms": ({"linf": 3}, ["linf"], {"nonsense": "N"}, 5),
    "ball": ({}, [], {"norm": "nonsense", "class": "X", "eps": 1, "lo": 0, "hi": 1, "mask": None}),
    "ball eps": ("tensor 0123", {}, [1], "abc"),
    "storage": ({"dtype": "float32", "x_adv": "9bit"}, {"lo": "a"}, {"dtype": "float32", "lo": [], "x_adv": "8bit"}, 3),
    "eot": (0, 10**15, "1", None),
    "seed": ("a", None, 10**400),
    "target": (3, []),
    "min_norm": (1, "yes", None),
    "attacks": ("fgsm", None),
    "protocol": (3,),
    "reaction": ([], {"because": 3}),
    "acceleration": (3,),
    "success": (3, None),
}
MODEL_VALUES: dict[str, tuple[Any, ...]] = {
    "spec": (
        "hostile_nets:make",
        "preact-resnet18:width=100000000",
        "os:system",
        "maxout:units=999999999",
        ":",
        "x:",
        3,
    ),
    "shape": ([0, 8, 8], [10**9, 10**9, 3], [1e9], "188", [], [-1], [[8]], None),
    "classes": (10**12, 0, -3, 2.5, "10", None),
    "label_names": (3, [1], "abc"),
    "training": ([], None),
    "sha256": ("0" * 64, 3, None),
    "format": ("epsball model 99", None),
}
COMMAND_VALUES: dict[str, tuple[Any, ...]] = {
    "subject model": ("hostile_nets:make", "small-mlp:width=3", "/dev/zero", 3, "../../.."),
    "subject weights": ("/dev/zero", 3, "none.pt"),
    "subject trust": (True,),
    "subject seed": ("a", 10**30),
    "subject": ([], None, {}),
    "directory": (3, None),
    "classes": ("ten", 10**12, -1),
}
COUNTERS: dict[str, tuple[Any, ...]] = {
    "epoch": (-3, 10**30, "a", 1e400),
    "history": ("a", [1], {}),
    "checks": ([{}], [3]),
    "plan": (3, {"rewriting": "evil"}),
    "best_check": ("a", {}),
}


def values() -> Iterator[Case]:
    tables = {
        "run/config.json": (CONFIG_VALUES, (REPORT, VERIFY, COMPARE), ()),
        "trained/model.json": (MODEL_VALUES, (FOLDER,), ()),
        "run/command.json": (COMMAND_VALUES, (VERIFY,), ()),
        f"{CHECKPOINT}/checkpoint.json": (COUNTERS, (RESUME,), ("values", "counters")),
    }
    for place, (table, commands, before) in tables.items():
        turn = 0
        for names, others in table.items():
            for other in others:
                spoil = changed(place, *before, *names.split(), to=other)
                yield Case(f"{place}: {names} = {str(other)[:40]}", commands[turn % len(commands)], spoil)
                turn += 1
    asked = "trained/command.json"
    yield Case("a resume that names code", RESUME, changed(asked, "asked", "model", to="hostile_nets:make"))
    yield Case("a resume that trusts itself", RESUME, both(
        changed(asked, "asked", "model", to="hostile_nets:make"), changed(asked, "asked", "trust", to=True)
    ))  # fmt: skip
    yield Case("a resume elsewhere", RESUME, changed(asked, "asked", "out", to="run"))
    yield Case("a resume of something else", RESUME, changed(asked, "asked", "epochs", to=[1, {}]))
    yield Case("a model with a hostile module", FOLDER, changed("trained/model.json", "spec", to="hostile_nets:make"))


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(work: Path) -> None:
        for one in spoils:
            one(work)

    return spoil


# Tables and records of a run


def rewritten(place: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda work: pq.write_table(change(pq.read_table(place)), place)


def noted(notes: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({b"epsball": json.dumps(notes).encode()})


def bomb_table(path: Path) -> None:
    """A gigabyte of zeros in some kilobytes."""
    column = pa.array(np.zeros(1 << 20))
    pq.write_table(pa.table({f"c{i}": column for i in range(127)} | {"y": column}), path, compression="zstd")


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array([values] * len(table))
        return table.set_column(table.column_names.index(name), name, column)

    return change


def tables() -> Iterator[Case]:
    records, clean, fgsm = "run/records/00000.parquet", "run/stages/00000-clean.parquet", "run/stages/00000-fgsm*"
    for place, one in ((records, REPORT), (records, COMPARE), (clean, VERIFY), (clean, REPORT)):
        yield Case(f"{place}: a bomb", one, instead(place, bomb_table))
        for notes in ([], {"stages": 3}, {"stages": ["../../x"]}, {"stage": {"name": "a"}}, {"stages": ["clean"]}, {}):
            yield Case(f"{place}: notes {notes}, {one[0]}", one, rewritten(place, noted(notes)))
        yield Case(f"{place}: no columns", one, rewritten(place, lambda table: table.select([])))
        yield Case(f"{place}: no rows", one, rewritten(place, lambda table: table.slice(0, 0)))
        yield Case(f"{place}: rows twice", one, rewritten(place, lambda table: pa.concat_tables([table, table])))
    for name, other in (("status", "wonderful"), ("label", -5), ("label", 10**15), ("id", 0), ("status", None),
                        ("distance", "far"), ("clean_prediction", 10**12), ("attack", None)):  # fmt: skip
        for one in (REPORT, VERIFY):
            yield Case(f"records: {name} = {other}, {one[0]}", one, rewritten(records, replaced(name, other)))
    for name, other in (("x_adv", [1.0]), ("x_adv", "a"), ("x", 3), ("fooled", 1), ("crc32", -1)):

        def spoil(work: Path, name: str = name, other: Any = other) -> None:
            for path in map(str, Path("run/stages").glob("*fgsm*")):
                rewritten(path, replaced(name, other))(work)

        for one in (REPORT, VERIFY):
            yield Case(f"{fgsm}: {name} = {other}, {one[0]}", one, spoil)


# Weights


def tensors(path: Path, **state: Any) -> None:
    torch.save(state, path)


def odd_weights() -> dict[str, Callable[[Path], object]]:
    return {
        "a command": lambda path: path.write_bytes(pickle.dumps(Runs())),
        "a command in an archive": lambda path: torch.save(Runs(), path),
        "a command beside weights": lambda path: torch.save({"1.weight": torch.zeros(2), "run": Runs()}, path),
        "sparse": lambda path: tensors(path, a=torch.eye(3).to_sparse()),
        "compressed sparse": lambda path: tensors(path, a=torch.eye(3).to_sparse_csr()),
        "quantised": lambda path: tensors(path, a=torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)),
        "meta": lambda path: tensors(path, a=torch.empty(3, device="meta")),
        "one number a trillion times": lambda path: tensors(path, a=torch.zeros(1).expand(10**6, 10**6)),
        "complex": lambda path: tensors(path, a=torch.zeros(3, dtype=torch.complex64)),
        "no tensors": lambda path: tensors(path, a=3, b="x"),
        "a module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "a bomb": lambda path: bomb_zip(path, "archive/data.pkl"),
    }


def fitted_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    """Weights with the right names and shapes, one of them something else."""

    def make(path: Path) -> None:
        from safetensors.torch import load_file

        state = load_file("trained/model.safetensors")
        first = next(iter(state))
        torch.save(state | {first: change(state[first])}, path)

    return make


def header(content: bytes | dict[str, Any], length: int | None = None) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = struct.pack("<Q", len(data) if length is None else length)
    return lambda path: path.write_bytes(head + data + bytes(64))


def entry(**change: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | change}


HEADERS: dict[str, Callable[[Path], object]] = {
    "a length of 2^63": header(b"{}", 1 << 63),
    "a length of 2 GB": header(b"{}", 2 << 30),
    "no text": header(b"\xff\xfe\x00"),
    "a million levels": header(b'{"a":' * 200_000),
    "a list": header(b"[]"),
    "unknown numbers": header(entry(dtype="F31")),
    "negative sides": header(entry(shape=[-4])),
    "huge sides": header(entry(shape=[1 << 62, 1 << 62])),
    "offsets beyond the file": header(entry(data_offsets=[0, 1 << 40])),
    "offsets backwards": header(entry(data_offsets=[16, 0])),
    "a side too many": header(entry(shape=[4, 0, 1 << 62], data_offsets=[0, 0])),
}


def weights() -> Iterator[Case]:
    for what, make in odd_weights().items():
        yield Case(f"w.pt: {what}", (*WEIGHTS, "w.pt"), instead("w.pt", make))
    oddly: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sparse": torch.Tensor.to_sparse,
        "meta": lambda value: value.to("meta"),
        "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "complex": lambda value: value.to(torch.complex64),
        "text": lambda value: "text",  # type: ignore[return-value]
    }
    for what, change in oddly.items():
        yield Case(f"w.pt: the first {what}", (*WEIGHTS, "w.pt"), instead("w.pt", fitted_weights(change)))
    yield Case("a pickle called skops", LINEAR, put("m.skops", pickle.dumps(Runs())))
    yield Case("weights called .pkl", (*WEIGHTS, "w.pkl"), put("w.pkl", pickle.dumps(Runs())))
    for what, make in HEADERS.items():
        yield Case(f"w.safetensors: {what}", (*WEIGHTS, "w.safetensors"), instead("w.safetensors", make))
        place = f"{CHECKPOINT}/00000.safetensors"
        yield Case(f"a checkpoint: {what}", RESUME, instead(place, make))
    yield Case("a checkpoint: other tensors", RESUME, instead(
        f"{CHECKPOINT}/00000.safetensors", lambda path: save_file({"model.1.weight": torch.zeros(3)}, path)
    ))  # fmt: skip
    yield Case("a checkpoint: no tensors", RESUME, instead(
        f"{CHECKPOINT}/00000.safetensors", lambda path: save_file({}, path)
    ))  # fmt: skip
    yield Case("a checkpoint: a pickle", RESUME, pickled_checkpoint)
    for count in (0, -1, 10**12, "a"):
        index = f"{CHECKPOINT}/checkpoint.json"
        yield Case(f"a checkpoint: of {count} processes", RESUME, changed(index, "processes", to=count))


def pickled_checkpoint(work: Path) -> None:
    """As earlier versions wrote it."""
    place = Path(newest(CHECKPOINT))
    shutil.rmtree(place)
    place.mkdir()
    (place / ".metadata").write_bytes(pickle.dumps(Runs()))


# Archives


def bomb_zip(path: Path, name: str) -> None:
    """200 MB of zeros in 200 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open(name, "w", force_zip64=True) as member:
        for _ in range(200):
            member.write(bytes(1 << 20))


def npy(dtype: str, shape: str, data: bytes = bytes(64)) -> bytes:
    """An array with a header as one likes."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as file:
            for name, data in members.items():
                file.writestr(name, data)

    return make


LABELS = npy("'<i8'", "(12,)", bytes(96))
ARRAYS: dict[str, Callable[[Path], object]] = {
    "a bomb": lambda path: bomb_zip(path, "x.npy"),
    "a terabyte by its header": archive({"x.npy": npy("'<f4'", "(12, 99999999999)"), "y.npy": LABELS}),
    "a negative side": archive({"x.npy": npy("'<f4'", "(-12, 4)"), "y.npy": LABELS}),
    "objects": archive({"x.npy": npy("'|O'", "(12,)", pickle.dumps(Runs())), "y.npy": LABELS}),
    "a header with code": archive({"x.npy": npy("__import__('os').system('touch ran')", "(12,)"), "y.npy": LABELS}),
    "a header of a thousand levels": archive({"x.npy": npy("'<f4'", "(" * 1000), "y.npy": LABELS}),
    "text": archive({"x.npy": npy("'<U1'", "(12, 1)", bytes(48)), "y.npy": LABELS}),
    "dates": archive({"x.npy": npy("'<M8[s]'", "(12, 1)", bytes(96)), "y.npy": LABELS}),
    "raw bytes": archive({"x.npy": npy("'|V4'", "(12, 1)", bytes(48)), "y.npy": LABELS}),
    "complex numbers": archive({"x.npy": npy("'<c8'", "(12, 1)", bytes(96)), "y.npy": LABELS}),
    "no arrays": archive({"x": b"hello", "y": b"you"}),
    "a pickle": archive({"x.npy": pickle.dumps(Runs()), "y.npy": LABELS}),
    "another compression": archive({"x.npy": npy("'<f4'", "(12, 1)", bytes(48)), "y.npy": LABELS}, zipfile.ZIP_LZMA),
    "a member cut off": lambda path: path.write_bytes(Path("../sound/data.npz").read_bytes()[:1500]),
    "a member damaged": lambda path: damaged_member(path),
}


def damaged_member(path: Path) -> None:
    np.savez_compressed(path, x=np.arange(768, dtype=np.float32).reshape(12, 1, 8, 8), y=np.zeros(12, np.int64))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


def schema(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """The linear model with another text of what it is made of."""

    def make(work: Path) -> None:
        with zipfile.ZipFile("m.skops") as file:
            members = {name: file.read(name) for name in file.namelist()}
        found = change(json.loads(members["schema.json"]))
        members["schema.json"] = found if isinstance(found, bytes) else json.dumps(found).encode()
        archive(members)(Path("m.skops"))

    return make


SCHEMAS: dict[str, Callable[[Any], Any]] = {
    "a command": lambda found: found | {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode"},
    "a thousand levels": lambda found: b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "nothing": lambda found: {},
    "a list": lambda found: [],
    "another loader": lambda found: found | {"__loader__": "MethodNode"},
    "no content": lambda found: found | {"content": None},
    "an unknown version": lambda found: found | {"protocol": 10**9},
}


def archives() -> Iterator[Case]:
    for what, make in ARRAYS.items():
        yield Case(f"data.npz: {what}", NPZ, instead("data.npz", make))
        yield Case(f"rows.npz: {what}", fit("rows.npz"), instead("rows.npz", make))
    yield Case("m.skops: a bomb", LINEAR, instead("m.skops", lambda path: bomb_zip(path, "schema.json")))
    for what, change in SCHEMAS.items():
        yield Case(f"m.skops: {what}", LINEAR, schema(change))


# Tables, settings and pictures

TEXTS = {
    "a line of 20 MB": "u,v,y\n" + "1" * 20_000_000,
    "a million columns": ",".join(f"c{i}" for i in range(300_000)) + "\n1",
    "zeros": b"u,v,y\n1,2\0,a\n",
    "one quote": 'u,v,y\n1,"2,a\n' * 50,
    "no rows": "u,v,y\n",
}
SETTINGS = {
    "a key of half a million parts": "a." * 500_000 + "a = 1",
    "tables of half a million parts": "[" + "a." * 500_000 + "a]",
    "a key of 60 parts, often": "\n".join("a." * 60 + f"k{i} = 1" for i in range(8000)),
    "lists in lists": "seed = " + "[" * 100_000,
    "tables in tables": "seed = " + "{a=" * 100_000,
    "no text": b"\xff\xfe",
    "trust": "trust = true",
    "a number of 5,000 digits": "seed = " + "9" * 5000,
    "a long name": "a" * 900_000 + " = 1",
}


def big_picture(path: Path) -> None:
    Image.new("1", (13000, 13000)).save(path, "PNG")


def claimed_picture(path: Path) -> None:
    """A PNG whose header claims four billion pixels."""
    from zlib import crc32

    head = b"IHDR" + struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", crc32(head)))


PICTURES: dict[str, Callable[[Path], object]] = {
    "169 megapixels": big_picture,
    "four billion pixels by its header": claimed_picture,
    "a program for a printer": lambda path: path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n"
    ),
    "cut off": lambda path: path.write_bytes(Path("pictures/test/b/0.png").read_bytes()[:40]),
    "of another size": lambda path: Image.new("L", (9, 8)).save(path),
    "of floating-point numbers": lambda path: Image.new("F", (8, 8)).save(path, "TIFF"),
}


def named_picture(target: str) -> Callable[[Path], object]:
    """A table whose pictures are said to lie elsewhere."""

    def spoil(work: Path) -> None:
        shutil.rmtree("pictures")
        Path("pictures").mkdir()
        os.mkfifo("elsewhere")
        image = pa.array([{"bytes": None, "path": target}] * 4, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        pq.write_table(pa.table({"image": image, "label": [0, 1, 0, 1]}), "pictures/test.parquet")

    return spoil


def others() -> Iterator[Case]:
    for what, text in TEXTS.items():
        yield Case(f"rows.csv: {what}", fit("rows.csv"), put("rows.csv", text))
    yield Case("rows.parquet: a bomb", fit("rows.parquet"), instead("rows.parquet", bomb_table))
    for what, text in SETTINGS.items():
        yield Case(f"c.toml: {what}", CONFIG, put("c.toml", text))
    for what, make in PICTURES.items():
        yield Case(f"pictures: {what}", IMAGES, instead("pictures/test/a/0.png", make))
    for target in ("elsewhere", "/dev/zero", "https://127.0.0.1:9/x.png"):
        yield Case(f"pictures: at {target}", IMAGES, named_picture(target))


def cases() -> list[Case]:
    return [*places(), *values(), *tables(), *weights(), *archives(), *others()]


# The process that runs them


def too_long(*_: object) -> None:
    raise TimeoutError("longer than it may take")


def main(work: Path, every: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    if not (work / "sound").exists():
        sound(work / "sound")
    signal.signal(signal.SIGALRM, too_long)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    for number, case in enumerate(cases()[::every]):
        here = work / f"case{number}"
        shutil.copytree(work / "sound", here)
        with chdir(here):
            case.spoil(here)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            signal.alarm(HANG)
            try:
                code, text = command(*case.command)
            except BaseException as error:  # nothing should come through
                code, text = -1, f"{type(error).__name__}: {error}"
            signal.alarm(0)
            seconds = time.process_time() - start
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            ran = Path("ran").exists() or "hostile_nets" in sys.modules
        sys.modules.pop("hostile_nets", None)
        found = {"code": code, "text": text, "seconds": seconds, "grown": grown, "ran": ran}
        print(json.dumps({"name": case.name} | found), flush=True)
        shutil.rmtree(here)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

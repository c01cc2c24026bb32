"""Skops files: what was saved comes back as the same function; files as somebody might send them are refused."""

from __future__ import annotations

import io
import json
import pickle
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.linear.hinge import RobustLinearSVC
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked
from epsball.models.estimators import module_of
from epsball.models.skops_file import open_skops

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, NUMBER = load_iris(return_X_y=True)
Y = np.array(["setosa", "versicolor", "virginica"])[NUMBER]
MODELS: dict[str, Callable[[], Any]] = {
    "pipeline": lambda: make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 2])], remainder="passthrough"), SVC()
    ),
    "network": lambda: make_pipeline(FunctionTransformer(np.log1p), MLPClassifier((4,), max_iter=30, random_state=0)),
    "calibrated": lambda: CalibratedClassifierCV(GaussianNB(), cv=2),
    "robust": lambda: RobustLinearSVC(eps=0.1, norm="l2"),
    "sparse": lambda: LogisticRegression(l1_ratio=1.0, solver="saga", C=0.05, max_iter=50),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "m.skops"
    skops.io.dump(make_pipeline(StandardScaler(), SVC()).fit(X, Y), path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_saved_classifier_opens_as_the_same_function(name: str, tmp_path: Path):
    model = MODELS[name]().fit(X, Y)
    model = model.sparsify() if name == "sparse" else model
    skops.io.dump(model, path := tmp_path / "m.skops")
    found = open_skops(Asked(spec=str(path)))
    assert isinstance(found.model, nn.Module)
    assert found.label_names == ("setosa", "versicolor", "virginica")
    x = torch.from_numpy(X)
    with torch.no_grad():
        assert torch.equal(found.model(x), module_of(model)(x))
        predicted = model.classes_[found.model(x).argmax(1).numpy()]
    np.testing.assert_array_equal(predicted, model.predict(X))


def test_file_is_evaluated_as_the_estimator_in_memory(saved: Path):
    model = open_skops(Asked(spec=str(saved))).model
    settings: Any = {"attacks": "pgd:steps=5", "diagnose": 0}
    ours = eb.evaluate(model, (X[::5], NUMBER[::5]), "linf:0.3", **settings)
    theirs = eb.evaluate(module_of(skops.io.load(saved)), (X[::5], NUMBER[::5]), "linf:0.3", **settings)
    assert ours.robust_accuracy == theirs.robust_accuracy < ours.clean_accuracy


def test_type_that_skops_does_not_trust_is_refused_by_name_and_trusted_on_demand(tmp_path: Path):
    model = RandomForestClassifier(3, random_state=0).fit(X, Y)
    skops.io.dump(model, path := tmp_path / "forest.skops")
    with pytest.raises(BadInput, match=r"holds sklearn\.tree\._tree\.Tree; if you know who wrote the file, write --t"):
        open_skops(Asked(spec=str(path)))
    found = open_skops(Asked(spec=str(path), trust=True))
    assert isinstance(found.model, BlackBox)
    assert "trusted: sklearn.tree._tree.Tree" in found.notes
    predicted = model.classes_[found.model(torch.from_numpy(X)).argmax(1).numpy()]
    np.testing.assert_array_equal(predicted, model.predict(X))


def test_what_is_no_classifier_is_refused(tmp_path: Path):
    skops.io.dump(LinearRegression().fit(X, NUMBER), path := tmp_path / "m.skops")
    with pytest.raises(BadInput, match="got the regressor LinearRegression"):
        open_skops(Asked(spec=str(path)))
    skops.io.dump({"a": 1}, path)
    with pytest.raises(BadInput, match=r"must be an estimator, but .* holds dict"):
        open_skops(Asked(spec=str(path)))
    with pytest.raises(BadInput, match="there is no"):
        open_skops(Asked(spec=str(tmp_path / "none.skops")))
    with pytest.raises(BadInput, match="`weights` must be left out"):
        open_skops(Asked(spec=str(path), weights=path))


# Files as somebody might send them

Members = dict[str, bytes]


def ran() -> None:
    """What hostile files try to call."""
    raise AssertionError("a file ran code")


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return ran, ()


def npy(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array, allow_pickle=True)
    return buffer.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    """An array of no bytes that claims to be of that shape."""
    np.lib.format.write_array_header_1_0(
        buffer := io.BytesIO(), {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def archive(members: Members) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def nodes(part: Any) -> list[dict[str, Any]]:
    """All objects of a schema."""
    found, waiting = [], [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found.append(one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


def in_schema(change: Callable[[dict[str, Any]], None]) -> Callable[[Members], None]:
    def changed(members: Members) -> None:
        content = json.loads(members["schema.json"])
        change(content)
        members["schema.json"] = json.dumps(content).encode()

    return changed


def every(cls: str, **values: Any) -> Callable[[Members], None]:
    """Entries of all nodes of a class set to something else."""
    return in_schema(lambda schema: [node.update(values) for node in nodes(schema) if node.get("__class__") == cls])


def attribute(name: str, **values: Any) -> Callable[[Members], None]:
    """Entries of the node of an attribute of the machine set to something else."""
    return in_schema(lambda schema: [node[name].update(values) for node in nodes(schema) if name in node])


def arrays(content: Callable[[str], bytes]) -> Callable[[Members], None]:
    def changed(members: Members) -> None:
        members.update({name: content(name) for name in members if name.endswith(".npy")})

    return changed


def sparse_beside(part: bytes) -> Callable[[Members], None]:
    """The support vectors, as a sparse array of the file."""

    node = {"__class__": "csr_matrix", "__module__": "scipy.sparse._csr", "__loader__": "SparseMatrixNode"}

    def changed(members: Members) -> None:
        attribute("support_vectors_", **node, type="scipy", file="a.npz")(members)
        members["a.npz"] = part

    return changed


def sparse(indices: list[int], columns: int = 4) -> bytes:
    matrix = {"format": np.array(b"csr"), "shape": np.array([60, columns]), "data": np.ones(len(indices)),
              "indices": np.array(indices, dtype=np.int32), "indptr": np.array([0] + [len(indices)] * 60)}  # fmt: skip
    np.savez(buffer := io.BytesIO(), **matrix)
    return buffer.getvalue()


CALL = {"__class__": "ran", "__module__": "test_skops_file", "__loader__": "FunctionNode", "content": "x", "__id__": 1}
MEBIBYTES = archive({"data.npy": npy(np.zeros(1 << 17))})
TEXT = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode"}
HOSTILE: dict[str, Callable[[Members], object]] = {
    "a bomb": lambda members: members.update({"schema.json": b" " * (70 << 20)}),
    "a bomb of arrays": lambda members: members.update({"1.npy": npy(np.zeros(9 << 20))}),
    "a bomb in an inner archive": sparse_beside(archive({"data.npy": npy(np.zeros(9 << 20))})),
    "many inner bombs": lambda members: members.update({f"{n}.npz": MEBIBYTES for n in range(70)}),
    "a huge shape": arrays(lambda _: header((1 << 40,))),
    "a negative shape": arrays(lambda _: header((-5,))),
    "an array of pickles": arrays(lambda _: npy(np.array([Runs()], dtype=object))),
    "an array that is a pickle": arrays(lambda _: pickle.dumps(Runs())),
    "paths outside": lambda members: members.update({"../../../ran": b"x"}),
    "an array by a path outside": in_schema(
        lambda schema: [node.update(file="../../../etc/passwd") for node in nodes(schema) if "file" in node]
    ),
    "an inner archive": lambda members: members.update({"model.zip": archive({"a": b"x"})}),
    "a function of the system": attribute("kernel", **CALL),
    "a method": attribute("kernel", **CALL | {"__loader__": "MethodNode", "content": {"func": "ran", "obj": CALL}}),
    "a partial": attribute("kernel", __loader__="PartialNode", content={"func": CALL, "args": CALL, "kwds": CALL}),
    "an operator": attribute(
        "kernel", __class__="methodcaller", __module__="operator", __loader__="OperatorFuncNode", attrs=CALL
    ),
    "a type of the system": every("SVC", __class__="Popen", __module__="subprocess"),
    "a type under the name of an innocent": every("SVC", __module__="epsball.cli.main", __class__="app"),
    "an unknown loader": every("SVC", __loader__="EvilNode"),
    "no loader": in_schema(lambda schema: [node.pop("__loader__", None) for node in nodes(schema)]),
    "another protocol": in_schema(lambda schema: schema.update(protocol=-3)),
    "a protocol that is text": in_schema(lambda schema: schema.update(protocol="2")),
    "no schema": lambda members: members.pop("schema.json"),
    "a schema that is a list": lambda members: members.update({"schema.json": b"[1, 2]"}),
    "a million levels": lambda members: members.update({"schema.json": b"[" * 1_000_000}),
    "an attribute of a million levels": attribute("tol", content="[" * 200_000),
    "a number of 5,000 digits": attribute("degree", content="9" * 5000),
    "no arrays": lambda members: [members.pop(name) for name in list(members) if name.endswith(".npy")],
    "arrays of text": arrays(lambda _: npy(np.array(["a", "b"]))),
    "arrays of nothing": arrays(lambda _: npy(np.zeros((0, 0)))),
    "arrays of infinity": arrays(lambda _: npy(np.full((4, 4), np.inf))),
    "a billion features": attribute("n_features_in_", **TEXT, content="1000000000"),
    "features that are text": attribute("n_features_in_", **TEXT, content='"4"'),
    "counts that do not fit": attribute("_n_support", **TEXT, content="[1000000, 2, 3]"),
    "sparse places outside": sparse_beside(sparse([1 << 30, 2])),
    "sparse and a billion wide": sparse_beside(sparse([1, 2], 1_000_000_000)),
    "no kernel": attribute("kernel", content='"__import__"'),
}
FILES: dict[str, Callable[[bytes], bytes]] = {
    "a pickle": lambda _: pickle.dumps(Runs()),
    "cut off": lambda data: data[: len(data) // 2],
    "nothing": lambda _: b"",
    "noise": lambda _: np.random.default_rng(0).bytes(5000),
    "an archive of a pickle": lambda _: archive({"data.pkl": pickle.dumps(Runs())}),
    "encrypted": lambda data: data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
}


def check_refused(path: Path) -> None:
    """One sentence, within 5 s of processor time and 1 GiB, and nothing runs."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadInput) as refused:
        open_skops(Asked(spec=str(path)))
    assert time.process_time() - start < 5
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 1 << 30
    message = str(refused.value)
    assert message.startswith("`model` must")
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOSTILE)
def test_file_that_was_tampered_with_is_refused_in_a_sentence_and_runs_nothing(name: str, saved: Path, tmp_path: Path):
    with zipfile.ZipFile(saved) as file:
        members = {member: file.read(member) for member in file.namelist()}
    HOSTILE[name](members)
    path = tmp_path / "m.skops"
    path.write_bytes(archive(members))
    check_refused(path)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_skops_file_is_refused_in_a_sentence(name: str, saved: Path, tmp_path: Path):
    path = tmp_path / "m.skops"
    path.write_bytes(FILES[name](saved.read_bytes()))
    check_refused(path)


@pytest.mark.parametrize("classifier", [LogisticRegression(max_iter=5), BernoulliNB()], ids=["module", "black box"])
def test_polynomials_that_would_fill_the_memory_are_refused(classifier: Any, tmp_path: Path):
    model = make_pipeline(PolynomialFeatures(2), classifier).fit(X, Y)
    model[0].degree = 600
    skops.io.dump(model, path := tmp_path / "m.skops")
    check_refused(path)

"""What is handed over in Python as a model, and files with a factory: each is the model that stands behind it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nets import rng
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.load import load_data
from epsball.models.doors import DOORS, door_of, needs_trust
from epsball.models.given import as_model


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


NET = net().eval()
X, Y = torch.rand(40, 6, generator=rng(1)), torch.arange(40) % 3
WANT = eb.evaluate(NET, (X, Y), eb.Linf(eps=0.1, lo=0, hi=1), "fgsm", diagnose=0)


class Output(nn.Module):
    """A network whose output is made by `form` of the logits."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.net, self.form = NET, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


class Shown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = NET

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)


MODELS: dict[str, Any] = {
    "forward": NET.forward,
    "call": NET.__call__,
    "another method": Shown().logits,
    "closure": lambda z: NET(z),
    "parallel": nn.DataParallel(NET),
    "an object with logits": Output(lambda logits: SimpleNamespace(logits=logits, loss=None)),
    "a dict": Output(lambda logits: {"features": logits.sin(), "logits": logits}),
    "a tuple": Output(lambda logits: (logits, logits.sin().sum())),
    "a tuple with a value a row": Output(lambda logits: (logits, logits[:, :1])),
    "a list of one": Output(lambda logits: [logits]),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_behind_it_is_evaluated(name: str) -> None:
    found = eb.evaluate(MODELS[name], (X, Y), eb.Linf(eps=0.1, lo=0, hi=1), "fgsm", diagnose=0)
    assert found.records.to_pydict()["status"] == WANT.records.to_pydict()["status"]


def test_a_bound_method_in_train_mode_is_attacked_in_eval_mode_and_comes_back() -> None:
    model = net().train()
    before = model[2].running_mean.clone()
    found = eb.evaluate(model.forward, (X, Y), eb.Linf(eps=0.1, lo=0, hi=1), "fgsm", diagnose=0)
    assert found.records.to_pydict()["status"] == WANT.records.to_pydict()["status"]
    assert model.training
    assert torch.equal(model[2].running_mean, before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("net.onnx", r"write epsball.load\('net.onnx'\)"),
        (nn.Linear, "the class Linear; make one of it"),
        (3, "must be callable"),
        (Output(lambda logits: {"scores": logits}), "a dict of scores; wrap it"),
        (Output(lambda logits: (logits.sum(), logits)), "first"),
        (Output(lambda logits: (logits.repeat(1, 4), logits)), r"of \(\d+, 12\), \(\d+, 3\), where .*model\(x\)\[1\]"),
        (Output(lambda logits: (logits[:, 0], logits)), r"of \(\d+,\), \(\d+, 3\), where any"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        eb.evaluate(model, (X, Y), "linf:0.1", "fgsm", diagnose=0)


def test_a_network_of_transformers_gives_its_logits_and_names() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2
    )
    config.id2label = {0: "cat", 1: "dog"}
    source = transformers.ResNetForImageClassification(config).eval()
    x = torch.rand(2, 1, 16, 16, generator=rng(2))
    model = as_model(source)
    assert torch.equal(model(x), source(x).logits)
    assert model.label_names == ("cat", "dog")


# Files with a factory, and specs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my_nets.py").write_text(
        "from torch import nn\n"
        "import beside\n"
        "def model(): return nn.Sequential(nn.Flatten(), nn.Linear(6, beside.CLASSES))\n"
        "def callable_(): return lambda z: z[:, :3]\n"
    )
    (tmp_path / "sub" / "beside.py").write_text("CLASSES = 3\n")
    monkeypatch.chdir(tmp_path)
    for name in ("my_nets", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_factory_in_a_file_is_called_and_may_import_what_is_beside_it(folder: Path) -> None:
    path = list(sys.path)
    model = eb.load("sub/my_nets.py:model")
    assert model(X).shape == (40, 3)
    assert sys.path == path
    assert eb.load("sub/my_nets.py:callable_")(X).shape == (40, 3)
    assert isinstance(eb.load("sub/my_nets.py:model", black_box=True), eb.BlackBox)
    with pytest.raises(BadInput, match=r"did you mean 'my_nets.py'"):
        eb.load("sub/my_net.py:model")
    with pytest.raises(BadInput, match=r"did you mean 'model'"):
        eb.load("sub/my_nets.py:modle")


CLASS = """
from torch import nn
class Net(nn.Linear):
    def __init__(self): super().__init__(6, CLASSES)
    def predict(self, x): return self(x).argmax(1)
"""


def test_a_class_with_predict_is_called_and_an_edited_file_is_read_again(folder: Path) -> None:
    file = folder / "sub" / "lit.py"
    file.write_text("raise OSError('half')\n")
    with pytest.raises(OSError, match="half"):
        eb.load("sub/lit.py:Net")
    file.write_text(CLASS.replace("CLASSES", "3"))
    first = eb.load("sub/lit.py:Net")
    assert first(X).shape == (40, 3)
    assert type(eb.load("sub/lit.py:Net")) is type(first)
    file.write_text(CLASS.replace("CLASSES", "4"))
    assert eb.load("sub/lit.py:Net")(X).shape == (40, 4)
    sys.modules.pop("lit")


def test_a_file_with_the_name_of_a_library_leaves_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, held in (("datasets", True), ("wave", False)):
        if not held:
            monkeypatch.delitem(sys.modules, name, raising=False)
        before = sys.modules.get(name)
        (folder / f"{name}.py").write_text(CLASS.replace("CLASSES", "3"))
        model = eb.load(f"{name}.py:Net")
        assert sys.modules.get(name) is before
        assert pickle.loads(pickle.dumps(model)).predict(X).shape == (40,)
        sys.modules.pop(f"epsball_user_{name}")


def test_a_file_that_hides_the_library_of_data_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "datasets.py").write_text("")
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.syspath_prepend(folder)
    found = eb.evaluate(NET, torch.utils.data.TensorDataset(X, Y), "linf:0.1", "fgsm", diagnose=0)
    assert found.records.num_rows == len(X)
    with pytest.raises(BadInput, match=r"datasets.py hides; rename it"):
        load_data("org/name")
    monkeypatch.delitem(sys.modules, "datasets")


def test_a_built_in_network_needs_shape_and_classes() -> None:
    with pytest.raises(BadInput, match=r"as in epsball.load\('small-mlp', shape"):
        eb.load("small-mlp")
    assert eb.load("small-mlp", shape=(6,), classes=3)(X).shape == (40, 3)


def test_each_spec_has_its_door(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    doors = {
        "small-cnn": "built-in",
        "preact-resnet18:width=4": "built-in",
        "hf:google/vit": "Hugging Face",
        str(tmp_path / "hub"): "Hugging Face",
        str(tmp_path): "trained folder",
        "timm:resnet18": "timm",
        "some/net.ONNX": "ONNX",
        "model.skops": "scikit-learn",
        "http://localhost:8000/v2/models/net": "HTTP",
        "ensemble:a.onnx,b.onnx": "ensemble",
        "net.pt2": "archive",
        "model.joblib": "archive",
        "package.module:make": "factory",
        "folder/nets.py:make": "factory",
    }
    assert {spec: door_of(spec).name for spec in doors} == doors
    assert set(doors.values()) == {door.name for door in DOORS}
    assert [spec for spec in doors if needs_trust(spec)] == [
        *("http://localhost:8000/v2/models/net", "ensemble:a.onnx,b.onnx", "net.pt2", "model.joblib"),
        *("package.module:make", "folder/nets.py:make"),
    ]
    with pytest.raises(BadInput, match="`epsball models` lists"):
        door_of("no such thing")


def test_what_is_often_taken_for_a_spec_has_its_own_remedy(folder: Path) -> None:
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    remedies = {
        "last.CKPT": "--model nets.py:make --weights last.CKPT",
        "sub/a.safetensors": "--weights sub/a.safetensors",
        "hub/model.safetensors": "name the folder, hub",
        "sub/my_nets.py": "sub/my_nets.py:FUNCTION",
        "google/vit-base": "name hf:google/vit-base",
        "net.keras": "epsball.BlackBox",
        "resnet18": "timm:NAME",
    }
    for spec, remedy in remedies.items():
        with pytest.raises(BadInput, match=remedy):
            door_of(spec)
    named = ("nets.py:make", "hub", "sub/my_nets.py:FUNCTION", "hf:google/vit-base", "timm:resnet18")
    assert [door_of(spec).name for spec in named] == ["factory", "Hugging Face", "factory", "Hugging Face", "timm"]


# Labels as an estimator was fitted to them

TABLE = torch.rand(60, 4, generator=rng(3)).double().numpy()
KINDS_OF_LABELS = {
    "from 1": [1, 2, 3],
    "minus and plus": [-1, 1],
    "minus and plus in floating point": [-1.0, 1.0],
    "from 1 in floating point": [1.0, 2.0, 3.0],
    "tens": [10, 20, 30],
    "texts": ["no", "perhaps", "yes"],
    "booleans": [False, True],
    "places": [0, 1, 2],
}


@pytest.mark.parametrize("final", ["module", "black box"])
@pytest.mark.parametrize("kind", KINDS_OF_LABELS)
def test_labels_are_those_that_an_estimator_was_fitted_to(kind: str, final: str) -> None:
    values = np.array(KINDS_OF_LABELS[kind])
    y = values[(TABLE[:, 0] * len(values)).astype(int)]
    estimator = (LogisticRegression() if final == "module" else DecisionTreeClassifier(max_depth=3)).fit(TABLE, y)
    part = TABLE[y != values[0]], y[y != values[0]]  # no class of its own is the first one
    for x, labels in ((TABLE, y), part):
        found = eb.evaluate(estimator, (x, labels), "linf:0", "square:steps=1", diagnose=0)
        assert found.clean_accuracy == estimator.score(x, labels)
        assert eb.evaluate(estimator, (x, pd.Series(labels)), "linf:0", "square:steps=1", diagnose=0).records.equals(
            found.records
        )


def test_a_label_that_an_estimator_does_not_know_is_refused() -> None:
    estimator = LogisticRegression().fit(TABLE, (TABLE[:, 0] > 0.5) + 1)
    with pytest.raises(BadInput, match=r"must be one of 1, 2"):
        eb.evaluate(estimator, (TABLE, (TABLE[:, 0] > 0.5) * 1), "linf:0.1", "fgsm", diagnose=0)

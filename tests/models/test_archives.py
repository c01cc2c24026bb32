"""Archives that run code when they are read: only with trust, and then as what is handed over in Python."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from nets import batch, mlp, seeded
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.models.archives import KINDS, open_archive
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded

SHAPE = (5,)
MARK = "ran"
"""The file that the code of a hostile archive writes."""


class Runs:
    """Code that a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"touch {MARK}",)


class Negated:
    """A callable that a pickle may hold."""

    def __call__(self, x: Any) -> Any:
        return -x


def network() -> nn.Module:
    """A network that can be traced and exported for any number of rows."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), 0, 2.0)


def opened(path: str, **more: Any) -> Loaded:
    return open_archive(Asked(spec=path, trust=True, **more))


def scripted(path: str | Path, net: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, batch(2, SHAPE)), str(path))


def exported(path: str | Path, net: nn.Module) -> None:
    rows = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (batch(2, SHAPE),), dynamic_shapes=({0: rows},)), path)


def pickled(path: str | Path, value: Any) -> None:
    Path(path).write_bytes(pickle.dumps(value))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network()


WRITERS: dict[str, Callable[[str, nn.Module], object]] = {
    "net.pt": scripted,
    "net.ts": scripted,
    "net.PT": scripted,
    "net.pt2": exported,
    "whole.pth": lambda path, net: torch.save(net, path),
    "net.pkl": pickled,
    "net.pickle": pickled,
    "net.joblib": lambda path, net: joblib.dump(net, path),
    "small.joblib": lambda path, net: joblib.dump(net, path, compress=3),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_trusted_archive_is_the_model_that_was_saved(name: str, net: nn.Module) -> None:
    WRITERS[name](name, net)
    found, x = opened(name), batch(6, SHAPE)
    assert isinstance(found.model, nn.Module)
    torch.testing.assert_close(found.model(x), net(x))
    assert "which ran its code" in found.notes[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(5), nn.LSTM(5, 3, 2, dropout=0.5)])
def test_an_export_in_train_mode_says_so(part: nn.Module) -> None:
    for mode in (True, False):
        torch.export.save(torch.export.export(nn.Sequential(part).train(mode), (torch.rand(4, 5),)), "a.pt2")
        assert any("train mode" in note for note in opened("a.pt2").notes) == mode


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("part", [nn.Dropout(0), nn.BatchNorm1d(5, track_running_stats=False), nn.LSTM(5, 3)])
def test_an_export_that_has_no_mode_says_nothing_of_it(part: nn.Module) -> None:
    torch.export.save(torch.export.export(nn.Sequential(part).train(), (torch.rand(4, 5),)), "a.pt2")
    assert not any("train mode" in note for note in opened("a.pt2").notes)


@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net.pkl"])
def test_a_trusted_archive_has_the_records_of_the_network_itself(name: str, net: nn.Module) -> None:
    WRITERS[name](name, net)
    x, ball = batch(16, SHAPE, lo=-3, hi=3), eb.Linf(eps=0.3)
    y = net(x).argmax(1)
    found, known = (
        eb.evaluate(model, (x, y), ball, ("fgsm", "pgd:steps=5"), diagnose=0)
        for model in (eb.load(name, trust=True), net)
    )
    assert 0 < found.robust_accuracy < 1
    assert found.records["status"].equals(known.records["status"])


def test_a_network_comes_in_eval_mode() -> None:
    torch.save(mlp(SHAPE, 3, noisy=True).train(), "net.pt")
    model = opened("net.pt").model
    assert isinstance(model, nn.Module)
    assert not any(part.training for part in model.modules())


def test_callables_and_black_boxes_are_models() -> None:
    pickled("call.pkl", Negated())
    pickled("box.pkl", BlackBox(np.negative, budget=3))
    x = batch(4, SHAPE)
    call, box = opened("call.pkl").model, opened("box.pkl").model
    assert isinstance(box, BlackBox)
    assert box.budget == 3
    assert torch.equal(call(x), -x)
    assert torch.equal(box(x), -x)


def test_an_estimator_is_a_model_of_its_decisions() -> None:
    from sklearn.linear_model import LogisticRegression

    x = batch(40, SHAPE)
    y = (x.sum(1) > 2.5).long()
    fitted = LogisticRegression().fit(x.numpy(), y.numpy())
    joblib.dump(fitted, "linear.joblib")
    model = opened("linear.joblib").model
    assert np.array_equal((model(x).reshape(len(x), -1)[:, -1] > 0).numpy(), fitted.predict(x.numpy()) == 1)


def test_weights_alone_name_the_way_that_works(net: nn.Module) -> None:
    torch.save(net.state_dict(), "net.pt")
    Path("ours.py").write_text(
        "import torch\n"
        "def factory():\n"
        "    parts = (torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), *parts).double()\n"
    )
    with pytest.raises(BadInput, match=r"holds a dict, .*--model package.module:factory --weights net.pt"):
        opened("net.pt")
    x = batch(4, SHAPE)
    torch.testing.assert_close(eb.load("ours:factory", weights="net.pt")(x), net(x))


# Hostile files


def bomb(path: str | Path) -> None:
    """80 MB of zeros in 80 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a/data.pkl", "w") as member:
        for _ in range(80):
            member.write(bytes(1 << 20))


def nested(path: str | Path) -> None:
    with zipfile.ZipFile("inner.zip", "w") as file:
        file.writestr("inner/data.pkl", pickle.dumps(Runs()))
    with zipfile.ZipFile(path, "w") as file:
        file.write("inner.zip", "a/data.pkl")


def members(path: str | Path, **found: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in found.items():
            file.writestr(name.replace("__", "/"), content)


def encrypted(path: str | Path) -> None:
    members(path, a__data=b"x")
    content = bytearray(Path(path).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path(path).write_bytes(content)


def sparse(path: str | Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 << 30)


def cut(write: Callable[[str], object]) -> Callable[[str], object]:
    def make(path: str) -> None:
        write(path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])

    return make


def special(path: str | Path) -> None:
    os.mkfifo(path)


HOSTILE: dict[str, tuple[str, Callable[[str], object]]] = {
    "a pickle with code": ("a.pkl", lambda path: pickled(path, Runs())),
    "a joblib file with code": ("a.joblib", lambda path: joblib.dump(Runs(), path)),
    "a zipped joblib file with code": ("a.joblib", lambda path: joblib.dump([Runs()], path, compress=9)),
    "a pickled network with code": ("a.pt", lambda path: torch.save(Runs(), path)),
    "an old file with code": ("a.pth", lambda path: torch.save(Runs(), path, _use_new_zipfile_serialization=False)),
    "TorchScript": ("a.ts", lambda path: scripted(path, network())),
    "an export with code for its inputs": (
        "a.pt2",
        lambda path: members(path, a__archive_format=b"pt2", a__data__sample_inputs__model=pickle.dumps(Runs())),
    ),
    "a bomb": ("a.pt", bomb),
    "a bomb of an export": ("a.pt2", bomb),
    "nested archives": ("a.pt", nested),
    "a path out of the archive": ("a.pt2", lambda path: members(path, **{"..__..__escaped": b"x"})),
    "an encrypted archive": ("a.pt2", encrypted),
    "ten gigabytes of nothing": ("a.pkl", sparse),
    "ten gigabytes of a joblib file": ("a.joblib", sparse),
    "a named pipe": ("a.pkl", special),
    "a named pipe of torch": ("a.pt", special),
    "a folder": ("a.pickle", os.mkdir),
    "a device": ("a.pkl", lambda path: os.symlink("/dev/zero", path)),
    "a link to nowhere": ("a.pkl", lambda path: os.symlink("nowhere", path)),
    "a link to itself": ("a.pt", lambda path: os.symlink(path, path)),
    "nothing": ("a.joblib", lambda path: Path(path).touch()),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", HOSTILE)
def test_without_trust_nothing_is_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, make = HOSTILE[kind]
    make(name)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the file was opened")

    for place in ("builtins.open", "io.open", "os.open", "zipfile.ZipFile.__init__", "torch.load", "torch.jit.load"):
        monkeypatch.setattr(place, opened)
    with pytest.raises(
        BadInput, match=r"must be (trusted to be opened|a regular file|an existing file|a folder)"
    ) as refused:
        eb.load(name)
    assert "\n" not in str(refused.value)
    assert not os.path.exists(MARK)


@pytest.mark.parametrize("kind", ["a pickle with code", "a joblib file with code", "a pickled network with code"])
def test_with_trust_the_code_runs(kind: str) -> None:
    """What the test above would see, if a file was opened."""
    name, make = HOSTILE[kind]
    make(name)
    with pytest.raises(BadInput):  # it holds no model
        eb.load(name, trust=True)
    assert os.path.exists(MARK)


DAMAGED: dict[str, tuple[str, Callable[[str], object]]] = {
    **{kind: HOSTILE[kind] for kind in HOSTILE if "code" not in kind and kind not in ("TorchScript",)},
    "half a pickle": ("a.pkl", cut(lambda path: pickled(path, Negated()))),
    "half a TorchScript archive": ("a.pt", cut(lambda path: scripted(path, network()))),
    "half an export": ("a.pt2", cut(lambda path: exported(path, network()))),
    "half a joblib file": ("a.joblib", cut(lambda path: joblib.dump(network(), path))),
    "text": ("a.pt", lambda path: Path(path).write_text("import os\n" * 9)),
    "a class that is nowhere": ("a.pkl", lambda path: Path(path).write_bytes(b"cnowhere\nNet\n.")),
    "a number": ("a.pkl", lambda path: pickled(path, 3)),
    "a class": ("a.pkl", lambda path: pickled(path, Negated)),
    "a list": ("a.joblib", lambda path: joblib.dump([1], path)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", DAMAGED)
def test_with_trust_what_is_damaged_is_one_sentence(kind: str) -> None:
    name, make = DAMAGED[kind]
    make(name)
    with pytest.raises(BadInput) as refused:
        eb.load(name, trust=True)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("ending", KINDS)
def test_a_refusal_names_the_reason_and_the_safe_way(ending: str) -> None:
    Path(f"a{ending}").touch()
    with pytest.raises(BadInput, match=r"runs code of its author .* add --trust \(trust=True\); the safe .*ONNX"):
        eb.load(f"a{ending}")


def test_a_name_that_is_nearly_right_is_suggested(net: nn.Module) -> None:
    pickled("model.pkl", net)
    with pytest.raises(BadInput, match=r"an existing file, got 'modle.pkl'; did you mean 'model.pkl'\?"):
        eb.load("modle.pkl", trust=True)


def test_weights_are_refused(net: nn.Module) -> None:
    pickled("net.pkl", net)
    with pytest.raises(BadInput, match="`weights` must be left out with an archive"):
        opened("net.pkl", weights=Path("w.pt"))

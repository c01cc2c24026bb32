"""Every remedy that an error message writes down, with a call that is refused and the same call when it is obeyed.

One entry each: what the message says to write, a call that raises it, and the call that follows it. `test_remedies.py`
finds the messages in the source, and fails for one that says "write ..." or "as in ..." and has no entry here.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import hub_models
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from nets import linear as network
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import TensorDataset

import epsball as eb
from epsball import explain, training
from epsball.attacks import registry as attacks
from epsball.attacks.decision_based import References
from epsball.balls import registry as balls
from epsball.certify.certify import method_of
from epsball.cli.main import app
from epsball.data.arrays import from_arrays
from epsball.data.box import ball_for
from epsball.data.collected import examples_of
from epsball.data.load import load_data
from epsball.data.prepared import check_prepared, prepared_pixels
from epsball.data.tables import Table
from epsball.engine.stages import named
from epsball.evaluation.ray_cluster import cluster
from epsball.explain.config import L1Config, check_sides
from epsball.explain.inputs import radii_of, radius_of
from epsball.linear import storage
from epsball.linear.exact import optimum
from epsball.linear.paths import eps_path
from epsball.linear.table_attack import attack_table
from epsball.linear.table_config import AttackConfig, FitConfig, Radius
from epsball.linear.table_fit import fit_table, loss_for
from epsball.models import registry as models
from epsball.models.door import Asked
from epsball.models.estimators import module_of
from epsball.models.http_service import parse_address
from epsball.models.onnx_file import open_onnx
from epsball.models.opening import load
from epsball.models.preparation import Preparation
from epsball.models.skops_file import open_skops
from epsball.models.weights import load_weights, save_weights
from epsball.problem.objective import Objective
from epsball.reproduce.controls import NoiseTraining
from epsball.reproduce.sources import mnist
from epsball.reproduce.threes_sevens import threes_sevens
from epsball.training.config import TrainingConfig


class Remedy(NamedTuple):
    """`write` is in the message that `refused` raises; `obeyed` does what it says. Both run in an empty folder."""

    write: str
    refused: Callable[[], Any]
    obeyed: Callable[[], Any]


BALL = eb.Linf(eps=0.1, lo=0, hi=1)
X = torch.tensor([[0.2, 0.4, 0.9], [0.7, 0.1, 0.3], [0.5, 0.5, 0.1], [0.9, 0.2, 0.6]])
Y = torch.tensor([0, 1, 0, 1])
NET = nn.Sequential(nn.Linear(3, 2))
RIGHT = from_arrays(X.repeat(4, 1), NET(X.repeat(4, 1)).argmax(1), classes=2)
FRAME = pd.DataFrame(X[:, :2].numpy().astype(float), columns=["a", "b"])
CLASSES = pd.Series(Y.numpy())
PIXELS = (X * 255).byte().numpy()
IMAGE = X.reshape(1, 3, 4)[:, :, :3].repeat(3, 1, 1)
"""One image without a dimension of examples."""
SMALL = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
LABELS = X.numpy(), Y.numpy()
TABLE = Table(np.tile(X.numpy().astype(float), (4, 1)), np.tile(["a", "b"], 8), ("p", "q", "r"), "t", "made")
NUMBERS = replace(TABLE, y=np.arange(16) / 7)


def command(*arguments: str) -> int:
    """A command, whose errors are raised."""
    return app(arguments, exit_on_error=False, print_error=False) or 0


@cache
def logistic() -> LogisticRegression:
    return LogisticRegression().fit(TABLE.x, TABLE.y)


def tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier().fit(TABLE.x, TABLE.y)


def evaluated(*names: Any, ball: eb.Ball = BALL, model: Any = NET, data: Any = (X, Y), **more: Any) -> eb.Evaluation:
    return eb.evaluate(model, data, ball, names, diagnose=0, **more)


def black_box(function: Callable[[Any], Any], **more: Any) -> torch.Tensor:
    return eb.BlackBox(function, **more)(X)


def ask(model: Any) -> torch.Tensor:
    with Objective(model, lambda logits, task: logits[:, 0]) as objective:
        return objective.forward(X)


def seen(x: torch.Tensor, y: list[int]) -> eb.Evaluation:
    """An evaluation of a network for images."""
    return evaluated("fgsm", model=SMALL, data=(x, y))


def halved(x: torch.Tensor) -> eb.Evaluation:
    """An evaluation of a network in half precision, in a ball that is small beside its rounding errors."""
    return evaluated("fgsm", ball=eb.Linf(eps=1e-4), model=nn.Linear(3, 2).half(), data=(x, Y))


def asked(model: Any, x: torch.Tensor, calls: int = 1) -> None:
    with Objective(model, lambda logits, task: logits[:, 0]) as objective:
        for _ in range(calls):
            objective.forward(x)


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(NET, (X,))


def now_and_then() -> Callable[[torch.Tensor], torch.Tensor]:
    """A model that ends in a softmax in its first call only."""
    calls = []

    def model(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return NET(x).softmax(1) if len(calls) == 1 else NET(x)

    return model


@cache
def of_frame() -> LogisticRegression:
    return LogisticRegression().fit(FRAME, CLASSES)


def stream() -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"a": [0.1, 0.2], "y": [0, 1]}).to_iterable_dataset()


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(X, 1 / 7, 0, torch.qint8)


def saved(name: str, content: Any) -> str:
    torch.save(content, name)
    return name


def both_networks() -> Path:
    """A file with the weights of two networks, as a student and its teacher are kept."""
    state = {f"{name}.{key}": value for name in ("a", "b") for key, value in NET.state_dict().items()}
    torch.save(state, path := Path("both.pt"))
    return path


def one_of_both(path: Path) -> Path:
    state = torch.load(path, weights_only=True)
    torch.save({key.removeprefix("a."): value for key, value in state.items() if key.startswith("a.")}, path)
    return path


def with_a_layer_more(path: Path) -> Path:
    state = torch.load(path, weights_only=True)
    torch.save({key.replace("b.0", "b.1"): value for key, value in state.items()}, path)
    return path


def module(name: str, text: str) -> str:
    Path(f"{name}.py").write_text(f"from torch.nn import Flatten, Linear, Sequential as Net\n{text}\n")
    return name


def tuned(objective: Any, ball: eb.Ball | None = BALL, **more: Any) -> Any:
    net = nn.Sequential(nn.Linear(3, 2))
    return eb.fit(net, from_arrays(X, Y, lo=0, hi=1), ball, objective=objective, epochs=1, batch_size=4, **more)


def served(*flags: str) -> Any:
    """The options of the page are understood; it is not opened, since it would wait for a browser."""
    _, bound, _ = app.parse_args(["serve", *flags])
    assert bound.arguments["served"].beside == "small-cnn"


def digits() -> Any:
    return load_data("digits", limit=30)


def of_digits() -> nn.Module:
    return network((1, 8, 8), 10).float()


CHEAP = ("evaluate", "--limit", "20", "--epochs", "1", "--attacks", "fgsm", "--diagnose", "0")


def determinant() -> Path:
    """An ONNX file with an operator that the importer does not have."""
    from onnx import TensorProto, helper, save

    square, row = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ("n", 2, 2)), ("y", ("n",)))
    )
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "graph", [square], [row])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "determinant.onnx")
    return Path("determinant.onnx")


PREPARED = Preparation(resize=(8, 8), channels=3)
"""What a model wants done to images."""


def with_ray(installed: bool) -> None:
    """Workers where Ray is installed, or not; the installed one stands in for it."""
    ray = SimpleNamespace(is_initialized=lambda: True, nodes=list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray if installed else None)
        with cluster(1, 0, None):
            pass


def with_transformers(there: bool) -> Any:
    """The door of transformers' models, where the library is installed, or not."""
    folder = hub_models.saved(Path("model"))
    with pytest.MonkeyPatch.context() as patch:
        if not there:
            patch.setitem(sys.modules, "transformers", None)
        return load(str(folder))


REMEDIES = [
    # the configuration of a run
    Remedy(
        "certify=10",
        lambda: eb.evaluate(network((3,), 2).float(), (X, Y), BALL, "fgsm", certify=-1),
        lambda: eb.evaluate(network((3,), 2).float(), (X, Y), BALL, "fgsm", certify=10),
    ),
    Remedy(
        "batch_size='auto'",
        lambda: eb.evaluate(network((3,), 2).float(), (X, Y), BALL, "fgsm", batch_size="all"),  # type: ignore[arg-type]
        lambda: eb.evaluate(network((3,), 2).float(), (X, Y), BALL, "fgsm", batch_size="auto"),
    ),
    # attacks and balls
    Remedy("References(", lambda: References(X[:0], Y[:0]), lambda: References(X[:1000], Y[:1000])),
    Remedy(
        "pgd:steps=40,restarts=2", lambda: attacks.parse("pgd:40"), lambda: attacks.parse("pgd:steps=40,restarts=2")
    ),
    Remedy("L0(eps=10, lo=0, hi=1)", lambda: eb.L0(eps=10).bind(X), lambda: eb.L0(eps=10, lo=0, hi=1).bind(X)),
    Remedy(
        "mask.bool()",
        lambda: eb.Linf(eps=0.1, mask=torch.ones(1, 3)).bind(X),
        lambda: eb.Linf(eps=0.1, mask=torch.ones(1, 3).bool()).bind(X),
    ),
    Remedy(
        "x.float()",
        lambda: eb.Linf(eps=1).bind(torch.arange(6).reshape(2, 3)),
        lambda: eb.Linf(eps=1).bind(torch.arange(6).reshape(2, 3).float()),
    ),
    Remedy("x[None]", lambda: BALL.bind(torch.tensor(0.5)), lambda: BALL.bind(torch.tensor(0.5)[None])),
    Remedy(
        "budget=10",
        lambda: eb.certify(network((3,), 2).float(), (X, Y), BALL, budget=0),
        lambda: eb.certify(network((3,), 2).float(), (X, Y), BALL, budget=10),
    ),
    Remedy("smoothing:sigma=0.25", lambda: method_of("smoothing"), lambda: method_of("smoothing:sigma=0.25")),
    Remedy("linf:8/255", lambda: balls.parse("8/255"), lambda: balls.parse("linf:8/255")),
    Remedy("Linf(eps=0.1)", lambda: balls.ball_of(eb.Linf), lambda: balls.ball_of(eb.Linf(eps=0.1))),
    Remedy(
        "eps[:, None]",
        lambda: eb.Linf(eps=torch.rand(3)).bind(X[:3]),
        lambda: eb.Linf(eps=torch.rand(3)[:, None]).bind(X[:3]),
    ),
    Remedy(
        "eps[None]",
        lambda: eb.Linf(eps=torch.rand(3)).bind(X[:3]),
        lambda: eb.Linf(eps=torch.rand(3)[None]).bind(X[:3]),
    ),
    # models
    Remedy("pip install 'epsball[hf]'", lambda: with_transformers(False), lambda: with_transformers(True)),
    Remedy("pip install 'epsball[ray]'", lambda: with_ray(False), lambda: with_ray(True)),
    # data
    Remedy(
        "epsball.data.prepared.prepared_pixels(x, preparation)",
        lambda: check_prepared((1, 28, 28), PREPARED),
        lambda: check_prepared(prepared_pixels(np.zeros((2, 1, 28, 28), np.uint8), PREPARED).shape[1:], PREPARED),
    ),
    Remedy("x[None]", lambda: from_arrays(np.float32(0.5), [0]), lambda: from_arrays(np.float32(0.5)[None], [0])),
    Remedy(
        "x.astype('float32')",
        lambda: from_arrays(np.arange(6).reshape(2, 3), [0, 1]),
        lambda: from_arrays(np.arange(6).reshape(2, 3).astype("float32"), [0, 1]),
    ),
    Remedy(
        "numpy.savez(path, x=x, y=y)",
        lambda: (np.savez("a.npz", images=LABELS[0]), load_data("a.npz")),
        lambda: (np.savez("a.npz", x=LABELS[0], y=LABELS[1]), load_data("a.npz")),
    ),
    Remedy(
        "y.loc[x.index]",
        lambda: from_arrays(FRAME, CLASSES[::-1]),
        lambda: from_arrays(FRAME, CLASSES[::-1].loc[FRAME.index]),
    ),
    Remedy(
        "y.to_numpy()",
        lambda: from_arrays(FRAME, CLASSES[::-1]),
        lambda: from_arrays(FRAME, CLASSES[::-1].to_numpy()),
    ),
    Remedy(
        "x.astype('float32')",
        lambda: from_arrays(PIXELS, Y, lo=0, hi=255),
        lambda: from_arrays(PIXELS.astype("float32"), Y, lo=0, hi=255),
    ),
    Remedy(
        "eps / 255, lo=0 and hi=1",
        lambda: ball_for(eb.Linf(eps=8, lo=0, hi=255), from_arrays(PIXELS, Y)),
        lambda: ball_for(eb.Linf(eps=8 / 255, lo=0, hi=1), from_arrays(PIXELS, Y)),
    ),
    Remedy(
        "x * 255 as floating point",
        lambda: ball_for(eb.Linf(eps=8, lo=0, hi=255), from_arrays(PIXELS, Y)),
        lambda: ball_for(eb.Linf(eps=8, lo=0, hi=255), from_arrays(from_arrays(PIXELS, Y).x * 255, Y, lo=0, hi=255)),
    ),
    Remedy(
        "8/255",
        lambda: ball_for(eb.Linf(eps=8), from_arrays(PIXELS, Y)),
        lambda: ball_for(eb.Linf(eps=8 / 255), from_arrays(PIXELS, Y)),
    ),
    Remedy(
        "inf for no bound",
        lambda: ball_for(eb.Linf(eps=8), from_arrays(PIXELS, Y)),
        lambda: ball_for(eb.Linf(eps=np.inf), from_arrays(PIXELS, Y)),
    ),
    Remedy(
        "(x, y)",
        lambda: examples_of(TensorDataset(X, Y, Y)),
        lambda: examples_of(TensorDataset(X, Y)),
    ),
    Remedy(
        "datasets.Dataset.from_list(list(data.take(1000)))",
        lambda: examples_of(stream()),
        lambda: examples_of(datasets.Dataset.from_list(list(stream().take(1000)))),
    ),
    Remedy("model(x).argmax(1)", lambda: from_arrays(X, None), lambda: from_arrays(X, NET(X).argmax(1), classes=2)),
    Remedy("y - 1", lambda: evaluated("fgsm", data=(X, Y + 1)), lambda: evaluated("fgsm", data=(X, Y))),
    Remedy("y.real", lambda: from_arrays(X, Y + 0j), lambda: from_arrays(X, (Y + 0j).real)),
    Remedy("y > 0.5", lambda: from_arrays(X, Y * 0.4 + 0.3), lambda: from_arrays(X, Y * 0.4 + 0.3 > 0.5)),
    Remedy("y.reshape(-1)", lambda: from_arrays(X, Y[None]), lambda: from_arrays(X, Y[None].reshape(-1))),
    Remedy("y > 0", lambda: from_arrays(X, 2 * Y - 1), lambda: from_arrays(X, 2 * Y - 1 > 0)),
    Remedy("x.dequantize()", lambda: from_arrays(quantized(), Y), lambda: from_arrays(quantized().dequantize(), Y)),
    Remedy(
        "torch.stack of equal rows",
        lambda: from_arrays(torch.nested.nested_tensor(list(X)), Y),
        lambda: from_arrays(torch.stack(list(X)), Y),
    ),
    Remedy("x.to_dense()", lambda: from_arrays(X.to_sparse(), Y), lambda: from_arrays(X.to_sparse().to_dense(), Y)),
    # set-ups
    Remedy("x[None]", lambda: seen(IMAGE, [0]), lambda: seen(IMAGE[None], [0])),
    Remedy("x[None]", lambda: seen(IMAGE, [0, 1, 0]), lambda: seen(IMAGE[None], [0])),
    Remedy(
        "torch.as_tensor(x).to(torch.float16)",
        lambda: halved(X),
        lambda: halved(torch.as_tensor(X).to(torch.float16)),
    ),
    Remedy("[0.1, 0.2]", lambda: evaluated("fgsm", eps=[None]), lambda: evaluated("fgsm", eps=[0.1, 0.2])),
    # protocols and stages
    Remedy(
        "worst-of(apgd-ce:steps=50, square)",
        lambda: named("fast:steps=50", BALL),
        lambda: named("worst-of(apgd-ce:steps=50, square)", BALL),
    ),
    Remedy(
        "worst-of(apgd, pgd:restarts=5)",
        lambda: evaluated("fast", ball=eb.L0(eps=1, lo=0, hi=1)),
        lambda: evaluated("worst-of(apgd, pgd:restarts=5)", ball=eb.L0(eps=1, lo=0, hi=1)),
    ),
    Remedy("worst-of(pgd, square)", lambda: named("worst-of pgd", BALL), lambda: named("worst-of(pgd, square)", BALL)),
    Remedy("attacks=['fgsm', 'pgd']", evaluated, lambda: evaluated("fgsm", "pgd")),
    Remedy(
        "Linf(eps=8/255, lo=0, hi=1)",
        lambda: evaluated("fgsm", ball=eb.Linf(eps=8 / 255), storage="8bit"),
        lambda: evaluated("fgsm", ball=eb.Linf(eps=8 / 255, lo=0, hi=1), storage="8bit"),
    ),
    # black boxes and models
    Remedy(
        "scores='logits'",
        lambda: black_box(lambda x: x, scores="labels"),
        lambda: black_box(lambda x: x, scores="logits"),
    ),
    Remedy(
        "classes=estimator.classes_",
        lambda: black_box(lambda x: logistic().predict(x), scores="labels"),
        lambda: black_box(lambda x: logistic().predict(x), scores="labels", classes=logistic().classes_),
    ),
    Remedy(
        "scores='labels'",
        lambda: black_box(lambda x: x.argmax(1)),
        lambda: black_box(lambda x: x.argmax(1), scores="labels"),
    ),
    Remedy(
        "batch_size=1, pad=True",
        lambda: black_box(lambda x: x, pad=True),
        lambda: black_box(lambda x: x, batch_size=1, pad=True),
    ),
    *(
        Remedy(
            "https://host/v2/models/NAME",
            partial(parse_address, wrong),
            partial(parse_address, "https://host/v2/models/NAME"),
        )
        for wrong in ("https://host/models/NAME", "https://host:x/v2/models/NAME")
    ),
    Remedy(
        "rate=4",
        lambda: parse_address("https://host/v2/models/NAME?rate=fast"),
        lambda: parse_address("https://host/v2/models/NAME?rate=4"),
    ),
    *(
        Remedy(
            "ensemble:small-mlp,small-cnn",
            partial(load, wrong, shape=(1, 8, 8), classes=2),
            partial(load, "ensemble:small-mlp,small-cnn", shape=(1, 8, 8), classes=2),
        )
        for wrong in ("ensemble:small-mlp", "ensembles:small-mlp,small-cnn")
    ),
    Remedy(
        "epsball.BlackBox(model)",
        lambda: ask(lambda x: x.detach().numpy()),
        lambda: ask(eb.BlackBox(lambda x: x)),
    ),
    Remedy(
        "lambda x: model(x)['scores']",
        lambda: ask(lambda x: {"scores": NET(x)}),
        lambda: ask(lambda x: {"scores": NET(x)}["scores"]),
    ),
    Remedy(
        "lambda x: model(x)[1]",
        lambda: ask(lambda x: (NET(x).sum(), NET(x))),
        lambda: ask(lambda x: (NET(x).sum(), NET(x))[1]),
    ),
    Remedy(
        "epsball.load('nets.py:net')",
        lambda: eb.evaluate("nets.py:net", (X, Y), "linf:0.1", "fgsm", diagnose=0),
        lambda: eb.evaluate(
            eb.load(f"{module('nets', 'net = Linear(3, 2)')}.py:net"), (X, Y), "linf:0.1", "fgsm", diagnose=0
        ),
    ),
    Remedy(
        "epsball.load('small-mlp', shape=(1, 28, 28), classes=10)",
        lambda: load("small-mlp"),
        lambda: load("small-mlp", shape=(1, 28, 28), classes=10),
    ),
    Remedy("model.module()", lambda: ask(exported()), lambda: ask(exported().module())),
    Remedy("x[None]", lambda: asked(SMALL, IMAGE), lambda: asked(SMALL, IMAGE[None])),
    Remedy(
        "torch.save({key.removeprefix('a.'): value for key, value in state.items() if key.startswith('a.')}, path)",
        lambda: load_weights(NET, both_networks()),
        lambda: load_weights(NET, one_of_both(both_networks())),
    ),
    Remedy(
        "torch.save({key.removeprefix('a.'): value for key, value in state.items() if key.startswith('a.')}, path)",
        lambda: load_weights(NET, with_a_layer_more(both_networks())),
        lambda: load_weights(NET, one_of_both(both_networks())),
    ),
    Remedy(
        "torch.save(torch.load('a.pt', weights_only=True)['ema'], 'weights.pt')",
        lambda: load_weights(NET, saved("a.pt", {"ema": NET.state_dict()})),
        lambda: (
            saved("a.pt", {"ema": NET.state_dict()}),
            torch.save(torch.load("a.pt", weights_only=True)["ema"], "weights.pt"),
            load_weights(NET, "weights.pt"),
        ),
    ),
    Remedy("return the logits", lambda: asked(now_and_then(), X, calls=2), lambda: asked(NET, X, calls=2)),
    Remedy(
        "def model(): return Net(...)",
        lambda: load(f"{module('needs', 'def model(d): return Net(Linear(d, 2))')}:model", shape=(3,), classes=2),
        lambda: load(f"{module('none', 'def model(): return Net(Linear(3, 2))')}:model", shape=(3,), classes=2),
    ),
    Remedy(
        "(1, 28, 28), 10",
        lambda: models.build("small-mlp", (0, 28), 10),
        lambda: models.build("small-mlp", (1, 28, 28), 10),
    ),
    Remedy(
        "preact-resnet18:width=16",
        lambda: models.build("preact-resnet18:16", (3, 32, 32), 10),
        lambda: models.build("preact-resnet18:width=16", (3, 32, 32), 10),
    ),
    Remedy(
        "torch.save(model.state_dict(), path)",
        lambda: load_weights(NET, saved("a.pt", [1])),
        lambda: load_weights(NET, saved("a.pt", NET.state_dict())),
    ),
    # training
    Remedy(
        "Augment(attack=FGSM())", lambda: training.Augment(attack="fgsm"), lambda: training.Augment(attack=eb.FGSM())
    ),
    Remedy(
        "Linf(eps=0.3, lo=0, hi=1)",
        lambda: tuned(training.Augment(attack=eb.FGSM()), None),
        lambda: tuned(training.Augment(attack=eb.FGSM()), eb.Linf(eps=0.3, lo=0, hi=1)),
    ),
    Remedy(
        "Linf(eps=0.3, lo=0, hi=1)",
        lambda: tuned(training.FGSMMix(), None),
        lambda: tuned(training.FGSMMix(), eb.Linf(eps=0.3, lo=0, hi=1)),
    ),
    Remedy("FGSMMix(alpha=0.5)", lambda: tuned("fgsm-mix"), lambda: tuned(training.FGSMMix(alpha=0.5))),
    Remedy("hold_out=500", lambda: TrainingConfig(hold_out=-1), lambda: TrainingConfig(hold_out=500)),
    # linear models
    Remedy(
        "epsball.Linf(eps=0.1, lo=0, hi=1)",
        lambda: optimum(X[0], 0.0, X, Y, 0.1),
        lambda: optimum(X[0], 0.0, X, Y, eb.Linf(eps=0.1, lo=0, hi=1)),
    ),
    Remedy(
        "None",
        lambda: optimum(logistic(), 0.0, TABLE.x, TABLE.y, BALL),
        lambda: optimum(logistic(), None, TABLE.x, TABLE.y, BALL),
    ),
    Remedy(
        ".toarray()",
        lambda: optimum(X[0], 0.0, csr_matrix(X.numpy()), Y, BALL),
        lambda: optimum(X[0], 0.0, csr_matrix(X.numpy()).toarray(), Y, BALL),
    ),
    Remedy(
        "x[model.feature_names_in_]",
        lambda: optimum(of_frame(), None, FRAME[["b", "a"]], CLASSES, BALL),
        lambda: optimum(of_frame(), None, FRAME[["b", "a"]][of_frame().feature_names_in_], CLASSES, BALL),
    ),
    Remedy(
        "x[model.feature_names_in_]",
        lambda: optimum(of_frame(), None, FRAME.assign(c=0), CLASSES, BALL),
        lambda: optimum(of_frame(), None, FRAME.assign(c=0)[of_frame().feature_names_in_], CLASSES, BALL),
    ),
    Remedy(
        "x.reshape(1, 1)",
        lambda: optimum([0.5], 0.0, X[0, 0], 0, BALL),
        lambda: optimum([0.5], 0.0, X[0, 0].reshape(1, 1), 0, BALL),
    ),
    Remedy(
        "x[None] for one",
        lambda: optimum(X, 0.0, X, 0, BALL),
        lambda: optimum(X, 0.0, X[None], 0, BALL),
    ),
    Remedy(
        "y with one class per row",
        lambda: optimum(X, 0.0, X, 0, BALL),
        lambda: optimum(X, 0.0, X, [0, 0, 0, 0], BALL),
    ),
    Remedy(
        "x.float()",
        lambda: optimum(X[0], 0.0, X.to(torch.float8_e5m2), Y, "linf:0.1"),
        lambda: optimum(X[0], 0.0, X.to(torch.float8_e5m2).float(), Y, "linf:0.1"),
    ),
    Remedy(
        "`.astype('float64')`",
        lambda: optimum(X[0], 0.0, X.numpy().astype(str), Y, BALL),
        lambda: optimum(X[0], 0.0, X.numpy().astype(str).astype("float64"), Y, BALL),
    ),
    Remedy(
        "[[0.5, 1.0], [0.0, 2.0]]",
        lambda: optimum([1.0, 2.0], 0.0, [[0.5, 1.0], [0.0]], [0, 1], "linf:0.1"),
        lambda: optimum([1.0, 2.0], 0.0, [[0.5, 1.0], [0.0, 2.0]], [0, 1], "linf:0.1"),
    ),
    Remedy(
        "[0, 1, 1]",
        lambda: optimum(X[0], 0.0, X[:3], [0, [1, 1]], BALL),
        lambda: optimum(X[0], 0.0, X[:3], [0, 1, 1], BALL),
    ),
    Remedy(
        "eps=[0.01, 0.1]",
        lambda: eps_path(TABLE.x, TABLE.y, eps=[]),
        lambda: eps_path(TABLE.x, TABLE.y, eps=[0.01, 0.1]),
    ),
    Remedy("eps=30", lambda: eps_path(TABLE.x, TABLE.y, eps=[]), lambda: eps_path(TABLE.x, TABLE.y, eps=30)),
    Remedy(
        "skops.io.dump",
        lambda: (Path("a.skops").write_bytes(pickle.dumps(1)), storage.load("a.skops")),
        lambda: (skops.io.dump(logistic(), "a.skops"), storage.load("a.skops")),
    ),
    Remedy(
        "skops.io.dump",
        lambda: (Path("a.skops").write_bytes(pickle.dumps(1)), open_skops(Asked(spec="a.skops"))),
        lambda: (skops.io.dump(logistic(), "a.skops"), open_skops(Asked(spec="a.skops"))),
    ),
    Remedy(
        "--trust (in Python trust=True)",
        lambda: (skops.io.dump(tree(), "a.skops"), open_skops(Asked(spec="a.skops"))),
        lambda: (skops.io.dump(tree(), "a.skops"), open_skops(Asked(spec="a.skops", trust=True))),
    ),
    Remedy(
        "LogisticRegression().fit(x, y)",
        lambda: module_of(LogisticRegression),
        lambda: module_of(LogisticRegression().fit(TABLE.x, TABLE.y)),
    ),
    Remedy(
        "refit=True",
        lambda: module_of(GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2, refit=False).fit(TABLE.x, TABLE.y)),
        lambda: module_of(GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2, refit=True).fit(TABLE.x, TABLE.y)),
    ),
    Remedy(
        "--eps 0.1std",
        lambda: attack_table(logistic(), TABLE, AttackConfig()),
        lambda: attack_table(logistic(), TABLE, AttackConfig(eps="0.1std")),
    ),
    Remedy(
        "--eps 2",
        lambda: attack_table(logistic(), TABLE, AttackConfig(norm="l0", eps="2std", lo=0, hi=1)),
        lambda: attack_table(logistic(), TABLE, AttackConfig(norm="l0", eps="2", lo=0, hi=1)),
    ),
    Remedy("0.1std", lambda: Radius.parse("-1"), lambda: Radius.parse("0.1std")),
    Remedy(
        "no std", lambda: Radius.parse("1std").unit(TABLE.x * 1e-320), lambda: Radius.parse("1").unit(TABLE.x * 1e-320)
    ),
    Remedy("0.2", lambda: FitConfig(test_share=1.0), lambda: FitConfig(test_share=0.2)),
    Remedy("--loss squared", lambda: loss_for(NUMBERS, "logistic"), lambda: loss_for(NUMBERS, "squared")),
    Remedy(
        "--loss squared",
        lambda: loss_for(replace(TABLE, x=np.zeros((3000, 3)), y=np.arange(3000)), None),
        lambda: loss_for(replace(TABLE, x=np.zeros((3000, 3)), y=np.arange(3000)), "squared"),
    ),
    Remedy(
        "--eps without std",
        lambda: fit_table(TABLE, FitConfig(cv=True, penalty="l2", eps="0.1std")),
        lambda: fit_table(TABLE, FitConfig(cv=True, penalty="l2", eps="0.1")),
    ),
    # explanations
    Remedy(
        "torch.nn",
        lambda: explain.conditioning(nn.Sequential(nn.Flatten()), from_arrays(X, Y), BALL),
        lambda: explain.conditioning(NET, from_arrays(X, Y), BALL),
    ),
    Remedy(
        "{'plain': model}",
        lambda: explain.direction({}, digits(), BALL),
        lambda: explain.direction({"plain": of_digits()}, digits(), BALL),
    ),
    Remedy(
        "eps=(0.01, 0.1)",
        lambda: explain.taylor_gap(NET, X, Y, eb.Linf(eps=torch.rand(4))),
        lambda: explain.taylor_gap(NET, X, Y, eb.Linf(eps=torch.rand(4)), eps=(0.01, 0.1)),
    ),
    Remedy(
        "{'plain': plain, 'trained': trained}",
        lambda: explain.training_changed({"plain": of_digits()}, digits(), BALL),
        lambda: explain.training_changed({"plain": of_digits(), "trained": of_digits()}, digits(), BALL),
    ),
    Remedy(
        "sides=()",
        lambda: explain.universal(NET, RIGHT, BALL, sides=(3,)),
        lambda: explain.universal(NET, RIGHT, BALL, sides=()),
    ),
    Remedy("(7, 14, 28)", lambda: check_sides(()), lambda: check_sides((7, 14, 28))),
    Remedy(
        "6",
        lambda: explain.linearity(of_digits(), digits(), BALL, points=5 + 1),
        lambda: explain.linearity(of_digits(), digits(), BALL, points=7),
    ),
    Remedy("0.1", lambda: explain.l1_equivalence(digits(), digits(), eps=0), lambda: L1Config(eps=0.1)),
    Remedy("ball.with_eps(0.1)", lambda: radius_of(eb.Linf(eps=0)), lambda: radius_of(eb.Linf(eps=0).with_eps(0.1))),
    Remedy("(0.01, 0.1)", lambda: radii_of([0]), lambda: radii_of((0.01, 0.1))),
    # reproductions
    Remedy(
        "Linf(eps=0.25)",
        lambda: tuned(NoiseTraining(kind="sign"), None),
        lambda: tuned(NoiseTraining(kind="sign"), eb.Linf(eps=0.25)),
    ),
    Remedy(
        "(0.25, 0.1)",
        lambda: threes_sevens(mnist("digits"), radii=(0,)),
        lambda: threes_sevens(mnist("digits"), radii=(0.25, 0.1)),
    ),
    # models in other formats
    Remedy(
        "black_box=True",
        lambda: open_onnx(Asked(spec=str(determinant()))),
        lambda: open_onnx(Asked(spec=str(determinant()), black_box=True)),
    ),
    # the command line
    Remedy("0.5", lambda: command(*CHEAP, "--fail-under", "50"), lambda: command(*CHEAP, "--fail-under", "0.5")),
    Remedy(
        "small-cnn",
        lambda: command(*CHEAP, "--source-weights", "net.safetensors"),
        lambda: (
            save_weights(models.build("small-cnn", (1, 8, 8), 10), Path("net.safetensors"))
            or command(*CHEAP, "--source", "small-cnn", "--source-weights", "net.safetensors")
        ),
    ),
    Remedy(
        "--eps 0.1",
        lambda: command(*CHEAP, "--min-norm", "--fail-under", "0.5"),
        lambda: command(
            "evaluate",
            "--limit",
            "20",
            "--epochs",
            "1",
            "--attacks",
            "fmn:steps=5",
            "--min-norm",
            "--fail-under",
            "0.5",
            "--eps",
            "0.1",
        ),
    ),
    Remedy(
        "report.html",
        lambda: (Path("there").mkdir(exist_ok=True), command("report", "run", "--out", "there")),
        lambda: (command(*CHEAP, "--out", "run"), command("report", "run", "--out", "there/report.html")),
    ),
    Remedy(
        "small-cnn",
        lambda: command("serve", "--beside-weights", "net.safetensors"),
        lambda: served("--beside", "small-cnn"),
    ),
]

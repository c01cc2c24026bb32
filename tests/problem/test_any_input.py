"""Whatever is handed over as data, labels, ball and model: a result, or `BadInput`. No exception of another library."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import rng
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import epsball as eb
from epsball.common.errors import BadInput
from epsball.training.fit_result import Diverged

pytestmark = pytest.mark.filterwarnings("ignore")


def drawn(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for one in net.parameters():
            one.copy_(torch.randn(one.shape, generator=rng(one.numel())))
    return net.eval()


NET = drawn(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))
CONV = drawn(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)))
MODELS = {
    "net": NET,
    "conv": CONV,
    "half": copy.deepcopy(NET).half(),
    "bfloat16": copy.deepcopy(NET).bfloat16(),
    "double": copy.deepcopy(NET).double(),
    "square": drawn(nn.Linear(5, 5)),
    "one logit": drawn(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))),
    "flat": drawn(nn.Sequential(nn.Flatten(), nn.Linear(12, 3))),
    "parallel": nn.DataParallel(NET),
    "callable": lambda z: NET(z),
    "labels": lambda z: NET(z).argmax(1),
    "probabilities": lambda z: NET(z).softmax(1),
    "of any shape": lambda z: torch.stack([z.flatten(1).sum(1), -z.flatten(1).sum(1)], 1),
    "of scalars": lambda z: torch.stack([z, -z], 1),
    "NaN": lambda z: NET(z) * math.nan,
    "tuple": lambda z: (NET(z),),
    "numpy": lambda z: NET(z).detach().numpy(),
    "constant": lambda z: torch.zeros(len(z), 3),
    "one row": lambda z: NET(z)[:1],
    "sum": lambda z: NET(z).sum(),
    "maps": lambda z: NET(z)[:, :, None, None],
    "text": "net",
    "none": None,
    "class": nn.Linear,
}
SHAPES = [(5,), (3, 6, 6), (6, 6, 3), (), (1,), (2, 6), (0,), (1, 28, 28)]
NUMBERS = ["f2", "f4", "f8", ">f4", ">f8", "g", "i1", "u1", "i4", ">i8", "u8", "?", "c8", "O", "U3", "M8[s]"]
KINDS = [
    "numpy",
    "torch",
    "grad",
    "inference",
    "list",
    "frame",
    "fortran",
    "sparse",
    "masked",
    "bfloat16",
    "tuple",
    "meta",
]


def as_kind(array: np.ndarray, kind: str) -> object:
    """The array in a container; as it is where it does not go into that."""
    try:
        if kind == "frame":
            return pd.DataFrame(array) if array.ndim == 2 else pd.Series(array)
        if kind == "masked":
            return np.ma.masked_array(array, mask=array == array.flat[0])
        if kind in ("list", "tuple"):
            return list(array) if kind == "list" else tuple(array.tolist())
        if kind == "fortran":
            return np.asfortranarray(array)[::-1]
        if kind != "numpy":
            tensor = torch.tensor(np.asarray(array, dtype=array.dtype.newbyteorder("=")))
            if kind == "inference":
                with torch.inference_mode():
                    return tensor.clone()
            other = {"sparse": tensor.to_sparse, "bfloat16": tensor.bfloat16, "meta": lambda: tensor.to("meta")}
            return tensor.requires_grad_() if kind == "grad" else other[kind]() if kind in other else tensor
    except (TypeError, ValueError, RuntimeError, IndexError):
        pass
    return array


@st.composite
def arrays(draw: st.DrawFn, shapes: st.SearchStrategy, usual: str) -> object:
    """Numbers of any kind in any container; half of them of the usual dtype, in [0, 1] or whole."""
    shape = draw(shapes)
    dtype = draw(st.just(usual) | st.sampled_from(NUMBERS))
    values = np.random.default_rng(draw(st.integers(0, 9))).random(shape)
    values = values * draw(st.sampled_from([1, 1, 3, 255, 1e30, -1]))
    values = np.round(values) if usual == "i8" else values
    if values.size and draw(st.integers(0, 4)) == 0:
        values.flat[0] = draw(st.sampled_from([math.nan, math.inf, -1, 1e300, 0.5]))
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(dtype)
    return as_kind(array, draw(st.just("numpy") | st.sampled_from(KINDS)))


ODD = st.sampled_from(
    [None, 3, 0.5, "cat", ["a", "b"], [[0.0], [1.0, 2.0]], [], {}, {1, 2}, b"x", range(4), object(), [None]]
)


@st.composite
def datas(draw: st.DrawFn) -> object:
    n, shape = draw(st.integers(0, 5)), draw(st.just((5,)) | st.sampled_from(SHAPES))
    x = draw(st.one_of(*[arrays(st.just((n, *shape)), "f4")] * 4, arrays(st.just(shape), "f4"), ODD))
    ys = st.sampled_from([(n,), (n,), (n,), (n, 1), (n, 3), (1, n), (), (n + 1,)])
    y = draw(st.one_of(*[arrays(ys, "i8")] * 5, ODD))
    form = draw(st.just("pair") | st.sampled_from(["list", "dict", "dataset", "loader", "rows", "x alone", "three"]))
    tensors = all(isinstance(one, torch.Tensor) and one.ndim and one.layout == torch.strided for one in (x, y))
    if form in ("dataset", "loader") and tensors and len(x) == len(y) and not x.is_meta:
        dataset = TensorDataset(x, y)
        return dataset if form == "dataset" else DataLoader(dataset, batch_size=2, shuffle=True)
    if form == "rows" and all(isinstance(one, np.ndarray) and one.ndim for one in (x, y)) and len(x) == len(y):
        return DataLoader(list(zip(x, y, strict=True)), batch_size=2) if len(x) else []
    return {"list": [x, y], "dict": {"x": x, "y": y}, "x alone": x, "three": (x, y, y)}.get(form, (x, y))


RADII = st.one_of(
    st.sampled_from([0.1, 0.1, 0, 8 / 255, 8, math.inf, -1, math.nan, np.float32(0.1), True, "0.1", None]),
    arrays(st.sampled_from([(), (5,), (1, 5), (3,), (4, 5)]), "f4"),
)


@st.composite
def balls(draw: st.DrawFn) -> object:
    """A function that makes a ball, or what is none."""
    usual = st.just(lambda: eb.Linf(eps=0.1, lo=0, hi=1))
    texts = st.sampled_from(
        ["linf:8/255", "l2:0.5", "l1:1", "l0:2", "linf", "l7:1", "linf:-1", "linf:1/0", "", "linf:nan"]
    )
    if draw(st.integers(0, 2)):
        value = draw(texts | ODD | st.just(eb.L2))
        return draw(usual | st.just(lambda: value))
    norm, eps = draw(st.sampled_from([eb.Linf, eb.L2, eb.L1, eb.L0])), draw(RADII)
    lo, hi = (
        draw(st.sampled_from([(-math.inf, math.inf), (0, 1), (-9, 300), (1, 0), (0, 255)]))
        if draw(st.booleans())
        else (draw(RADII), draw(RADII))
    )
    mask = draw(st.none() | arrays(st.sampled_from([(1, 5), (4, 5), (5,)]), "?"))
    return lambda: norm(eps=eps, lo=lo, hi=hi, mask=mask)


def fit(model: object, data: object, ball: object) -> object:
    return eb.fit(copy.deepcopy(model) if isinstance(model, nn.Module) else model, data, ball, epochs=1)


def attack(model: object, data: object, ball: object, one: object) -> object:
    x, y = data if isinstance(data, tuple | list) and len(data) == 2 else (data, 0)
    return one(model, x, y, ball)


CALLS = {
    "evaluate": lambda *given: eb.evaluate(*given, "fgsm", diagnose=0),
    "evaluate pgd": lambda *given: eb.evaluate(*given, ["pgd:steps=2", "square:steps=2"], diagnose=0, batch_size=2),
    "min_norm": lambda *given: eb.evaluate(*given, "ddn:steps=2", diagnose=0, min_norm=True),
    "fit": fit,
    "FGSM": lambda *given: attack(*given, eb.FGSM()),
    "PGD": lambda *given: attack(*given, eb.PGD(steps=2, restarts=2)),
    "diagnose": lambda *given: eb.diagnose(*given, "fgsm", n=2),
    "binarization_test": lambda *given: eb.binarization_test(*given, "fgsm", n=1),
}
QUICK = ["evaluate", "evaluate pgd", "min_norm", "fit", "FGSM", "PGD"]


def check(call: str, model: str, data: object, ball: object) -> None:
    """The call gives a result or raises `BadInput` (`Diverged`, of a training), and whatever a warning says."""
    note(f"{call}({model}, {data!r}, ...)")
    with contextlib.suppress(BadInput, Diverged):
        CALLS[call](MODELS[model], data, ball())


any_model = st.just("net") | st.sampled_from(sorted(MODELS))
relaxed = settings(
    deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None, max_examples=150
)


@relaxed
@given(call=st.sampled_from(QUICK), model=any_model, data=datas(), ball=balls())
def test_any_input_gives_a_result_or_bad_input(call, model, data, ball):
    check(call, model, data, ball)


@pytest.mark.nightly
@pytest.mark.timeout(2 * 3600)
@settings(relaxed, derandomize=False, max_examples=8000)
@given(call=st.sampled_from(QUICK * 8 + sorted(CALLS)), model=any_model, data=datas(), ball=balls())
def test_any_input_gives_a_result_or_bad_input_again(call, model, data, ball):
    check(call, model, data, ball)


@relaxed
@given(x=arrays(st.tuples(st.integers(0, 4), st.just(5)), "f4"), y=arrays(st.sampled_from([(3,), (4,)]), "i8"))
def test_any_npz_file_is_examples_or_bad_input(x, y, tmp_path_factory):
    file = Path(tmp_path_factory.getbasetemp()) / "any.npz"
    try:
        np.savez(file, x=np.asarray(x), y=np.asarray(y))
    except (RuntimeError, TypeError, ValueError):  # such a tensor has no numpy array
        return
    with contextlib.suppress(BadInput):
        eb.data.load_data(file)

"""Arrays of every kind and labels of every sane form; whatever is refused has a remedy that works when obeyed."""

from __future__ import annotations

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.load import load_data

X = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
Y = [2, 0, 1, 2]
HOT = np.eye(3)[Y]


def in_inference_mode(values: object) -> torch.Tensor:
    with torch.inference_mode():
        return torch.tensor(values)


@pytest.mark.parametrize(
    "x",
    [
        X.astype(">f4"),
        X.astype(np.longdouble).astype(np.float32),
        torch.from_numpy(X).requires_grad_(),
        torch.nn.Parameter(torch.from_numpy(X)),
        in_inference_mode(X),
        torch.from_numpy(X).T.contiguous().T,
        pd.DataFrame(X, columns=list("abc")),
        list(X),
        X.tolist(),
        tuple(torch.from_numpy(X)),
        X.astype(object),
        np.ma.masked_array(X),
    ],
    ids=lambda x: type(x).__name__,
)
def test_x_of_every_kind_holds_the_same_numbers(x):
    data = from_arrays(x, Y)
    assert torch.equal(data.x.float(), torch.from_numpy(X))
    assert data.x.is_leaf
    data.x.detach().requires_grad_()  # which torch refuses to a tensor of inference mode


def test_a_long_double_becomes_double_and_an_image_of_pil_channels_first():
    assert from_arrays(X.astype(np.longdouble), Y).x.dtype == torch.float64
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = from_arrays([Image.fromarray(pixels)] * 2, [0, 1])
    assert data.shape == (3, 2, 4)
    assert torch.equal(data.x[1] * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert (data.scale, data.lo, data.hi) == (255, 0, 1)


@pytest.mark.parametrize(
    "y",
    [
        np.array(Y),
        np.array(Y, dtype=">i8"),
        np.array(Y, dtype=np.uint8),
        np.array(Y, dtype=np.uint64),
        np.array(Y, dtype=np.float32),
        torch.tensor(Y, dtype=torch.float16),
        torch.tensor(Y)[:, None],
        np.array(Y, dtype=np.float64)[:, None],
        HOT,
        HOT.astype(bool),
        torch.from_numpy(HOT).int(),
        pd.Series(Y, index=[7, 3, 9, 1]),
        pd.DataFrame({"label": Y}),
        pd.Series(Y, dtype="Int64"),
        pd.Series(Y, dtype="category"),
        pd.get_dummies(pd.Series(Y)),
        [torch.tensor(one) for one in Y],
        [np.int64(one) for one in Y],
        in_inference_mode(Y),
        datasets.Dataset.from_dict({"label": Y})["label"],
    ],
    ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', '')}",
)
def test_labels_of_every_sane_form_are_the_same_classes(y):
    data = from_arrays(X, y)
    assert data.y.tolist() == Y
    assert data.y.dtype == torch.int64


def test_booleans_are_the_classes_0_and_1():
    assert from_arrays(X, [True, False, False, True]).y.tolist() == [1, 0, 0, 1]


NAMES = ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    "kind", [list, np.array, pd.Series, lambda y: pd.Series(y, dtype="category"), lambda y: np.array(y, object)]
)
def test_names_of_classes_are_numbered_by_label_names(kind):
    y = kind([NAMES[one] for one in Y])
    data = from_arrays(X, y, label_names=NAMES)
    assert (data.y.tolist(), data.classes, data.label_names) == (Y, 3, tuple(NAMES))
    some = from_arrays(X[:1], y[:1], label_names=NAMES)  # that a class is missing renumbers none
    assert (some.y.tolist(), some.classes) == (Y[:1], 3)
    with pytest.raises(BadInput, match="`y` must be one of cat, dgo, emu, got 'dog'; did you mean 'dgo'"):
        from_arrays(X, y, label_names=["cat", "dgo", "emu"])


def obeyed(error: BadInput, **names: object) -> object:
    """What the remedy of a message, the code between its backticks or after 'write', evaluates to."""
    remedy = str(error).rpartition("; ")[2]
    code = remedy.partition("write ")[2].strip("`")
    return eval(code.partition(" (")[0], {"x": names.get("x"), "y": names.get("y"), "torch": torch, "np": np})


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (torch.tensor([1, -1, -1, 1]), [1, 0, 0, 1]),
        (np.array([1.0, -1.0, -1.0, 1.0]), [1, 0, 0, 1]),
        (torch.tensor([[2, 0, 1, 2]]), Y),
        (torch.tensor([0.9, 0.2, 0.4, 0.6]), [1, 0, 0, 1]),
        (torch.tensor(HOT) * 0.9 + 0.1 / 3, Y),
    ],
)
def test_a_remedy_for_labels_gives_the_right_classes_when_obeyed(y, classes):
    with pytest.raises(BadInput, match="`y`") as refused:
        from_arrays(X, y)
    assert from_arrays(X, obeyed(refused.value, y=y)).y.tolist() == classes


def quantised(x: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(x, 1 / 7, 0, torch.qint8)


@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, quantised])
@pytest.mark.filterwarnings("ignore")  # torch is about to drop both
def test_a_remedy_for_tensors_gives_the_same_numbers_when_obeyed(kind):
    x = kind(torch.from_numpy(X))
    with pytest.raises(BadInput, match="`x` must") as refused:
        from_arrays(x, Y)
    assert torch.allclose(from_arrays(obeyed(refused.value, x=x), Y).x, torch.from_numpy(X))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, None, r"`y` must hold the class of each row of x, got None.*model\(x\)\.argmax\(1\)"),
        (None, Y, "`x` must be .*got None; hand over both x and y"),
        (X, 3, r"one class for each of the 4 rows.*x\[None\] with \[y\]"),
        (X, [3], r"got \(1,\); one example is x\[None\]"),
        (X, HOT + HOT[::-1], "not one-hot; choose one class for each row"),
        (X, [1, 0, -1, 2], "-1 often means: not labelled"),
        (X, ["a", "b", "a", "b"], "label_names=NAMES.*all classes of the model"),
        (X, [0, "b", None, "b"], "got 0 among names"),
        (X, [0, None, 1, 2], "must be"),
        (X, np.array([2**63] * 4, dtype=np.uint64), "below 2\\*\\*63"),
        (X, np.array(Y) * 1j, "`y.real`"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}), [0, 1], "numbers, got the dtype"),
        (np.ma.masked_array(X, mask=X > 1), Y, "masked"),
        (torch.empty(4, 3, device="meta"), Y, "meta"),
        (X + np.inf, Y, "finite"),
        (torch.zeros(4, 3, dtype=torch.float8_e4m3fn), Y, "floating point, or uint8"),
        (np.full((4, 1, 2, 2), 200), Y, r"x.astype\('uint8'\) for 8-bit images"),
        ({"a": 1}, Y, "must be a tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_in_a_sentence(x, y, message):
    with pytest.raises(BadInput, match=message):
        from_arrays(x, y)


def test_pandas_rows_in_different_orders_are_refused_and_both_remedies_work():
    x = pd.DataFrame(X, index=[0, 1, 2, 3])
    y = pd.Series([2, 2, 1, 0], index=[0, 3, 2, 1])
    with pytest.raises(BadInput, match=r"y\.loc\[x\.index\].*y\.to_numpy\(\)"):
        from_arrays(x, y)
    assert from_arrays(x, y.loc[x.index]).y.tolist() == Y
    assert from_arrays(x, y.to_numpy()).y.tolist() == [2, 2, 1, 0]
    assert from_arrays(x.reset_index(drop=True), pd.Series(Y, index=[9, 8, 7, 6])).y.tolist() == Y


def test_a_box_of_255_with_8_bit_images_is_refused():
    x = (X * 100).astype(np.uint8)
    with pytest.raises(
        BadInput, match=r"`lo` and `hi` must be left out with x of uint8, got 0 and 255.*astype\('float32'\)"
    ):
        from_arrays(x, Y, lo=0, hi=255)
    assert (from_arrays(x.astype("float32"), Y, lo=0, hi=255).hi, from_arrays(x, Y, lo=0, hi=1).hi) == (255, 1)


def test_an_npz_file_may_hold_the_box_and_the_names_of_the_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=[NAMES[one] for one in Y], lo=0, hi=2, label_names=NAMES)
    data = load_data(tmp_path / "a.npz")
    assert (data.lo, data.hi, data.y.tolist(), data.label_names) == (0, 2, Y, tuple(NAMES))

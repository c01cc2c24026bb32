"""Model, data and ball that do not fit each other as they come: matched where that is exact, else refused.

Each remedy of an error is obeyed here, and gives the result of the right call.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from nets import rng
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.models.folder import read_model_folder, write_model_folder
from epsball.models.registry import build

pytestmark = pytest.mark.filterwarnings("ignore::epsball.diagnosis.setup_record.SetupWarning")


def drawn(net: nn.Module, scale: float = 1.0) -> nn.Module:
    """The net with weights of its own generator, in eval mode."""
    with torch.no_grad():
        for one in net.parameters():
            one.copy_(scale * torch.randn(one.shape, generator=rng(one.numel())) / one[0].numel() ** 0.5)
    return net.eval()


NET = drawn(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), 2)
CONV = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), 3)
X = torch.rand(24, 5, generator=rng(1))
IMAGES = torch.rand(12, 3, 6, 6, generator=rng(2))
with torch.no_grad():
    Y, CLASSES = NET(X).argmax(1), CONV(IMAGES).argmax(1)
Y[:3] = (Y[:3] + 1) % 3
BALL = eb.Linf(eps=0.1)


def accuracies(model: object, data: object, ball: object = BALL, **options: object) -> tuple[float, float]:
    found = eb.evaluate(model, data, ball, "fgsm", diagnose=0, **options)
    return found.clean_accuracy, found.robust_accuracy


RIGHT = accuracies(NET, (X, Y))


class Rows(torch.utils.data.Dataset):
    """Rows by a lambda."""

    def __init__(self, row: object) -> None:
        self.row = row

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> object:
        return self.row(index)


def shuffled(**options: object) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, **options)


@pytest.mark.parametrize(
    "data",
    [
        (X.double().numpy(), Y.numpy()),
        (pd.DataFrame(X.double().numpy()), pd.Series(Y.numpy())),
        [X, Y],
        {"x": X, "y": Y},
        TensorDataset(X, Y),
        Subset(TensorDataset(X, Y), range(24)),
        Rows(lambda row: (X[row].numpy(), int(Y[row]))),
        Rows(lambda row: {"image": X[row].tolist(), "label": Y[row]}),
        DataLoader(TensorDataset(X, Y), batch_size=12),
        shuffled(),
        shuffled(drop_last=True),
        DataLoader(TensorDataset(X, Y), batch_sampler=[range(12, 24), range(12)]),
        DataLoader([(X[:12], Y[:12]), (X[12:], Y[12:])], batch_size=None),
    ],
    ids=lambda data: type(data).__name__,
)
def test_data_of_every_kind_give_the_same_result(data):
    before = torch.random.get_rng_state()
    assert accuracies(NET, data) == RIGHT
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ids_of_a_loader_are_row_numbers_whatever_its_sampler_draws():
    data = eb.data.examples_of(DataLoader(TensorDataset(X, Y), sampler=[5, 2, 9], batch_size=2))
    assert data.ids.tolist() == [2, 5, 9]
    assert torch.equal(data.x, X[[2, 5, 9]])


class Endless(IterableDataset):
    """Rows without end."""

    def __iter__(self):
        while True:
            yield from zip(X, Y, strict=True)


def test_the_remedy_for_a_data_set_without_a_length_works_when_obeyed():
    import itertools

    with pytest.raises(BadInput, match="known length") as refused:
        accuracies(NET, Endless())
    code = str(refused.value).rpartition("write ")[2].strip("`").replace("1000", "24")
    assert accuracies(NET, eval(code, {"itertools": itertools, "dataset": Endless()})) == RIGHT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"got Tensor alone; write \(x, y\)"),
        (X.numpy(), r"got ndarray alone; write \(x, y\)"),
        (list(shuffled()), "4 batches; hand over the DataLoader"),
        (list(DataLoader(TensorDataset(X, Y), batch_size=12)), "2 batches; hand over the DataLoader"),
        (DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 24, 99)), "hand over loader.dataset"),
        (DataLoader(Endless()), "known length"),
        (TensorDataset(X, Y, Y), "a row of TensorDataset has 3 parts"),
        (Rows(lambda row: X[row]), "has Tensor"),
        (Subset(TensorDataset(X, Y), []), "at least one example"),
        ({"train": 1, "test": 2}, r"one split is data\['test'\]"),
        (lambda: 0, "got function"),
        (None, "got NoneType"),
        ((X[:0], Y[:0]), "at least one example"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(data, message):
    for call in (accuracies, lambda net, data: eb.diagnose(net, data, BALL), lambda net, data: eb.fit(net, data)):
        with pytest.raises(BadInput, match=message):
            call(NET, data)


def test_names_of_a_data_set_are_the_names_of_its_labels():
    data = TensorDataset(X, Y)
    data.classes = ["cat", "dog", "emu", "fox"]
    assert eb.data.examples_of(Subset(data, [0, 1])).label_names == ("cat", "dog", "emu", "fox")
    assert eb.data.examples_of(Subset(data, [0, 1])).classes == 4


# The ball.


@pytest.mark.parametrize(
    "ball",
    [
        "linf:0.1",
        eb.Linf(eps=np.float64(0.1), lo=np.int64(-9), hi=np.float32(9)),
        eb.Linf(eps=np.full((1, 5), 0.1), lo=np.full((1, 5), -9, ">i2"), mask=np.ones((1, 5), dtype=bool)),
        eb.Linf(eps=np.full(24, 0.1)),
        eb.Linf(eps=np.array(0.1)),
    ],
)
def test_a_ball_as_text_or_of_numpy_is_that_ball(ball):
    assert accuracies(NET, (X, Y), ball) == RIGHT
    assert torch.equal(eb.FGSM()(NET, X, Y, ball), eb.FGSM()(NET, X, Y, BALL))
    assert eb.diagnose(NET, (X, Y), ball, "fgsm", n=4).correct == eb.diagnose(NET, (X, Y), BALL, "fgsm", n=4).correct


def test_a_mask_of_numpy_keeps_coordinates():
    mask = np.array([[True, False, True, False, True]])
    moved = (eb.FGSM()(NET, X, Y, eb.Linf(eps=0.1, mask=mask)) != X).any(0)
    assert moved.tolist() == mask[0].tolist()


@pytest.mark.parametrize(
    ("ball", "message"),
    [
        (Y, r"where that is y, x and y are one argument: evaluate\(model, \(x, y\), ball\)"),
        ("linf", "a colon and a radius, got 'linf'"),
        ("linf:x", "must be a number or a fraction"),
        (0.1, "got float"),
        (eb.Linf, r"write Linf\(eps=0.1\)"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_ball_is_refused_in_a_sentence(ball, message):
    for call in (
        lambda: accuracies(NET, (X, Y), ball),
        lambda: eb.diagnose(NET, (X, Y), ball),
        lambda: eb.FGSM()(NET, X, Y, ball),
        lambda: eb.binarization_test(NET, (X, Y), ball),
    ):
        with pytest.raises(BadInput, match=message):
            call()


def test_x_and_y_as_two_arguments_are_refused_with_the_right_call():
    with pytest.raises(BadInput, match=r"evaluate\(model, \(x, y\), ball\)"):
        eb.evaluate(NET, X, Y, BALL)


@pytest.mark.parametrize(
    "eps", [[0.1, 0.2], "0.1", 1j, torch.tensor(1j), None, np.array(["a"]), torch.empty(3, device="meta")]
)
def test_a_radius_that_is_no_number_is_refused(eps):
    with pytest.raises(BadInput, match="`eps` must"):
        eb.Linf(eps=eps)


def test_a_ball_without_a_box_is_in_that_of_the_examples():
    """Half the robust accuracy of the same data in their box: the points leave [0, 1] otherwise."""
    data = from_arrays(X, Y, lo=0, hi=1)
    inside = accuracies(NET, (X, Y), eb.Linf(eps=0.3, lo=0, hi=1))
    assert inside != accuracies(NET, (X, Y), eb.Linf(eps=0.3))
    assert accuracies(NET, data, eb.Linf(eps=0.3)) == accuracies(NET, data, "linf:0.3") == inside
    own = accuracies(NET, (X, Y), eb.Linf(eps=0.3, lo=-1, hi=1))
    assert accuracies(NET, data, eb.Linf(eps=0.3, lo=-1)) == own  # the side that it has, and the other one of the data


PIXELS = (X * 255).round().byte()


class Divided(nn.Module):
    """A net for pixels of 0 to 255."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return NET(x / 255)


@pytest.mark.parametrize(
    "ball",
    [eb.Linf(eps=8, lo=0, hi=255), eb.Linf(eps=8), "linf:8", eb.L2(eps=1000), eb.Linf(eps=8 / 255, lo=0, hi=255)],
)
def test_8_bit_images_with_a_ball_in_0_to_255_are_refused_everywhere(ball):
    for call in (
        lambda: accuracies(NET, (PIXELS, Y), ball),
        lambda: accuracies(NET, TensorDataset(PIXELS, Y), ball),
        lambda: eb.FGSM()(NET, PIXELS, Y, ball),
        lambda: eb.fit(NET, (PIXELS, Y), ball),
        lambda: eb.diagnose(NET, (PIXELS, Y), ball),
        lambda: accuracies(NET, (PIXELS, Y), "linf:1/255", eps=["8/255", 8]),
    ):
        with pytest.raises(BadInput, match=r"in the units of x, in \[0, 1\] .*divided by 255"):
            call()


def test_both_remedies_for_a_ball_in_0_to_255_give_the_right_result():
    right = accuracies(NET, (PIXELS.float() / 255, Y), eb.Linf(eps=8 / 255, lo=0, hi=1))
    assert accuracies(NET, (PIXELS, Y), "linf:8/255") == right
    assert accuracies(Divided(), (PIXELS.float(), Y), eb.Linf(eps=8, lo=0, hi=255)) == right
    found = eb.FGSM()(NET, PIXELS, Y, "linf:8/255")
    assert (found.min() >= 0, found.max() <= 1, found.dtype) == (True, True, torch.float32)
    assert accuracies(NET, (PIXELS, Y), eb.Linf(eps=1.0))[1] <= right[1]  # the whole box: no mistake


# The model's dtype.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_x_of_another_dtype_is_cast_where_that_is_exact_enough(dtype):
    x = X.half().to(dtype)
    with torch.no_grad():
        y = NET(x.float()).argmax(1)
    assert accuracies(NET, (x, y)) == accuracies(NET, (x.float(), y))
    assert torch.equal(eb.FGSM()(NET, x, y, BALL), eb.FGSM()(NET, x.float(), y, BALL))
    assert eb.diagnose(NET, (x, y), BALL, "fgsm", n=4).correct == 4
    assert eb.binarization_test(NET, (x, y), BALL, "fgsm", n=2).n == 2
    net = copy.deepcopy(NET)
    eb.fit(net, (x, y), "linf:0.1", epochs=1)


def test_a_half_model_gets_rounded_x_where_the_radius_is_large_against_the_rounding():
    half = copy.deepcopy(NET).half()
    clean, robust = accuracies(half, (X, Y))
    assert abs(clean - RIGHT[0]) < 0.1
    assert abs(robust - RIGHT[1]) < 0.1
    assert eb.FGSM()(half, X, Y, BALL).dtype == torch.float16
    with pytest.raises(BadInput, match=r"rounding moves an example by .* of eps") as refused:
        accuracies(half, (X, Y), "linf:0.01")
    code = str(refused.value).partition("write ")[2].partition(" for the ball")[0]
    assert accuracies(half, (eval(code, {"torch": torch, "x": X}), Y), "linf:0.01")
    assert accuracies(half.float(), (X, Y), "linf:0.01")


def test_x_that_a_model_casts_itself_is_left_as_it_is():
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(NET).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == torch.float32
            return self.net(x.bfloat16())

    assert eb.FGSM()(Casts(), X, Y, "linf:0.001").dtype == torch.float32


def test_x_beyond_the_range_of_a_half_model_is_refused():
    with pytest.raises(BadInput, match="within the range of float16"):
        accuracies(copy.deepcopy(NET).half(), (X * 1e6, Y))


# What a model says of x.

STATIC = (X[:2],)


@pytest.mark.parametrize(
    ("model", "x", "y", "rule"),
    [
        (lambda z: NET(z), X.double(), Y, "float32 for this model"),
        (CONV, IMAGES.permute(0, 2, 3, 1), CLASSES, "images with the channels first"),
        (CONV, IMAGES.permute(0, 2, 3, 1).double().numpy(), CLASSES, "images with the channels first"),
        (lambda z: CONV(z.permute(0, 3, 1, 2)), IMAGES, CLASSES, "images with the channels last"),
        (lambda z: CONV(z.expand(-1, 3, -1, -1)), IMAGES[:, 0], CLASSES, "images with a channel"),
        (lambda z: NET(z[:, :5]), IMAGES, CLASSES, r"flat rows"),
        (NET, X[0], Y[:1].expand(5), "a batch .*, not one example"),
        (CONV, IMAGES[0], CLASSES[:1].expand(3), "a batch .*, not one example"),
        (nn.Linear(5, 5), X[0], Y[:1].expand(5), "a batch .*, not one example"),
        (lambda z: torch.ones(3) if z.ndim == 1 else NET(z), X[0], Y[:1].expand(5), "a batch .*, not one example"),
    ],
)
def test_the_remedy_for_x_that_a_model_does_not_take_works_when_obeyed(model, x, y, rule):
    for call in (lambda: accuracies(model, (x, y)), lambda: eb.FGSM()(model, x, y, BALL)):
        with pytest.raises(BadInput, match=f"`x` must be {rule}") as refused:
            call()
        code = str(refused.value).rpartition("write ")[2]
        right = eval(code, {"x": x, "torch": torch, "np": np})
        labels = y[: len(right)]
        assert eb.FGSM()(model, right, labels, BALL).shape == right.shape


def test_x_of_a_shape_that_no_remedy_helps_is_refused_with_the_reason_of_the_model():
    for call in (
        lambda: accuracies(NET, (X[:, :3], Y)),
        lambda: eb.FGSM()(NET, X[:, :3], Y, BALL),
        lambda: eb.fit(NET, (X[:, :3], Y)),
        lambda: eb.diagnose(NET, (X[:, :3], Y), BALL),
    ):
        with pytest.raises(BadInput, match=r"`model` must take x .*rows of shape \(3,\).*mat1 and mat2"):
            call()


def test_an_error_of_the_model_that_is_not_about_x_is_raised_as_it_is():
    def broken(z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the server does not answer")

    with pytest.raises(RuntimeError, match="the server does not answer"):
        accuracies(broken, (X, Y))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: torch.jit.script(net),
        lambda net: torch.jit.trace(net, STATIC),
        nn.DataParallel,
        lambda net: torch.export.export(net, STATIC, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module(),
        lambda net: torch.jit.freeze(torch.jit.script(net)),
    ],
    ids=["script", "trace", "DataParallel", "export", "freeze"],
)
@pytest.mark.filterwarnings("ignore")
def test_models_of_torchs_other_forms_give_the_same_result(wrap):
    assert accuracies(wrap(NET), (X, Y)) == RIGHT


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_refused_and_both_remedies_work():
    program = torch.export.export(NET, STATIC)
    with pytest.raises(BadInput, match=r"write model\.module\(\)"):
        accuracies(program, (X, Y))
    with pytest.raises(BadInput, match="export it with a dynamic first dimension: ") as refused:
        accuracies(program.module(), (X, Y))
    code = str(refused.value).rpartition("dimension: ")[2]
    assert accuracies(eval(code, {"torch": torch, "net": NET, "x": X}).module(), (X, Y)) == RIGHT


# The names of the classes.

NAMES = ("ant", "bee", "cat")


@pytest.mark.parametrize("classes", [[1, 2, 3], np.array([3.0, 1.0, 7.0]), [-1, 1, 0], ["cat", "ant", "bee"]])
def test_labels_are_those_that_a_black_box_answers_with(classes):
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = np.asarray(classes)[(x.numpy() @ [1.5, 1.5]).astype(int).clip(0, 2)]
    box = eb.BlackBox(
        lambda z: np.asarray(classes)[(z @ [1.5, 1.5]).astype(int).clip(0, 2)], scores="labels", classes=classes
    )
    found = eb.evaluate(box, (x, y), eb.Linf(eps=0.01), "hopskipjump:steps=1", diagnose=0)
    assert found.clean_accuracy == 1


def test_names_without_an_order_ask_for_all_classes_of_the_model():
    net = drawn(build("small-mlp", (5,), 3), 3)
    with pytest.raises(BadInput, match=r"label_names=NAMES\), where NAMES lists all classes of the model"):
        eb.evaluate(net, (X, ["cat"] * len(X)), BALL, "fgsm", diagnose=0)


def test_labels_follow_the_names_of_the_models_classes(tmp_path):
    """A class folder is missing: the labels after it are one lower, and the names say so."""
    net = drawn(build("small-mlp", (5,), 3), 3)
    x = 4 * X - 2
    training = eb.fit(net, (x, torch.arange(len(x)) % 3), epochs=1).to_record()
    with torch.no_grad():
        y = net(x).argmax(1)
    assert len(y.unique()) > 1
    record = {"spec": "small-mlp", "shape": (5,), "classes": 3, "training": training}
    write_model_folder(tmp_path, net, label_names=NAMES, **record)
    model = read_model_folder(tmp_path)
    rows = y != y.min()
    names = tuple(name for place, name in enumerate(NAMES) if place != y.min())
    shifted = torch.tensor([names.index(NAMES[one]) for one in y[rows]])
    lacking = from_arrays(x[rows], shifted, label_names=names)
    assert accuracies(model, lacking)[0] == 1
    assert accuracies(net, lacking)[0] < 1  # no names, nothing to compare
    turned = from_arrays(x, 2 - y, label_names=NAMES[::-1])
    assert accuracies(model, turned)[0] == 1
    assert eb.diagnose(model, turned, BALL, "fgsm", n=4).correct == 4
    with pytest.raises(BadInput, match="classes that the model knows, got dog, while cat"):
        accuracies(model, from_arrays(x[rows], shifted * 0, label_names=("cat", "dog")))
    same_place = from_arrays(x, y, label_names=("ant", "bee", "house cat"))
    assert accuracies(model, same_place)[0] == 1
    others = from_arrays(x, y, label_names=("0", "1", "2"))
    assert accuracies(model, others)[0] == 1


def test_held_out_examples_follow_the_names_of_the_training_data():
    net, few = copy.deepcopy(NET), Y != 0
    train = from_arrays(X, Y, label_names=NAMES)
    held_out = from_arrays(X[few], Y[few] - 1, label_names=NAMES[1:])
    shifted = eb.fit(net, train, validation=held_out, epochs=1, lr=1e-9)
    whole = eb.fit(net, train, validation=from_arrays(X[few], Y[few]), epochs=1, lr=1e-9)
    assert shifted.epochs[-1] == whole.epochs[-1]

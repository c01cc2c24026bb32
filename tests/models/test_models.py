"""Built-in networks, user factories, and weights that never run code."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from epsball.common.errors import BadInput
from epsball.models.builtin import MAX_NORM, Maxout, Normalize
from epsball.models.opening import load
from epsball.models.registry import build
from epsball.models.weights import load_weights, save_weights


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def net() -> nn.Module:
    return build("small-mlp", (2, 3), 4, seed=5)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(u, v) for (a, u), (b, v) in pairs)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 9)])
@pytest.mark.parametrize(
    "name", ["small-mlp", "small-cnn", "small-cnn:width=5", "preact_resnet18:width=8", "maxout:units=12,pieces=3"]
)
def test_every_model_gives_logits_and_an_input_gradient(name, shape):
    model = build(name, shape, 7).eval()
    x = draw(3, *shape).requires_grad_()
    logits = model(x)
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()
    torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_the_resnet_has_the_size_of_the_papers_at_full_width():
    model = build("preact-resnet18", (3, 32, 32), 10)
    assert (
        sum(p.numel() for p in model.parameters()) == 11_172_170
    )  # kuangliu/pytorch-cifar's 11,171,146 and the last norm
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == 20


def test_maxout_is_the_maximum_of_its_pieces_and_has_the_size_of_the_papers():
    model = build("maxout", (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == 1200 * 785 + 1200 * 241 + 10 * 241
    assert [part.p for part in model if isinstance(part, nn.Dropout)] == [0.2, 0.5, 0.5]
    model, x = build("maxout:units=4,pieces=3,dropout=0", (2, 3), 5).double(), draw(7, 2, 3).double()
    assert not any(isinstance(part, nn.Dropout) for part in model)
    hidden = x.flatten(1)
    for layer in (part for part in model if isinstance(part, Maxout)):
        lines = [hidden @ row + bias for row, bias in zip(layer.linear.weight, layer.linear.bias, strict=True)]
        hidden = torch.stack([torch.stack(lines[unit::4]).amax(0) for unit in range(4)], 1)
    torch.testing.assert_close(model(x), model[-1](hidden), rtol=1e-12, atol=1e-12)


def test_maxouts_weights_are_limited_in_train_mode_unless_frozen():
    model, x = build("maxout:units=4,pieces=3,dropout=0", (6,), 5), draw(7, 6)
    layer = model[1]
    with torch.no_grad():
        layer.linear.weight[:5] *= 20
    long = layer.linear.weight.detach().clone()
    assert (long.norm(dim=1) > MAX_NORM).sum() == 5
    model.eval()(x)
    assert torch.equal(layer.linear.weight, long)
    layer.linear.weight.requires_grad_(False)
    model.train()(x)
    assert torch.equal(layer.linear.weight, long)  # frozen, as in an attack in train mode
    layer.linear.weight.requires_grad_(True)
    both = model(x) + model(2 * x)  # the second forward leaves what the first one's backward needs
    both.sum().backward()
    norms = layer.linear.weight.detach().norm(dim=1)
    torch.testing.assert_close(norms[:5], torch.full((5,), MAX_NORM), rtol=1e-5, atol=0)
    assert torch.equal(layer.linear.weight[5:], long[5:])
    torch.testing.assert_close(layer.linear.weight[:5] / norms[:5, None], long[:5] / long[:5].norm(dim=1)[:, None])


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_unchanged():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build("small-cnn", (1, 8, 8), 3, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(one, build("SMALL_CNN", (1, 8, 8), 3, seed=7))
    assert not same(one, build("small-cnn", (1, 8, 8), 3, seed=8))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("smal-cnn", (1, 8, 8), "did you mean 'small-cnn'"),
        ("small-cnn", (64,), "reshape the data"),
        ("small-cnn", (1, 3, 8), "H, W >= 4"),
        ("preact-resnet18:wdth=8", (1, 8, 8), "did you mean 'width'"),
        ("preact-resnet18:width=x", (1, 8, 8), "KEY=INTEGER"),
        ("preact-resnet18:width=0", (1, 8, 8), "`width` must be a whole number >= 1"),
        ("small-mlp:width=8", (4,), "must be left out"),
        ("maxout:unit=8", (4,), "did you mean 'units'"),
        ("maxout:pieces=0", (4,), "`pieces` must be a whole number >= 1"),
        ("maxout:dropout=100", (4,), "`dropout` must be in .0, 99., got 100; a percentage"),
        ("small-mlp", (), "`shape` and `classes`"),
    ],
)
def test_a_wrong_name_option_or_shape_is_refused_with_the_remedy(name, shape, message):
    with pytest.raises(BadInput, match=message):
        build(name, shape, 3)


def test_normalize_works_per_channel_in_the_dtype_of_its_input():
    layer = Normalize([0.25, 0.5], [0.5, 0.125])
    x = draw(4, 2, 3, 5).double()
    want = torch.stack([(x[:, 0] - 0.25) / 0.5, (x[:, 1] - 0.5) / 0.125], 1)
    assert torch.equal(layer(x), want)
    assert layer(x.float()).dtype == torch.float32
    assert set(layer.state_dict()) == {"mean", "std"}
    for mean, std in (([0.5], [0.0]), ([0.5], [1.0, 1.0])):
        with pytest.raises(BadInput, match="std > 0"):
            Normalize(mean, std)


def test_the_packages_are_imported_without_torch():
    code = "import sys, epsball.models, epsball.training; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width): super().__init__()\n"
        "def factory(): return nn.Linear(3, 2)\n"
        "def plain(): return lambda x: x * 2\n"
        "def nothing(): return None\n"
        "ready = nn.Linear(3, 2)\n"
    )
    (tmp_path / "users_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    return tmp_path


def test_a_users_factory_module_or_callable_is_loaded_as_a_module(users_folder):
    path = list(sys.path)
    x = draw(5, 3)
    assert load("users_nets:factory", shape=(3,), classes=2)(x).shape == (5, 2)
    assert load("users_nets:ready", shape=(3,), classes=2)(x).shape == (5, 2)
    wrapped = load("users_nets:plain", shape=(3,), classes=2)
    assert isinstance(wrapped, nn.Module)
    assert torch.equal(wrapped(x), x * 2)
    assert "plain" in repr(wrapped)
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("users_net:factory", "did you mean 'users_nets'"),
        ("nowhere.at_all:factory", "run in the folder of nowhere.py"),
        (".relative:factory", "not found"),
        ("users_nets:factori", "did you mean 'factory'"),
        ("users_nets:Net", "needs no arguments"),
        ("users_nets:nothing", "returned NoneType"),
        ("small-mpl", "did you mean 'small-mlp'"),
    ],
)
def test_a_name_that_makes_no_model_is_refused_with_the_remedy(users_folder, spec, message):
    with pytest.raises(BadInput, match=message):
        load(spec, shape=(3,), classes=2)


def test_an_import_error_inside_the_users_module_is_raised_unchanged(users_folder):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load("users_broken:factory", shape=(3,), classes=2)


def test_saved_weights_load_bit_for_bit_and_leave_no_other_file(tmp_path):
    model, path = net(), tmp_path / "net.safetensors"
    path.write_bytes(b"an older file")
    save_weights(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    other = load("small-mlp", shape=(2, 3), classes=4, weights=path, seed=6)
    assert same(model, other)


def test_shared_and_strided_tensors_are_saved_under_every_name(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(6.0)[::2])
    save_weights(model, tmp_path / "net.safetensors")
    state = load_file(tmp_path / "net.safetensors")
    assert set(state) == set(model.state_dict())
    assert torch.equal(state["0.bias"], torch.tensor([0.0, 2.0, 4.0]))
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(fresh, tmp_path / "net.safetensors")
    assert same(fresh, model)


def test_an_interrupted_save_leaves_the_old_file_intact(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_weights(net(), path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("epsball.common.atomic_files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build("small-mlp", (2, 3), 4, seed=9), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_state_dict_is_read(tmp_path, wrap, suffix, legacy):
    model, path = net(), tmp_path / f"net{suffix}"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    other = build("small-mlp", (2, 3), 4, seed=6)
    load_weights(other, path)
    assert same(model, other)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".joblib", ".pickle", ".pt2", ".bin"])
@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path, suffix, how):
    mark, path = tmp_path / "mark", tmp_path / f"net{suffix}"
    state = {"weight": Malicious(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    model = net()
    with pytest.raises(BadInput, match=r"run code from the file(.|\n)*convert it once: `from epsball"):
        load_weights(model, path)
    assert not mark.exists()
    assert same(model, net())
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # unpickled, the checkpoint does run code


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_whole_models_torchscript_and_exported_programs_are_refused(tmp_path):
    model = net()
    torch.save(model, tmp_path / "whole.pt")
    torch.jit.save(torch.jit.trace(model, draw(1, 2, 3)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (draw(1, 2, 3),)), tmp_path / "exported.pt2")
    shutil.copy(tmp_path / "exported.pt2", tmp_path / "exported.pt")
    for name in ("whole.pt", "script.pt", "exported.pt2", "exported.pt"):
        with pytest.raises(BadInput, match="run code"):
            load_weights(net(), tmp_path / name)


def test_weights_that_do_not_fit_are_refused_by_name_and_the_model_is_unchanged(tmp_path):
    path = tmp_path / "net.safetensors"
    state = net().state_dict()
    state["1.weight"], state["9.bias"] = torch.zeros(100, 5), state.pop("5.bias")
    save_file(state, path)
    model = net()
    with pytest.raises(BadInput, match=r"missing 5.bias; unexpected 9.bias; different 1.weight is \(100, 5\)"):
        load_weights(model, path)
    assert same(model, net())


def test_files_that_are_missing_damaged_or_hold_something_else_are_refused(tmp_path):
    save_weights(net(), tmp_path / "net.safetensors")
    with pytest.raises(BadInput, match=r"did you mean 'net\.safetensors'"):
        load_weights(net(), tmp_path / "nett.safetensors")
    for suffix in (".safetensors", ".pt"):
        (tmp_path / f"damaged{suffix}").write_bytes(b"not a checkpoint")
        with pytest.raises(BadInput, match="damaged"):
            load_weights(net(), tmp_path / f"damaged{suffix}")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pt")
    with pytest.raises(BadInput, match="a dict of epoch, lr"):
        load_weights(net(), tmp_path / "other.pt")
    with pytest.raises(BadInput, match=r"end in \.safetensors"):
        save_weights(net(), tmp_path / "net.pt")

"""Weights as others write them: under prefixes, in checkpoints of training loops, with names that do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import rng
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.weights import load_weights, save_weights


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()


X = torch.rand(4, 1, 4, 4, generator=rng(0))
SOURCE = net(1)
STATE = SOURCE.state_dict()


class Lit(nn.Module):
    """What a LightningModule's state dict looks like: the network under an attribute, and a criterion beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SOURCE
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


FILES: dict[str, tuple[str, Any, str]] = {
    "plain": ("net.pt", STATE, ""),
    "safetensors": ("net.safetensors", STATE, ""),
    "under state_dict": ("net.pth.tar", {"state_dict": STATE, "epoch": 3, "best": 0.5}, ""),
    "under model_state_dict": ("net.pth", {"model_state_dict": STATE, "optimizer": {"lr": 0.1}}, ""),
    "parallel": ("net.pth.tar", {"state_dict": prefixed("module.")}, "module."),
    "compiled": ("net.pt", prefixed("_orig_mod."), "_orig_mod."),
    "compiled and parallel": ("net.pt", prefixed("module._orig_mod."), "module. and _orig_mod."),
    "a compiled part": (
        "net.pt",
        {k.replace("0.", "0._orig_mod.", 1): STATE[k] for k in STATE},
        "_orig_mod.",
    ),
    "lightning": ("net.ckpt", {"state_dict": Lit().state_dict(), "pytorch-lightning_version": "2.6"}, "net."),
    "safetensors of a wrapper": ("net.safetensors", prefixed("model."), "model."),
    "an ending in capitals": ("NET.SAFETENSORS", STATE, ""),
    "before BatchNorm counted": ("net.pt", {k: v for k, v in STATE.items() if "tracked" not in k}, ""),
}


def written(path: Path, content: Any) -> Path:
    if path.suffix.lower() == ".safetensors":
        holder = nn.Module()
        holder.state_dict = lambda: content  # type: ignore[method-assign,assignment]
        save_weights(holder, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_weights_are_found_and_what_was_left_out_is_said(name: str, tmp_path: Path) -> None:
    file, content, prefix = FILES[name]
    model = net()
    notes = load_weights(model, written(tmp_path / file, content))
    assert torch.equal(model(X), SOURCE(X))
    assert bool(notes) == bool(prefix)
    assert not prefix or f"The prefix {prefix} " in notes[0]
    assert name != "lightning" or notes[1] == "Not used from the file: criterion.weight."


def test_a_wrapped_model_takes_the_weights_of_the_network_in_it(tmp_path: Path) -> None:
    model = nn.DataParallel(net())
    (note,) = load_weights(model, written(tmp_path / "net.pt", STATE))
    assert torch.equal(model.module(X), SOURCE(X))
    assert "prefix module. is not in the names" in note


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "names": (
        lambda: {**{f"a{i}": torch.zeros(1) for i in range(9)}, **{k: v for k, v in STATE.items() if k[0] != "3"}},
        r"missing 3.weight, 3.bias; unexpected a0, a1, a2, a3, a4, a5 and 3 more; is it",
    ),
    "shapes": (
        lambda: STATE | {"3.weight": torch.zeros(10, 8)},
        r"different 3.weight is \(10, 8\) instead of \(3, 8\); is it",
    ),
    "two networks": (lambda: prefixed("student.") | prefixed("teacher."), "one under each of student., teacher."),
    "a part of a larger network": (
        lambda: prefixed("2.") | {"0.weight": torch.zeros(9)},
        r"the part '2.' of a larger network, beside 0.weight; load that network, or",
    ),
    "whole numbers": (
        lambda: STATE | {"3.bias": torch.tensor([1, 2, 3])},
        "different 3.bias is torch.int64 instead of torch.float32",
    ),
    "an entry more beside a compiled part": (
        lambda: {k.replace("0.", "0._orig_mod.", 1): STATE[k] for k in STATE} | {"4.bias": torch.zeros(1)},
        "unexpected 4.bias; is it",
    ),
    "names that are numbers": (lambda: dict(enumerate(STATE.values())), "got a dict of 0, 1"),
    "another entry": (lambda: {"ema": STATE, "epoch": 3}, r"got a dict of ema, epoch in .*\['ema'\], 'weights.pt'\)"),
    "a part under the prefix": (lambda: dict(list(prefixed("module.").items())[:3]), "missing 0.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_are_refused_with_their_names_and_change_nothing(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInput, match=message):
        load_weights(model, written(tmp_path / "net.pt", content()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_was_taken_and_what_was_not_is_said(tmp_path: Path) -> None:
    averaged = {"model": STATE, "model_ema": {"module": prefixed("module.")}, "optimizer": {"state": {0: STATE}}}
    (note,) = load_weights(net(), written(tmp_path / "both.pt", averaged))
    assert note == "The file's entry 'model' was taken, and not 'model_ema'."
    model = net()
    (note,) = load_weights(model, written(tmp_path / "extra.pt", STATE | {"3._extra_state": {"scale": 1.0}}))
    assert note.endswith("since they are no tensors of a layer: 3._extra_state.")
    assert torch.equal(model(X), SOURCE(X))


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "empty").mkdir()
    file = written(tmp_path / "net.pt", STATE)
    for path, message in (
        (tmp_path / "pipe.pt", "which is a device or a pipe; copy it"),
        (tmp_path / "empty", "the folder .*empty'; name a file in it"),
        (tmp_path, f"did you mean {str(file)!r}"),
    ):
        with pytest.raises(BadInput, match=message):
            load_weights(net(), path)


def test_the_remedy_for_two_networks_is_right(tmp_path: Path) -> None:
    state = prefixed("student.") | {f"teacher.{key}": torch.zeros_like(value) for key, value in STATE.items()}
    path = written(tmp_path / "both.pt", state)
    with pytest.raises(BadInput) as error:
        load_weights(net(), path)
    command = str(error.value).partition("file of its own: ")[2]
    exec(command, {"torch": torch, "state": state, "path": path})
    model = net()
    load_weights(model, path)
    assert torch.equal(model(X), SOURCE(X))


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint_of_lightning_itself_is_read(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(1)
            self.save_hyperparameters({"lr": 0.1})

        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.tensor([0, 1, 2, 0])), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    source = Module()
    trainer.fit(source, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = net()
    load_weights(model, tmp_path / "last.ckpt")
    assert torch.equal(model(X), source.net.eval()(X))

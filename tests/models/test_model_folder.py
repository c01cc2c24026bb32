"""The folder of a trained model: it loads as it was written, and damaged or mixed folders are refused by file name."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.fingerprint import of_model
from epsball.models import folder
from epsball.models.folder import read_model_folder, write_model_folder
from epsball.models.model_record import Accuracies, is_folder, read_record
from epsball.models.opening import load
from epsball.models.registry import build
from epsball.models.weights import save_weights
from epsball.training.fit import fit

X = torch.linspace(0, 1, 6 * 3 * 8 * 8).reshape(6, 3, 8, 8)
Y = torch.tensor([0, 1, 0, 1, 0, 1])
FOUND = [
    Accuracies(on="held out", examples=6, clean=1 / 3, fgsm=0.25, pgd=0.125),
    Accuracies(on="test", examples=4, clean=1),
]
OPTIONS = {"data": "my data.npz", "ball": "l2:0.5", "lo": -1.0, "hi": None, "objective": "plain:label_smoothing=0.1"}


def trained(model: nn.Module):
    return fit(model, (X, Y), Linf(eps=0.1), epochs=1, batch_size=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    path = tmp_path_factory.mktemp("folder") / "net"
    model = build("preact-resnet18:width=2", (3, 8, 8), 2)
    result = trained(model)
    write_model_folder(
        path,
        model,
        spec="preact-resnet18:width=2",
        shape=(3, 8, 8),
        classes=2,
        training=result.to_record(),
        label_names=("cat: a pet", "dog"),
        options=OPTIONS,
        accuracies=FOUND,
    )
    return model, path


@pytest.fixture
def copy(written: tuple[nn.Module, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[1], tmp_path / "copy"))


def test_a_network_loads_with_its_weights_statistics_and_options(written):
    model, path = written
    for found in (read_model_folder(path), load(str(path), shape=(3, 8, 8), classes=2)):
        assert of_model(found) == of_model(model)
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "model.json", "model.safetensors"]


def test_the_record_is_what_was_written(written):
    record = read_record(written[1])
    assert (record.spec, record.shape, record.classes) == ("preact-resnet18:width=2", (3, 8, 8), 2)
    assert (record.options, record.label_names) == (OPTIONS, ("cat: a pet", "dog"))
    assert record.accuracies == tuple(FOUND)
    config = record.training["config"]
    assert (config["epochs"], config["batch_size"], config["examples"]) == (1, 3, 6)
    assert config["versions"]["torch"] == torch.__version__


def test_the_hub_reads_the_accuracies_of_the_card(written):
    text = (written[1] / "README.md").read_text()
    data = ModelCard(text).data
    assert data.pipeline_tag == "image-classification"
    assert data.eval_results is not None
    read = [(found.dataset_name, found.metric_name, found.metric_value) for found in data.eval_results]
    assert [share for _, _, share in read] == [pytest.approx(share, abs=1e-6) for share in (1 / 3, 0.25, 0.125, 1)]
    assert read[0][:2] == ("my data.npz, held out", "accuracy, clean, 6 examples")
    assert f"epsball evaluate --model {written[1]} --data 'my data.npz' --ball l2:0.5 --lo=-1.0\n" in text
    assert "| held out | 6 | 33.33% | 25.00% | 12.50% |" in text
    assert "| test | 4 | 100.00% |  |  |" in text
    assert "0: cat: a pet, 1: dog" in text
    assert "plain:label_smoothing=0.1" in text


def test_a_card_can_be_written_without_accuracies_and_options(tmp_path):
    model = build("small-mlp", (3, 8, 8), 2)
    write_model_folder(
        tmp_path / "net", model, spec="small-mlp", shape=(3, 8, 8), classes=2, training=trained(model).to_record()
    )
    text = (tmp_path / "net" / "README.md").read_text()
    assert ModelCard(text).data.eval_results is None
    assert "Plain(label_smoothing=0.0)" in text
    assert of_model(read_model_folder(tmp_path / "net")) == of_model(model)


FACTORY = """
import torch
MADE = []
def make():
    MADE.append(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1))
"""


def test_a_users_own_network_is_built_only_when_the_model_is_read(tmp_path, monkeypatch):
    (tmp_path / "folder_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    model = load("folder_nets:make", shape=(3, 8, 8), classes=2)
    result = trained(model)
    write_model_folder("net", model, spec="folder_nets:make", shape=(3, 8, 8), classes=2, training=result.to_record())
    made = sys.modules["folder_nets"].MADE
    made.clear()
    read_record("net")
    assert is_folder("net")
    assert made == []
    with pytest.raises(BadInput, match=r"names the network folder_nets:make, which is code that was not run"):
        read_model_folder("net")
    assert made == []
    assert of_model(read_model_folder("net", trust=True)) == of_model(model)
    assert made == [1]
    assert "`folder_nets:make`, which has to be importable" in (tmp_path / "net" / "README.md").read_text()
    monkeypatch.delitem(sys.modules, "folder_nets")
    (tmp_path / "folder_nets.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(
        BadInput, match=r"model\.json names the model 'folder_nets:make'.*run in the folder of folder_nets"
    ):
        read_model_folder("net", trust=True)


def change(name: str, value: object):
    def changed(path: Path) -> None:
        record = json.loads((path / "model.json").read_text())
        del record["checksum"]
        (path / "model.json").write_text(json.dumps(record | {name: value}))

    return changed


def without(name: str):
    def changed(path: Path) -> None:
        record = json.loads((path / "model.json").read_text())
        del record["checksum"]
        del record[name]
        (path / "model.json").write_text(json.dumps(record))

    return changed


def cut(name: str):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:100])


def flip(path: Path) -> None:
    raw = bytearray((path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (path / "model.safetensors").write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.json"), r"model\.json is missing or damaged"),
        (lambda path: (path / "model.json").write_text("[1]"), r"model\.json is missing or damaged"),
        (change("format", "epsball model 2"), r"must have the format 'epsball model 1'.*got 'epsball model 2'"),
        (without("sha256"), r"model\.json is damaged \(.*sha256"),
        (without("format"), r"got None"),
        (change("classes", "two"), r"model\.json is damaged"),
        (change("classes", True), r"model\.json is damaged"),
        (change("shape", [3, 0, 8]), r"model\.json is damaged"),
        (change("shape", 3), r"model\.json is damaged \(.*TypeError"),
        (change("spec", 3), r"model\.json is damaged"),
        (change("accuracies", [{"on": "test"}]), r"model\.json is damaged"),
        (change("spec", "vision-transformer"), r"got 'vision-transformer'; is it of a newer version"),
        (change("spec", "."), r"must name a network of epsball"),
        (change("spec", "preact-resnet18:width=4"), r"model\.json names the model.*`weights` must fit the model"),
        (cut("model.safetensors"), r"model\.safetensors is damaged.*--weights .*copy/model\.safetensors"),
        (flip, r"model\.safetensors is damaged"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda path: (path / "model.json").unlink(), r"no model\.json; name the network, too"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_name_of_the_file(copy: Path, damage, message: str):
    damage(copy)
    with pytest.raises(BadInput, match=message) as caught:
        read_model_folder(copy)
    assert str(copy) in str(caught.value)


def test_an_unfinished_training_is_recognised(tmp_path):
    with pytest.raises(BadInput, match=r"has no model\.json; is it the right one"):
        read_model_folder(tmp_path)
    (tmp_path / "training").mkdir()
    with pytest.raises(BadInput, match=f"`epsball train --out {tmp_path} --resume` continues"):
        read_model_folder(tmp_path)


def test_a_folder_whose_writing_was_interrupted_is_refused(written, tmp_path, monkeypatch):
    model, path = written
    result = trained(build("small-mlp", (3, 8, 8), 2))

    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    options = {"spec": "preact-resnet18:width=2", "shape": (3, 8, 8), "classes": 2, "training": result.to_record()}
    monkeypatch.setattr(folder, "markdown", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_model_folder(tmp_path / "net", model, **options)
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == ["model.safetensors"]
    again = Path(shutil.copytree(path, tmp_path / "again"))
    other = build("preact-resnet18:width=2", (3, 8, 8), 2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        write_model_folder(again, other, **options)
    with pytest.raises(BadInput, match="of another training"):  # new weights beside the old record
        read_model_folder(again)


def test_other_weights_and_examples_of_another_shape_are_refused(written, tmp_path):
    _, path = written
    save_weights(build("preact-resnet18:width=2", (3, 8, 8), 2), tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="`weights` must be left out with the folder"):
        load(str(path), shape=(3, 8, 8), classes=2, weights=tmp_path / "other.safetensors")
    with pytest.raises(
        BadInput, match=r"shape \(3, 8, 8\) .* got \(1, 8, 8\).*--model preact-resnet18:width=2 --weights"
    ):
        load(str(path), shape=(1, 8, 8), classes=2)
    assert load(str(path), shape=(3, 8, 8), classes=7)[-1].out_features == 2  # its own classes, not the data's


def test_a_built_in_name_means_the_built_in_and_similar_folders_are_suggested(written, tmp_path, monkeypatch):
    _, path = written
    monkeypatch.chdir(tmp_path)
    Path("small-mlp").mkdir()
    assert not is_folder("small-mlp")
    assert not is_folder("")
    assert is_folder("./small-mlp")
    assert is_folder("net", within=path.parent)
    assert not is_folder("net")
    assert load("small-mlp", shape=(4,), classes=2)[-1].out_features == 2
    shutil.copytree(path, tmp_path / "runs" / "robust")
    for wrong, similar in (("runs/robusd", "runs/robust"), ("small-mpl", "small-mlp")):
        with pytest.raises(BadInput, match=f"a file or a folder.*did you mean '{similar}'"):
            load(wrong, shape=(3, 8, 8), classes=2)


def test_infinite_and_nan_values_are_written_as_valid_json(tmp_path):
    model = build("small-mlp", (3, 8, 8), 2)
    result = trained(model)
    result = replace(result, epochs=({"loss": float("nan")},))
    write_model_folder(
        tmp_path / "net",
        model,
        spec="small-mlp",
        shape=(3, 8, 8),
        classes=2,
        training=result.to_record(),
        options={"hi": float("inf")},
    )
    text = (tmp_path / "net" / "model.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert read_record(tmp_path / "net").options == {"hi": "inf"}

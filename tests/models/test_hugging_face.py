"""The door for models of transformers: tests make models with transformers itself, and it says what is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_models import NAMES, PROCESSORS, changed, model_of, pictures, saved
from safetensors.torch import load_file, save_file
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.load import load_data
from epsball.models.door import Asked, Loaded
from epsball.models.frozen import frozen
from epsball.models.hugging_face import open_hugging_face
from epsball.report.html import of_run
from epsball.report.run import Run

transformers = pytest.importorskip("transformers")


def opened(folder: Path | str, **more: Any) -> Loaded:
    return open_hugging_face(Asked(spec=str(folder), **more))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("hub")
    return {kind: saved(place / kind, kind) for kind in PROCESSORS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images"))


def source(folder: Path) -> tuple[nn.Module, Any]:
    """The model and the processor as transformers itself opens them."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    return model, transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("kind", PROCESSORS)
def test_logits_of_files_are_those_of_transformers_own_processor_and_model(kind, folders, images):
    loaded = opened(folders[kind])
    data = load_data(images, preparation=loaded.preparation)
    with torch.no_grad():
        found = torch.cat([loaded.model(one[None]) for one in data.x])  # a batch rounds otherwise
        model, processor = source(folders[kind])
        files = [file for name in NAMES for file in sorted((images / "test" / name).iterdir())]
        read = [transformers.image_utils.load_image(str(file)) for file in files]
        expected = torch.cat([model(**processor(images=one, return_tensors="pt")).logits for one in read])
    assert data.shape == loaded.shape
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gradients_with_respect_to_pixels_are_finite_differences(kind, folders):
    model = opened(folders[kind]).model.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *((16, 16) if kind == "vit" else (24, 24)), generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    with frozen(model):
        gradient = torch.autograd.grad((model(x.requires_grad_()) * weights).sum(), x)[0]
        for seed in range(3):
            way = torch.randn(x.shape, generator=generator.manual_seed(seed), dtype=torch.float64)
            with torch.no_grad():
                sides = [(model(x + side * 1e-6 * way) * weights).sum().item() for side in (1, -1)]
            slope = (gradient * way).sum().item()
            assert abs((sides[0] - sides[1]) / 2e-6 - slope) < 1e-5 * abs(slope) + 1e-7


@pytest.mark.parametrize("rows", [[0, 1, 5, 6], pytest.param(range(9), marks=pytest.mark.nightly)])
def test_fast_finds_what_it_finds_on_the_original_with_normalised_data(rows, folders, images):
    loaded = opened(folders["vit"])
    data = load_data(images, preparation=loaded.preparation).rows(torch.tensor(rows))
    original, processor = source(folders["vit"])
    assert (processor.image_mean, processor.image_std) == ((0.5,) * 3, (0.5,) * 3)
    normalised = replace(data, x=2 * data.x - 1, lo=-1.0, scale=1.0)
    plain: dict[str, Any] = {"diagnose": 0, "convergence": 0}
    found = eb.evaluate(loaded.model, data, eb.Linf(eps=1 / 255, lo=0, hi=1), "fast", **plain)
    ball = eb.Linf(eps=2 / 255, lo=-1, hi=1)
    other = eb.evaluate(lambda x: original(x).logits, normalised, ball, "fast", **plain)
    columns = ["id", "label", "clean_prediction", "status", "attack", "forwards"]
    left, right = (one.records.select(columns).to_pylist() for one in (found, other))
    assert len({row["status"] for row in left}) > 1
    assert left == right


def test_a_missing_class_folder_shifts_no_label(folders, tmp_path):
    model = eb.load(str(folders["resnet"]))
    names = ("cat", "emu")
    data = load_data(pictures(tmp_path / "two", names), preparation=model.preparation)
    assert (data.label_names, set(data.y.tolist())) == (names, {0, 1})
    found = eb.evaluate(model, data, eb.Linf(eps=1 / 255, lo=0, hi=1), "fgsm", diagnose=0, run_dir=tmp_path / "run")
    assert set(found.records["label"].to_pylist()) == {0, 2}
    assert found.config["data"]["class_names"] == list(NAMES)
    assert "resized to 27 (bicubic)" in found.config["data"]["name"]
    page = of_run(Run.load(tmp_path / "run"))
    assert "emu" in page
    assert "resized to 27 (bicubic)" in page


def test_classes_without_names_have_none_and_equal_names_are_told_apart(tmp_path):
    saved(tmp_path)
    changed(tmp_path, "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert opened(tmp_path).label_names is None
    changed(tmp_path, "config.json", id2label={"0": "crane", "1": "dog", "2": "crane"})
    loaded = opened(tmp_path)
    assert loaded.label_names == ("crane (0)", "dog", "crane (2)")
    assert any("same name" in note for note in loaded.notes)


def test_weights_in_half_precision_and_in_several_files_are_used_in_float32(tmp_path):
    model = model_of("vit").bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["vit"]))
    loaded = opened(tmp_path)
    assert any("bfloat16" in note for note in loaded.notes)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model.float()(2 * x - 1).logits, rtol=1e-5, atol=1e-5)


def test_grey_models_take_grey_images(tmp_path):
    saved(tmp_path / "model", processor=PROCESSORS["vit"] | {"image_mean": [0.4], "image_std": [0.2]}, num_channels=1)
    loaded = opened(tmp_path / "model")
    assert loaded.shape == (1, 16, 16)
    data = load_data(pictures(tmp_path / "images"), preparation=loaded.preparation)
    assert loaded.model(data.x).shape == (18, 3)


def test_what_is_read_is_said_and_the_librarys_own_settings_stay(folders, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loaded = opened(folders["bgr"])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
    assert not any(module.training for module in loaded.model.modules())
    assert "the centre of 32x32" in loaded.notes[1]
    assert "BGR" in loaded.notes[1]


def without(folder: Path, *names: str) -> Path:
    """The folder, with weights that lack some tensors."""
    file = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if not key.startswith(names)}, file)
    return folder


def emptied(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "several classes an image": (
        lambda folder: changed(folder, "config.json", problem_type="multi_label_classification"),
        "one class",
    ),
    "a regression": (lambda folder: changed(folder, "config.json", problem_type="regression"), "regression"),
    "one output": (lambda folder: changed(folder, "config.json", id2label={"0": "a"}), "regression"),
    "a language model": (lambda folder: changed(folder, "config.json", model_type="bert"), "the type 'bert'"),
    "no type": (lambda folder: changed(folder, "config.json", model_type=None), "the type None"),
    "timm's in a wrapping": (lambda folder: changed(folder, "config.json", model_type="timm_wrapper"), "timm's"),
    "a classifier that was never trained": (lambda folder: without(folder, "classifier"), "classifier.bias"),
    "other weights": (lambda folder: changed(folder, "config.json", hidden_size=32), "must fit its weights"),
    "fewer classes": (lambda folder: changed(folder, "config.json", id2label={"0": "a", "1": "b"}), "must fit"),
    "no processor": (lambda folder: emptied(folder, "preprocessor_config.json"), "no preprocessor_config.json"),
    "no weights": (lambda folder: emptied(folder, "model.safetensors"), "has no weights"),
    "no configuration": (lambda folder: emptied(folder, "config.json"), "which has no config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_image_classifier_is_refused(name, folders, tmp_path):
    shutil.copytree(folders["vit"], tmp_path / "model")
    spoil, why = REFUSED[name]
    spoil(tmp_path / "model")
    with pytest.raises(BadInput, match=re.escape(why)) as refused:
        opened(tmp_path / "model")
    assert "\n" not in str(refused.value)


def test_a_pickle_is_refused_and_the_conversion_that_is_named_works(folders, tmp_path):
    shutil.copytree(folders["vit"], tmp_path / "model")
    file = emptied(tmp_path / "model") / "model.safetensors"
    torch.save(load_file(file), tmp_path / "model" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(BadInput, match=r"pytorch_model\.bin") as refused:
        opened(tmp_path / "model")
    line = re.search("`(AutoModel.*)`", str(refused.value))
    assert line is not None
    eval(line[1], {"AutoModelForImageClassification": transformers.AutoModelForImageClassification})
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(opened(tmp_path / "model").model(x), opened(folders["vit"]).model(x))


def test_a_name_that_cannot_be_fetched_is_one_sentence_that_says_how_to_get_it():
    with pytest.raises(BadInput, match="hf download org/name --local-dir FOLDER") as refused:
        opened("hf:org/name")
    assert "\n" not in str(refused.value)
    for name in ("hf:./nowhere", "hf:/nowhere/at/all", "hf:justname", "hf:"):
        with pytest.raises(BadInput, match="must be a folder, or org/name"):
            opened(name)


def test_a_misspelt_folder_is_guessed(folders):
    with pytest.raises(BadInput, match=r"did you mean '.*/resnet'"):
        opened(f"hf:{folders['resnet'].parent}/resnett")


def test_weights_beside_a_folder_are_refused(folders):
    with pytest.raises(BadInput, match="must be left out"):
        opened(folders["vit"], weights=Path("w.pt"))

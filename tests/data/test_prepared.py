"""Images come as a model wants them: prepared in files, looked at in arrays, and the data say what was done."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hub_models import picture, pictures
from PIL import Image

from epsball.common.errors import BadInput
from epsball.data.collected import examples_of
from epsball.data.load import load_data
from epsball.data.prepared import check_prepared, prepared_pixels
from epsball.models.preparation import Preparation


def _of_one_size(folder: Path) -> None:
    """Two images of 16x16, RGB, of two classes."""
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        picture((16, 16)).save(folder / "test" / name / "0.png")


def test_arrays_pass_in_the_right_shape_and_are_prepared_by_hand_otherwise(tmp_path):
    preparation = Preparation(resize=(16, 16), channels=3)
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), np.uint8)
    np.savez(tmp_path / "raw.npz", x=x, y=np.arange(4) % 3)
    with pytest.raises(BadInput, match=r"prepared_pixels\(x, preparation\)"):
        load_data(tmp_path / "raw.npz", preparation=preparation)
    np.savez(tmp_path / "ready.npz", x=prepared_pixels(x, preparation), y=np.arange(4) % 3)
    assert load_data(tmp_path / "ready.npz", preparation=preparation).shape == (3, 16, 16)
    check_prepared((3, 16, 16), preparation)
    with pytest.raises(BadInput, match="28"):
        load_data("digits", preparation=Preparation(resize=(28, 28)))
    for wrong in (x.astype(np.float32), x[:, 0], np.repeat(x, 2, 1)):
        with pytest.raises(BadInput, match="uint8 of shape"):
            prepared_pixels(wrong, preparation)


def test_what_was_prepared_is_in_the_name_of_the_data_and_what_was_not_is_not(tmp_path):
    images = pictures(tmp_path / "images")
    preparation = Preparation(resize=(16, 16), channels=3)
    assert load_data(images, preparation=preparation).name == f"{images} (RGB, resized to 16x16 (bilinear))"
    _of_one_size(tmp_path / "ready")
    assert load_data(tmp_path / "ready", preparation=preparation).name == str(tmp_path / "ready")


def test_a_data_set_of_the_hubs_library_is_prepared_likewise(tmp_path):
    images, preparation = pictures(tmp_path), Preparation(resize=(16, 16), channels=3)
    data = datasets.load_dataset(str(images), split="test")
    found, expected = examples_of(data, preparation), load_data(images, preparation=preparation)
    assert torch.equal(found.x, expected.x)
    assert found.name.endswith("(RGB, resized to 16x16 (bilinear))")


def test_an_image_that_is_resized_and_cropped_back_to_its_size_counts_as_prepared(tmp_path):
    _of_one_size(tmp_path)
    data = load_data(tmp_path, preparation=Preparation(resize=18, crop=(16, 16), channels=3))
    assert data.name == f"{tmp_path} (RGB, the shorter side resized to 18 (bilinear), the centre of 16x16)"


def test_mixed_sizes_are_refused_without_a_size_to_bring_them_to(tmp_path):
    images = pictures(tmp_path)
    for preparation in (None, Preparation(resize=16)):
        with pytest.raises(BadInput, match="images of one size"):
            load_data(images, preparation=preparation)


@pytest.mark.parametrize("centre", ["floor", "even"])
def test_a_centre_is_in_the_middle_and_padding_is_black(centre):
    row = np.arange(1, 8, dtype=np.uint8)
    image = Image.fromarray(np.repeat(row[None], 3, 0))
    cut = [np.asarray(Preparation(crop=(3, width), centre=centre).applied(image))[0].tolist() for width in (3, 4, 8)]
    assert cut == [
        [3, 4, 5],
        [2, 3, 4, 5] if centre == "floor" else [3, 4, 5, 6],
        {"floor": [0, *row.tolist()], "even": [*row.tolist(), 0]}[centre],
    ]


def test_a_long_strip_is_not_resized_beyond_what_an_image_may_have():
    with pytest.raises(BadInput, match="16 million pixels"):
        Preparation(resize=2000).applied(Image.new("L", (40_000, 2)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": 0},
        {"resize": 2049},
        {"resize": True},
        {"crop": (3,)},
        {"crop": (3, 2.5)},
        {"crop": 3},
        {"interpolation": "cubic"},
        {"channels": 4},
        {"centre": "top"},
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(BadInput):
        Preparation(**wrong)

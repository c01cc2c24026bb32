"""What timm itself says of its door, in a process of its own: `python tests/timm_checks.py FOLDER` prints JSON.

Each function `check_...` is a test, which `tests/models/test_timm.py` reports: it needs torchvision, or its stand-in.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import MODES, NAMES, SIZES, picture, pictures
from safetensors.torch import save_file

MODELS = ("test_vit.r160_in1k", "test_resnet.r160_in1k", "test_efficientnet")
CLASSES = len(NAMES)


def made(name: str, **more: Any) -> Any:
    """A model of timm's with weights that tell images apart, and the statistics of some."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **more)
    with torch.no_grad():
        model.get_classifier().weight.normal_(0, 0.3)
        for _ in range(8):
            model.train()(torch.rand(4, 3, 160, 160))
    return model.eval()


def opened(name: str, weights: Path | None, **more: Any) -> Any:
    from epsball.models.door import Asked
    from epsball.models.timm_model import open_timm

    return open_timm(Asked(spec=f"timm:{name}", weights=weights, **more))


def saved(name: str, folder: Path) -> tuple[Any, Path]:
    """Such a model, and the file with its weights."""
    model, file = made(name), folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model, file


def refused(says: str, call: Callable[[], Any]) -> None:
    from epsball.common.errors import BadInput

    with pytest.raises(BadInput) as refusal:
        call()
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def check_logits_of_files_are_those_of_timms_own_transform_and_model(folder: Path) -> None:
    import timm.data

    from epsball.data.load import load_data

    images = pictures(folder / "images")
    files = [file for name in NAMES for file in sorted((images / "test" / name).iterdir())]
    for name in MODELS:
        model, weights = saved(name, folder)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        loaded = opened(name, weights)
        data = load_data(images, preparation=loaded.preparation)
        assert data.shape == loaded.shape == (3, 160, 160)
        with torch.no_grad():
            read = [picture_of(file) for file in files]
            expected = torch.cat([model(transform(one)[None]) for one in read])
            found = torch.cat([loaded.model(one[None]) for one in data.x])
        assert expected.std(0).min() > 1e-2
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def picture_of(file: Path) -> Any:
    from PIL import Image

    return Image.open(file).convert("RGB")


def check_pixels_are_those_of_timms_transform_in_every_crop_mode(folder: Path) -> None:
    from timm.data import create_transform

    from epsball.models.timm_model import _preparation

    modes = MODES[: len(SIZES)]
    images = [picture(size, mode).convert("RGB") for size, mode in zip(SIZES, modes, strict=True)]
    kinds = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
    for number, share in enumerate((0.875, 0.9, 0.95, 1.0, 0.77, 0.5, 1.2)):
        for mode in ("center", "squash", None):
            for side in (16, 21):
                data = {"input_size": (3, side, side), "crop_pct": share, "crop_mode": mode, "mean": (0.5,) * 3}
                data |= {"interpolation": kinds[number % len(kinds)], "std": (0.5,) * 3}
                transform = create_transform(**data, is_training=False, normalize=False)
                preparation = _preparation("a model", data)
                for image in images:
                    ready = np.array(preparation.applied(image)).transpose(2, 0, 1)
                    assert np.array_equal(ready, transform(image).numpy()), (data, image.size)


def check_gradients_are_finite_differences(folder: Path) -> None:
    from epsball.models.frozen import frozen

    model = opened(MODELS[0], saved(MODELS[0], folder)[1]).model.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 160, 160, generator=generator, dtype=torch.float64)
    weights, way = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, CLASSES), x.shape))
    with frozen(model):
        slope = (torch.autograd.grad((model(x.requires_grad_()) * weights).sum(), x)[0] * way).sum().item()
        with torch.no_grad():
            sides = [(model(x + side * 1e-6 * way) * weights).sum().item() for side in (1, -1)]
    assert abs((sides[0] - sides[1]) / 2e-6 - slope) < 1e-5 * abs(slope) + 1e-7


def check_fast_finds_what_it_finds_on_the_original_with_normalised_data(folder: Path) -> None:
    import epsball as eb

    model, weights = saved("test_resnet.r160_in1k", folder)
    loaded = opened("test_resnet.r160_in1k", weights)
    mean, std = (torch.tensor(model.pretrained_cfg[part])[:, None, None] for part in ("mean", "std"))
    x = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    y = loaded.model(x).argmax(1)
    y[0] = (y[0] + 1) % CLASSES
    data = eb.data.from_arrays(x, y, lo=0, hi=1)
    plain: dict[str, Any] = {"diagnose": 0, "convergence": 0}
    found = eb.evaluate(loaded.model, data, eb.Linf(eps=8 / 255, lo=0, hi=1), "fast", **plain)
    # by hand, and not in normalised data: their ball would have a radius for each channel
    other = eb.evaluate(lambda x: model((x - mean) / std), data, eb.Linf(eps=8 / 255, lo=0, hi=1), "fast", **plain)
    columns = ["id", "label", "clean_prediction", "status", "attack", "forwards"]
    assert found.records.select(columns).to_pylist() == other.records.select(columns).to_pylist()
    assert len(set(found.records["status"].to_pylist())) > 1


def check_the_number_of_classes_is_what_the_weights_or_the_user_say(folder: Path) -> None:
    name = MODELS[1]
    model, weights = saved(name, folder)
    assert opened(name, weights).model[1].num_classes == CLASSES
    torch.save(model.state_dict(), folder / "w.pt")
    assert opened(name, folder / "w.pt", classes=CLASSES).model[1].num_classes == CLASSES
    refused("instead of (1000,", lambda: opened(name, folder / "w.pt"))
    refused("instead of (4,", lambda: opened(name, weights, classes=4))


def pickled(folder: Path) -> Path:
    """A pickle that makes a file `ran` in that folder when it is read."""
    file = folder / "w.pth"
    torch.save({"weight": Runs(str(folder / "ran"))}, file)
    return file


class Runs:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.file),)


def check_what_cannot_be_opened_is_refused(folder: Path) -> None:
    import timm

    refused("did you mean timm:test_resnet?", lambda: opened("test_resnett", None))
    refused("one of r160_in1k, got 'nonsense'", lambda: opened("test_resnet.nonsense", None))
    refused("name it with --weights", lambda: opened("test_resnet", None))
    bare = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    refused("name a file of them with --weights", lambda: opened(bare, None))
    refused("has no classes", lambda: opened("vit_small_patch14_dinov2.lvd142m", None))
    _, weights = saved("test_resnet", folder)
    refused("run", lambda: opened("test_resnet", pickled(folder)))
    assert not (folder / "ran").exists()
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:-8])
    refused("damaged.safetensors", lambda: opened("test_resnet", damaged))


def check_label_names_are_imagenets_for_pretrained_weights_alone(folder: Path) -> None:
    import timm

    from epsball.models.timm_model import _label_names

    assert opened(MODELS[0], saved(MODELS[0], folder)[1]).label_names is None
    names = _label_names(timm, timm.create_model(MODELS[0]))
    assert names is not None
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


def check_the_notes_say_what_was_split(folder: Path) -> None:
    loaded = opened("test_vit", saved("test_vit", folder)[1])
    assert "so that eps is in pixels of [0, 1]" in loaded.notes[1]
    assert str(loaded.preparation) in loaded.notes[1]


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


def main(folder: Path) -> None:
    import datasets  # looks for torchvision by its spec, before there is a stand-in

    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    try:
        import torchvision  # noqa: F401
    except Exception:  # none, or one for another torch
        from stand_in_torchvision import install

        for name in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        install()
    for name, check in CHECKS.items():
        place = folder / name
        place.mkdir()
        found, start = None, time.process_time()
        try:
            check(place)
        except BaseException:
            found = traceback.format_exc()
        print(f"{name}: {time.process_time() - start:.1f} s", file=sys.stderr)
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

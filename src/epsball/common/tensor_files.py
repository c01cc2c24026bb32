"""Tensors by name in a `.safetensors` file, which holds no code, with its own checksum."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from epsball.common.atomic_files import write_whole
from epsball.common.checksums import UNSIGNED, check_signed, sign
from epsball.common.limits import check_file

ORDERED = f'{{"format":"pt","checksum":"{UNSIGNED}"}}'.encode()
OTHERWISE = f'{{"checksum":"{UNSIGNED}","format":"pt"}}'.encode()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors with a checksum, the whole file or none. Those that share memory are written once per name."""
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def write(draft: Path) -> None:
        save_file(own, draft, metadata={"format": "pt", "checksum": UNSIGNED})
        with open(draft, "r+b") as file:  # safetensors writes the metadata in any order: the same tensors, other bytes
            head = file.read(len(ORDERED) + 64)
            file.seek(0)
            file.write(head.replace(OTHERWISE, ORDERED))
        sign(draft)

    write_whole(path, write)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises `ValueError` (a `BadInput` or not) or `OSError` for what is no such file."""
    check_file(path)
    check_signed(path)
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # whatever the reader raises for a header that is not one
        raise ValueError(str(error)) from error

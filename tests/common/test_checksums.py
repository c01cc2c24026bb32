"""A file with its own checksum: no flipped bit passes, the checksum's own bits included."""

from __future__ import annotations

from pathlib import Path

import pytest

from epsball.common.checksums import check_signed
from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_json(tmp_path / "some.json", {"x": 1, "name": "a"})
    return tmp_path / "some.json"


def test_every_flipped_bit_is_seen(file: Path) -> None:
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(BadInput):
            check_signed(file)
    file.write_bytes(whole)
    assert read_json(file, "copy it again") == {"x": 1, "name": "a"}


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"checksum": "none", "sha256": "0f"}')
    check_signed(tmp_path / "old.json")

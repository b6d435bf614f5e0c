"""Sealed files: what was written comes back, and nothing else does."""

import contextlib
import json
import math
import os
from pathlib import Path

import pytest
from mappings import config_from_mapping

from fastwi.config.read import read_request
from fastwi.config.write import to_yaml
from fastwi.errors import CheckpointError, ConfigError
from fastwi.sealed import (
    file_sha256,
    is_sealed,
    open_directory,
    read_sealed,
    seal_directory,
    sealed_yaml,
    sha256_of,
    write_sealed,
)

VALUE = {
    "name": "é",
    "numbers": [1, 2.5, 1e-300],
    "nested": {"yes": True, "none": None},
    "odd": [math.nan, -math.inf, math.inf],
}
READ = VALUE | {"odd": ["NaN", "-Infinity", "Infinity"]}


def test_what_was_written_comes_back_whatever_bit_is_flipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    path.write_text(json.dumps(json.loads(whole), sort_keys=True))  # the values are sealed, not the blanks
    assert read_sealed(path, "again") == READ
    refused = 0
    for place in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            try:  # what passes is another blank, or another way to write the same value
                assert read_sealed(path, "again") == READ
            except CheckpointError:
                refused += 1
    assert refused > 7 * len(whole)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"a": 1}', b"[" * 100_000, b"\xff", None])
def test_another_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json: .*; again"):
        read_sealed(path, "again")


def test_a_directory_is_what_its_manifest_says(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.svg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode() * 300_000)
    assert file_sha256(tmp_path / "a.parquet") == sha256_of((tmp_path / "a.parquet").read_bytes())
    seal_directory(tmp_path, {"x": 1}, os.listdir(tmp_path))
    (tmp_path / "notes.txt").write_text("nothing that is read again")
    assert open_directory(tmp_path, "again") == {"x": 1}
    seal_directory(tmp_path, json.loads((tmp_path / "manifest.json").read_text()), os.listdir(tmp_path))
    assert open_directory(tmp_path, "again") == {"x": 1}
    seal_directory(tmp_path, {}, ["a.parquet", "notes.txt"])
    (tmp_path / "b.svg").write_text("mine")  # not one of those that were written
    assert open_directory(tmp_path, "again") == {}
    for change in (lambda path: path.write_bytes(b"b.parquet"), Path.unlink):
        change(tmp_path / "a.parquet")
        with pytest.raises(CheckpointError, match=r"a\.parquet: .*; again"):
            open_directory(tmp_path, "again")


def test_a_flipped_bit_of_a_configuration_that_was_written(tmp_path: Path) -> None:
    """Refused, or the same configuration: as `--config` of a run, and of a sweep."""
    config = config_from_mapping({"experiment": {"k": 3}, "optimizer": {"learning_rate": 0.05}})
    path = tmp_path / "config.yaml"
    whole = sealed_yaml(to_yaml(config)).encode()
    assert is_sealed(whole.decode())
    refused = 0
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        refused += 1
        with contextlib.suppress(ConfigError):
            assert read_request(["--config", str(path)], "fastwi.train").config == config
            refused -= 1
    assert refused > 0.9 * len(whole) / 3
    path.write_bytes(whole)
    assert read_request(["--config", str(path)], "fastwi.train").config == config
    path.write_bytes(whole.replace(b"  k: 3\n", b"  k: 4\n"))
    with pytest.raises(ConfigError, match=r"config\.yaml.*last line"):
        read_request(["--config", str(path)], "fastwi.train")
    path.write_text(path.read_text().rpartition("\n#")[0])
    assert read_request(["--config", str(path)], "fastwi.train").config.experiment.k == 4

"""A population on disk: to the bit and back, one member alone, and every kind of damage."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_networks import SmallNet, TiedNet, trained
from torch import nn

from fastwi.errors import CheckpointError
from fastwi.population import Layout, Population
from fastwi.population.checkpoint import load


def population(members: int = 3) -> Population:
    """Members that differ, with infinities, subnormal numbers and NaNs of two payloads among their values."""
    made = Population.from_modules([trained(SmallNet(), 40 + m) for m in range(members)])
    made.parameters(0)["head.bias"][:3] = torch.tensor([float("inf"), -0.0, 1e-42])
    payloads = torch.tensor([0x7FC00001, 0x7FABCDEF], dtype=torch.int32).view(torch.float32)
    made.parameters(1)["head.bias"][:2] = payloads
    made.momentum(2)["scale"].fill_(-3.0)
    made.buffers(1)["norm.num_batches_tracked"].fill_(2**62 + 1)
    return made


def same_bits(mine: Population, theirs: Population) -> bool:
    pairs = zip(mine._matrices(), theirs._matrices(), strict=True)
    return mine.layout == theirs.layout and all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "population.safetensors"
    population().save(path)
    return path


def rewritten(path: Path, change, order: list[str] | None = None) -> Path:
    """The file with another header, and its tensors in another order."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), b""
    for name in order or ():
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [len(data), len(data) + end - start]
        data += content[8 + length + start : 8 + length + end]
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (data or content[8 + length :]))
    return path


def assert_refused(path: Path, *words: str, layout: Layout | None = None, member: int | None = None) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load(path, layout, member=member)
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


def test_a_population_and_each_member_come_back_to_the_bit(saved):
    loaded = Population.load(saved, Layout.of(SmallNet()), device="cpu")
    assert same_bits(loaded, population())
    loaded.weights_MP.zero_()  # its own memory, not the file's
    for m in range(3):
        assert same_bits(load(saved, member=m), population()[m])
    order = ["weights_MP", "counters_MB", "statistics_MQ", "checksum_M", "momentum_MP"]
    rewritten(saved, lambda header: None, order)
    assert same_bits(load(saved), population())
    assert same_bits(load(saved, member=1), population()[1])


@pytest.mark.parametrize("build", [TiedNet, lambda: nn.Linear(2, 3), nn.ReLU], ids=["tied", "no buffers", "nothing"])
def test_other_networks_and_strided_selections(tmp_path, build):
    made = Population.from_modules([trained(build(), m) for m in range(4)])[1:4:2]
    made.save(tmp_path / "new" / "file")
    assert same_bits(Population.load(tmp_path / "new" / "file"), made)


def test_a_failed_save_leaves_the_earlier_file(saved, monkeypatch):
    def fails(_: Population) -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("fastwi.population.checkpoint.pieces", fails)
    with pytest.raises(KeyboardInterrupt):
        Population.from_modules([SmallNet()]).save(saved)
    assert same_bits(Population.load(saved), population())
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_not_there_is_refused(saved, tmp_path):
    assert_refused(tmp_path / "absent", "no such file")
    assert_refused(tmp_path, "no such file")
    for member in (3, -1):
        assert_refused(saved, f"no member {member}; it has members 0 to 2", member=member)
    assert_refused(saved, "'stem.weight'", "(5, 3, 3, 3)", "(6, 3, 3, 3)", layout=Layout.of(SmallNet(6)))


def test_foreign_and_truncated_files_are_refused(saved, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "foreign"
    for content in (b"", b"PK\x03\x04 a zip file, such as torch.save writes", b"\xff" * 64):
        path.write_bytes(content)
        assert_refused(path, "safetensors")
    save_file(trained(SmallNet(), 1).state_dict(), path)
    assert_refused(path, "not a population", "load_state_dict")
    for size in (1, len(whole) // 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path)
    path.write_bytes(whole + b"\0")
    assert_refused(path, "damaged")


def test_damage_to_one_member_is_seen_and_leaves_the_others_readable(saved):
    content = bytearray(saved.read_bytes())
    row = population().weights_MP[1].numpy().tobytes()
    content[content.find(row) + 20] ^= 1
    saved.write_bytes(content)
    for member in (None, 1):
        assert_refused(saved, "member 1", "checksum", member=member)
    assert same_bits(load(saved, member=0), population()[0])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(saved, data):
    content = saved.read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.integers(0, header_end - 1) | st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = saved.with_name("changed")
    path.write_bytes(changed)
    try:
        loaded = Population.load(path)
    except CheckpointError:
        return
    assert same_bits(loaded, population())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_file_that_the_system_will_not_grow_is_refused_in_one_line(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the library underneath reports both as its own error."""
    script = (
        "import resource, signal, sys, torch\n"
        "from torch import nn\n"
        "from fastwi.errors import UserError\n"
        "from fastwi.population import Population\n"
        "population = Population.from_modules([nn.Linear(300, 300)])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    population.save(sys.argv[1])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "population.safetensors"
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 1
    assert "population.safetensors" in run.stdout
    assert list(tmp_path.iterdir()) == []


def counted(network: nn.Module, members: int) -> Population:
    made = Population.from_modules([network] * members)
    for place, matrix in enumerate(made._matrices()):
        matrix.copy_((torch.arange(matrix.numel()).reshape(matrix.shape) % 97 + place).to(matrix.dtype))
    return made


def test_the_bytes_of_a_file_are_those_that_safetensors_wrote_before(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5, bias=False))
    digests = {
        counted(network, 1): "26fc8ab921eaffaaec909738c3616eff077245f82ea985009d699c9c3bd5277a",
        counted(network, 3): "85815c560a6accbcb0044d20d3b84a0cbc64d985602664345da7e228c113ad31",
        counted(nn.ReLU(), 1): "e3da526457d565b687b6fac2a0f4afb94e9b9559ca92aa16467574b1d5820cd9",
    }
    for made, digest in digests.items():
        made.save(tmp_path / "file")
        content = (tmp_path / "file").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        for name, tensor in safetensors.torch.load(content).items():
            assert name == "checksum_M" or torch.equal(tensor, getattr(made, name))


def with_layout(change):
    """A header whose layout is changed and matches its own fingerprint again."""

    def changed(header):
        content = json.loads(header["__metadata__"]["layout"])
        change(content)
        packed = Layout._pack(content["parameters"], content["statistics"], content["counters"], content["keys"])
        header["__metadata__"]["layout"] = json.dumps({**content, "fingerprint": packed.fingerprint})

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h["weights_MP"]["shape"].__setitem__(0, True), "weights_MP"),
        (lambda h: h["weights_MP"]["shape"].__setitem__(0, 10**4000), ""),
        (lambda h: h["weights_MP"].__setitem__("shape", []), "weights_MP"),
        (lambda h: h["weights_MP"].__setitem__("shape", [3.0, *h["weights_MP"]["shape"][1:]]), "weights_MP"),
        (lambda h: h["statistics_MQ"]["shape"].__setitem__(0, 2), "statistics_MQ"),
        (lambda h: h["statistics_MQ"]["shape"].__setitem__(0, 3.0), "statistics_MQ"),
        (lambda h: h["checksum_M"]["data_offsets"].__setitem__(0, False), "checksum_M"),
        (lambda h: h["weights_MP"].__setitem__("dtype", "F64"), "weights_MP"),
        (lambda h: h["momentum_MP"].__setitem__("data_offsets", h["weights_MP"]["data_offsets"]), ""),
        (lambda h: h["momentum_MP"].__setitem__("data_offsets", [None, "x"]), ""),
        (lambda h: h.__setitem__("momentum_MP", []), ""),
        (lambda h: h.pop("momentum_MP"), "momentum_MP"),
        (lambda h: h.__setitem__("__metadata__", []), ""),
        (lambda h: h["__metadata__"].__setitem__("version", "2"), "version '2'"),
        (lambda h: h["__metadata__"].__setitem__("layout", {}), ""),
        (lambda h: h["__metadata__"].__setitem__("layout", "{}"), "damaged layout"),
        (lambda h: h["checksum_M"].__setitem__("shape", json.loads("[" * 600 + "]" * 600)), ""),
        (with_layout(lambda c: c["keys"].append(["head.more", "none"])), "not those of its tensors"),
        (with_layout(lambda c: c["keys"].append(c["keys"][0])), "not those of its tensors"),
        (with_layout(lambda c: c["parameters"][0].__setitem__(0, c["parameters"][1][0])), "two of its tensors"),
        (with_layout(lambda c: c["statistics"][0].__setitem__(1, [-1, -4])), "impossible shape"),
        (with_layout(lambda c: c["statistics"][0].__setitem__(1, [1] * 65)), "impossible shape"),
        (with_layout(lambda c: c["statistics"][0].__setitem__(1, [2**40, 2**40])), "impossible shape"),
    ],
)
def test_headers_that_no_population_has(saved, change, words):
    assert_refused(rewritten(saved, change), words)

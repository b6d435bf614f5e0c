"""A population on disk: to the bit and back, one member alone, and every kind of damage."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from small_networks import SmallNet, TiedNet, trained
from torch import nn

from fastwi.errors import CheckpointError
from fastwi.population import Layout, Population


def population(members: int = 3) -> Population:
    """Members that differ, with infinities, subnormal numbers and NaNs of two payloads among their values."""
    made = Population.from_modules([trained(SmallNet(), 40 + m) for m in range(members)])
    made.parameters(0)["head.bias"][:3] = torch.tensor([float("inf"), -0.0, 1e-42])
    payloads = torch.tensor([0x7FC00001, 0x7FABCDEF], dtype=torch.int32).view(torch.float32)
    made.parameters(1)["head.bias"][:2] = payloads
    made.momentum_MP.copy_(made.weights_MP * -3)
    made.buffers(1)["norm.num_batches_tracked"].fill_(2**62 + 1)
    return made


def same_bits(mine: Population, theirs: Population) -> bool:
    pairs = zip(mine.matrices, theirs.matrices, strict=True)
    return mine.layout == theirs.layout and all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "population.safetensors"
    population().save(path)
    return path


def assert_refused(path: Path, *words: str, layout: Layout | None = None, member: int | None = None) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Population.load(path, layout, member=member)
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


def test_a_population_and_each_member_come_back_to_the_bit(saved):
    loaded = Population.load(saved, Layout.of(SmallNet()), device="cpu")
    assert same_bits(loaded, population())
    loaded.weights_MP.zero_()  # its own memory, not the file's
    for m in range(3):
        assert same_bits(Population.load(saved, member=m), population()[m])


def test_torchs_default_device_decides_nothing(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    with torch.device("meta"):
        loaded = Population.load(saved)
        loaded.save(again)
    assert same_bits(loaded, population())
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("build", [TiedNet, lambda: nn.Linear(2, 3), nn.ReLU], ids=["tied", "no buffers", "nothing"])
def test_other_networks_and_strided_selections(tmp_path, build):
    made = Population.from_modules([trained(build(), m) for m in range(4)])[1:4:2]
    made.save(tmp_path / "new" / "file")
    assert same_bits(Population.load(tmp_path / "new" / "file"), made)


def test_a_failed_save_leaves_the_earlier_file(saved, monkeypatch):
    def fails(_: Population) -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Population, "file_pieces", fails)
    with pytest.raises(KeyboardInterrupt):
        Population.from_modules([SmallNet()]).save(saved)
    assert same_bits(Population.load(saved), population())
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_not_there_is_refused(saved, tmp_path):
    assert_refused(tmp_path / "absent", "No such file")
    assert_refused(tmp_path, "not a regular file")
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
    for content in (whole[:1], whole[: len(whole) // 100], whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        assert_refused(path, "damaged")


def test_damage_to_one_member_is_found_and_leaves_the_others_readable(saved):
    whole = saved.read_bytes()
    for matrix in population().matrices:
        content = bytearray(whole)
        content[whole.find(matrix[1].numpy().tobytes()) + 5] ^= 1
        saved.write_bytes(content)
        for member in (None, 1):
            assert_refused(saved, "member 1", "checksum", member=member)
        assert same_bits(Population.load(saved, member=0), population()[0])


def test_the_bytes_of_a_file_are_those_that_safetensors_wrote_before(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5, bias=False))
    for module, members, digest in (
        (network, 1, "26fc8ab921eaffaaec909738c3616eff077245f82ea985009d699c9c3bd5277a"),
        (network, 3, "85815c560a6accbcb0044d20d3b84a0cbc64d985602664345da7e228c113ad31"),
        (nn.ReLU(), 1, "e3da526457d565b687b6fac2a0f4afb94e9b9559ca92aa16467574b1d5820cd9"),
    ):
        made = Population.from_modules([module] * members)
        for place, matrix in enumerate(made.matrices):
            matrix.copy_((torch.arange(matrix.numel()).reshape(matrix.shape) % 97 + place).to(matrix.dtype))
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


def put(*path_and_value):
    """A change of the header: the value at a path in it."""
    *path, last, value = path_and_value

    def changed(content):
        for key in path:
            content = content[key]
        content[last] = value

    return changed


DEEP = json.loads("[" * 600 + "]" * 600)
NOT_SUCH_TENSORS, NO_NETWORK = "not those of its layout", "no network has such"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("weights_MP", "shape", 0, True), NOT_SUCH_TENSORS),
        (put("checksum_M", "shape", 0, True), "number of members"),
        (put("checksum_M", "shape", 0, 0), "number of members"),
        (put("checksum_M", "shape", 0, 10**4000), ""),
        (put("weights_MP", "shape", []), NOT_SUCH_TENSORS),
        (put("statistics_MQ", "shape", 0, 2), NOT_SUCH_TENSORS),
        (put("statistics_MQ", "shape", 0, 3.0), NOT_SUCH_TENSORS),
        (put("checksum_M", "data_offsets", 0, False), NOT_SUCH_TENSORS),
        (put("weights_MP", "dtype", "F64"), NOT_SUCH_TENSORS),
        (put("momentum_MP", "data_offsets", [None, "x"]), NOT_SUCH_TENSORS),
        (put("momentum_MP", []), NOT_SUCH_TENSORS),
        (lambda h: h.pop("momentum_MP"), NOT_SUCH_TENSORS),
        (put("__metadata__", []), "damaged"),
        (put("__metadata__", "version", "2"), "version '2'"),
        (put("__metadata__", "layout", {}), "damaged"),
        (put("__metadata__", "layout", "{}"), "not a layout"),
        (put("checksum_M", "shape", DEEP), "damaged"),
        (with_layout(lambda c: c["keys"].append(["head.more", "none"])), NO_NETWORK),
        (with_layout(lambda c: c["keys"].append(c["keys"][0])), NO_NETWORK),
        (with_layout(lambda c: c["parameters"][0].__setitem__(0, c["parameters"][1][0])), NO_NETWORK),
        (with_layout(put("statistics", 0, 1, [-1, -4])), NO_NETWORK),
        (with_layout(put("statistics", 0, 1, [1] * 65)), NO_NETWORK),
        (with_layout(put("statistics", 0, 1, [2**40, 2**40])), NO_NETWORK),
        (with_layout(put("statistics", 0, 1, [0, 2**40, 2**40])), NO_NETWORK),
    ],
)
def test_headers_that_no_population_has(saved, change, words):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    saved.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert_refused(saved, words)

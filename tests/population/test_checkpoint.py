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
from fastwi.population.checkpoint import FORMAT, MATRICES, VERSION, load


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


def assert_refused(path, *words: str, layout: Layout | None = None) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Population.load(path, layout)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_population_comes_back_to_the_bit(saved):
    loaded = Population.load(saved, Layout.of(SmallNet()), device="cpu")
    assert same_bits(loaded, population())
    loaded.weights_MP.zero_()  # its own memory, not the file's
    assert same_bits(Population.load(saved), population())


def test_one_member_comes_back_to_the_bit(saved):
    whole = population()
    for m in range(3):
        assert same_bits(load(saved, member=m), whole[m])


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


def test_another_networks_layout_is_refused_with_both_shapes(saved):
    assert_refused(saved, "'stem.weight'", "(5, 3, 3, 3)", "(6, 3, 3, 3)", layout=Layout.of(SmallNet(6)))


def test_missing_files_and_members_are_refused(saved, tmp_path):
    assert_refused(tmp_path / "absent", "no such file")
    assert_refused(tmp_path, "no such file")
    with pytest.raises(CheckpointError, match="no member 3; it has members 0 to 2"):
        load(saved, member=3)
    with pytest.raises(CheckpointError, match="no member -1"):
        load(saved, member=-1)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign"
    for content in (b"", b"PK\x03\x04 a zip file, such as torch.save writes", b"\xff" * 64):
        path.write_bytes(content)
        assert_refused(path, "safetensors")
    save_file(trained(SmallNet(), 1).state_dict(), path)
    assert_refused(path, "not a population", "load_state_dict")


def test_files_whose_tensors_do_not_fit_their_layout_are_refused(tmp_path):
    made, path = population(), tmp_path / "file"
    metadata = {"format": "fastwi.population", "version": "1", "layout": made.layout.to_json()}
    tensors = {name: getattr(made, name) for name in ("weights_MP", "momentum_MP", "statistics_MQ", "counters_MB")}
    tensors["checksum_M"] = torch.zeros(3, dtype=torch.int64)
    save_file(tensors, path, metadata)
    assert_refused(path, "member 0", "checksum")
    save_file(tensors | {"statistics_MQ": made.statistics_MQ[:2].clone()}, path, metadata)
    assert_refused(path, "statistics_MQ", f"[2, {made.layout.Q}]", f"[3, {made.layout.Q}]")
    save_file(tensors | {"weights_MP": torch.tensor(1.0)}, path, metadata)
    assert_refused(path, "weights_MP")
    save_file({name: tensors[name] for name in tensors if name != "momentum_MP"}, path, metadata)
    assert_refused(path, "momentum_MP")
    save_file(tensors, path, metadata | {"version": "2"})
    assert_refused(path, "version '2'", "reads 1")
    save_file(tensors, path, metadata | {"layout": "{}"})
    assert_refused(path, "damaged layout")


def test_damage_to_one_member_is_seen_and_leaves_the_others_readable(saved):
    content = bytearray(saved.read_bytes())
    row = population().weights_MP[1].numpy().tobytes()
    content[content.find(row) + 20] ^= 1
    saved.write_bytes(content)
    assert_refused(saved, "member 1", "checksum")
    assert same_bits(load(saved, member=0), population()[0])
    with pytest.raises(CheckpointError, match="member 1 is damaged"):
        load(saved, member=1)


@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.99, 0.9999])
def test_truncated_files_are_refused(saved, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    assert_refused(saved)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["weights_MP"]["shape"].__setitem__(0, True),
        lambda told: told["weights_MP"]["shape"].__setitem__(0, 10**4000),
        lambda told: told["weights_MP"].__setitem__("shape", [1.0, *told["weights_MP"]["shape"][1:]]),
        lambda told: told["weights_MP"].__setitem__("dtype", "F64"),
        lambda told: told["momentum_MP"].__setitem__("data_offsets", told["weights_MP"]["data_offsets"]),
        lambda told: told["momentum_MP"].__setitem__("data_offsets", [None, "x"]),
        lambda told: told.__setitem__("momentum_MP", []),
        lambda told: told.__setitem__("__metadata__", []),
        lambda told: told["__metadata__"].__setitem__("layout", {}),
        lambda told: told["checksum_M"].__setitem__("shape", json.loads("[" * 600 + "]" * 600)),
    ],
)
def test_headers_that_are_none(tmp_path, change):
    counted(nn.Linear(2, 3), 1).save(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    length = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + length])
    change(told)
    header = json.dumps(told).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert_refused(tmp_path / "file")


def test_tensors_in_another_order(tmp_path):
    made = population()
    tensors = dict(zip(MATRICES, (matrix.contiguous() for matrix in made._matrices()), strict=True))
    made.save(tmp_path / "file")
    with safetensors.safe_open(tmp_path / "file", framework="pt") as file:
        metadata, tensors["checksum_M"] = file.metadata(), file.get_tensor("checksum_M")
    told: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name in ("weights_MP", "counters_MB", "statistics_MQ", "checksum_M", "momentum_MP"):
        content = tensors[name].numpy().tobytes()
        dtype = "I64" if tensors[name].dtype == torch.int64 else "F32"
        offsets = [len(data), len(data) + len(content)]
        told[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": offsets}
        data += content
    header = json.dumps(told).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert same_bits(Population.load(tmp_path / "file"), made)
    assert same_bits(load(tmp_path / "file", member=1), made[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told["keys"].append(["head.more", "none"]), "not those of its tensors"),
        (lambda told: told["keys"].append(told["keys"][0]), "not those of its tensors"),
        (lambda told: told["parameters"][0].__setitem__(0, told["parameters"][1][0]), "two of its tensors"),
        (lambda told: told["statistics"][0].__setitem__(1, [-1, -4]), "impossible shape"),
        (lambda told: told["statistics"][0].__setitem__(1, [1] * 65), "impossible shape"),
        (lambda told: told["statistics"][0].__setitem__(1, [2**40, 2**40]), "impossible shape"),
    ],
)
def test_layouts_that_no_network_has_though_they_match_their_fingerprint(tmp_path, change, said):
    made = population()
    told = json.loads(made.layout.to_json())
    change(told)
    packed = Layout._pack(told["parameters"], told["statistics"], told["counters"], told["keys"])
    told["fingerprint"] = packed.fingerprint
    tensors = dict(zip(MATRICES, (matrix.contiguous() for matrix in made._matrices()), strict=True))
    metadata = {"format": FORMAT, "version": VERSION, "layout": json.dumps(told)}
    save_file(tensors | {"checksum_M": torch.zeros(3, dtype=torch.int64)}, tmp_path / "p.safetensors", metadata)
    assert_refused(tmp_path / "p.safetensors", "damaged layout", said)

"""State dicts on disk: what is read, unwrapped, written and refused."""

import collections
import os

import pytest
import torch
from safetensors.torch import load_file
from small_networks import SmallNet, TiedNet, trained
from torch import nn

import fastwi
from fastwi.errors import CheckpointError, UserError
from fastwi.population import Layout, Population
from fastwi.population.state_file import read_state_file, save_state_dict

ENDINGS = (".pt", ".pth", ".safetensors")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_state_file(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    return line


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", [SmallNet, TiedNet])
def test_there_and_back(seed, tmp_path, kind, ending):
    network = trained(kind(), seed)
    path = tmp_path / f"net{ending}"
    fastwi.save_state_dict(network.state_dict(), path)
    assert same(fastwi.load_state_dict(path), network.state_dict())
    plain = load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True)
    assert same(plain, network.state_dict())  # any other program reads an ordinary file


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_dtypes_layouts_and_scalars(tmp_path, dtype):
    values = torch.arange(12).reshape(3, 4).to(dtype)
    state = {"a": values.T, "b": values[0, 1], "momentum.c": values[:0]}
    digests = set()
    for ending in ENDINGS:
        save_state_dict(state, tmp_path / f"x{ending}")
        found = read_state_file(tmp_path / f"x{ending}")
        assert same(found.tensors, state)
        digests.add(found.digest)
    assert len(digests) == 1


def test_the_digest_is_of_names_dtypes_shapes_and_values(tmp_path):
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3).int(), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(2, 3)},
    ]

    def digest(state) -> str:
        torch.save(state, tmp_path / "x.pt")
        return read_state_file(tmp_path / "x.pt").digest

    assert digest(dict(reversed(base.items()))) == digest(base) == digest({"state_dict": base, "epoch": 3})
    assert digest({"model": {"state_dict": base, "epoch": 3}, "epoch": 3}) == digest(base)
    assert len({digest(base), *map(digest, others)}) == 6


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("", None), ("module.", None), ("_orig_mod.", None), ("module._orig_mod.", None), ("_orig_mod.module.", None),
        ("", "state_dict"), ("", "model"), ("", "model_state_dict"), ("module.", "net"),
    ],
)  # fmt: skip
def test_wrappers_and_prefixes(seed, tmp_path, prefix, wrapper):
    network = trained(SmallNet(), seed)
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    whole = state if wrapper is None else {"epoch": 7, "optimizer": {"state": {}}, wrapper: state}
    torch.save(whole, tmp_path / "x.pt")
    found = read_state_file(tmp_path / "x.pt")
    assert same(found.tensors, network.state_dict())
    notes = " ".join(found.notes)
    assert (repr(prefix) in notes) == (prefix != "")
    assert (f"read from {wrapper!r}; left out: epoch, optimizer" in notes) == (wrapper is not None)


def test_what_torch_wraps_with(seed, tmp_path):
    network = trained(SmallNet(), seed)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for wrapped in (nn.DataParallel(network), averaged):
        torch.save(wrapped.state_dict(), tmp_path / "x.pt")
        assert same(read_state_file(tmp_path / "x.pt").tensors, network.state_dict())
    assert "'n_averaged' left out" in read_state_file(tmp_path / "x.pt").notes


def test_a_network_whose_own_names_begin_so(seed, tmp_path):
    """Its prefix comes off in the file and is there again in the population."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = SmallNet()

    network = trained(Holder(), seed)
    population = Population.zeros(Layout.of(network), 1)
    for state in (network.state_dict(), network.module.state_dict(), nn.DataParallel(network).state_dict()):
        torch.save(state, tmp_path / "x.pt")
        population.weights_MP.zero_()
        read_state_file(tmp_path / "x.pt").copy_into(population, 0)
        assert same(population.state_dict(0), network.state_dict())
    population.momentum_MP.copy_(population.weights_MP)
    population.save(tmp_path / "x.safetensors")
    again = Population.zeros(population.layout, 1)
    read_state_file(tmp_path / "x.safetensors").copy_into(again, 0)
    assert same(again.state_dict(0), network.state_dict())
    assert torch.equal(again.momentum_MP, population.momentum_MP)


def test_other_networks_are_refused_by_key(tmp_path):
    population, state = Population.from_modules([SmallNet()]), SmallNet().state_dict()
    for tensors, momentum, words in (
        (state | {"head.bias": torch.zeros(96)}, None, r"x\.pt: 'head\.bias' is torch\.float32 \(96,\)"),
        (state, {"other": torch.zeros(1)}, "momentum of 'other'"),
        (state, {"head.bias": torch.zeros(1)}, "momentum of 'head.bias'"),
    ):
        save_state_dict(tensors, tmp_path / "x.pt", momentum)
        with pytest.raises(CheckpointError, match=words):
            read_state_file(tmp_path / "x.pt").copy_into(population, 0)


class Evil:
    """Would run code where it is unpickled."""

    def __reduce__(self):
        import os

        return os.mkdir, ("should-not-be",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": Evil()}, "mkdir"),
        (SmallNet(), "save network.state_dict() instead"),
        ({"state_dict": collections.Counter("ab")}, "'a' is a int, not a dense tensor"),
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensor"),
        ({3: torch.zeros(1)}, "3 is a Tensor, not a dense tensor under a name"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a Tensor, not a dense tensor"),
        ({"a": torch.zeros(1), "b": torch.zeros(1, device="meta")}, "'b' is a Tensor, not a dense tensor"),
        ({"model": {"a": torch.zeros(1)}, "net": {"a": torch.ones(1)}}, "holds model and net"),
    ],
)
def test_torch_files_of_anything_else_are_refused_and_not_run(tmp_path, monkeypatch, value, words):
    monkeypatch.chdir(tmp_path)
    torch.save(value, tmp_path / "x.pt")
    assert words in refused(tmp_path / "x.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.skipif(not hasattr(torch, "quantize_per_tensor"), reason="deprecated in torch 2.14")
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors_are_refused(tmp_path):
    torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "x.pt")
    assert "'a' is a Tensor, not a dense tensor" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    save_state_dict(SmallNet().state_dict(), path)
    whole = path.read_bytes()
    for content in (
        *(whole[:size] for size in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1)),
        b"hello, world" * 100,
    ):
        path.write_bytes(content)
        refused(path)


def test_what_is_no_file(tmp_path):
    """A named pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe.pt", tmp_path / "endless.pt"):
        assert "not a regular file" in refused(path)
    assert "No such file" in refused(tmp_path / "none.pt")


@pytest.mark.parametrize("ending", ENDINGS)
def test_momentum(seed, tmp_path, ending):
    population = Population.from_modules([trained(SmallNet(), seed)])
    population.momentum_MP.copy_(population.weights_MP * 3)
    path = tmp_path / f"x{ending}"
    save_state_dict(population.state_dict(0), path, population.momentum(0))
    found = read_state_file(path)
    assert same(found.tensors, population.state_dict(0))
    again = Population.zeros(population.layout, 2)
    found.copy_into(again, 1)
    assert torch.equal(again.momentum_MP[1], population.momentum_MP[0])
    assert torch.equal(again.weights_MP[1], population.weights_MP[0])


def test_members_of_a_population(seed, tmp_path):
    networks = [trained(SmallNet(), seed + m) for m in range(3)]
    one, three, plain = tmp_path / "one.safetensors", tmp_path / "three.safetensors", tmp_path / "x.pt"
    Population.from_modules(networks).save(three)
    Population.from_modules(networks[:1]).save(one)
    save_state_dict(networks[0].state_dict(), plain)
    assert same(fastwi.load_state_dict(one), networks[0].state_dict())
    assert same(fastwi.load_state_dict(three, 2), networks[2].state_dict())
    assert same(fastwi.load_state_dict(plain, 0), networks[0].state_dict())
    assert "holds 3 members" in refused(three)
    for path, member, words in ((three, 3, "no member 3"), (plain, 1, "without a member 1")):
        with pytest.raises(CheckpointError, match=words):
            fastwi.load_state_dict(path, member)


@pytest.mark.parametrize(
    ("file", "added", "momentum", "words"),
    [
        ("x", {}, None, r"neither \.safetensors nor \.pt"),
        ("x.npz", {}, None, r"neither \.safetensors nor \.pt"),
        ("x.pt", {"a": 1}, None, "'a' is a int, not a tensor"),
        ("x.pt", {}, {"a": 1}, "'a' is a int, not a tensor"),
        ("x.safetensors", {"momentum.a": torch.zeros(1)}, {}, "'momentum.a' would be read as momentum"),
        ("file/x.pt", {}, None, "cannot be written"),
    ],
)
def test_writing_is_refused_in_one_line(tmp_path, file, added, momentum, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=words):
        save_state_dict(SmallNet().state_dict() | added, tmp_path / file, momentum)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

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
    return list(found) == list(expected) and all(
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
    found = fastwi.load_state_dict(path)
    assert found.keys() == network.state_dict().keys()
    assert same({name: found[name] for name in network.state_dict()}, network.state_dict())
    plain = load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True)
    assert plain.keys() == found.keys()  # any other program reads an ordinary file


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_dtypes_layouts_and_scalars(tmp_path, dtype):
    values = torch.arange(12).reshape(3, 4).to(dtype)
    state = {"a": values.T, "b": values[0, 1], "c": values[:0]}
    digests = set()
    for ending in ENDINGS:
        save_state_dict(state, tmp_path / f"x{ending}")
        found = read_state_file(tmp_path / f"x{ending}")
        assert same({name: found.tensors[name] for name in state}, state)
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
    assert len({digest(base), *map(digest, others)}) == 6


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "net"])
def test_wrappers_and_prefixes(seed, tmp_path, prefix, wrapper):
    network = trained(SmallNet(), seed)
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    whole = state if wrapper is None else {"epoch": 7, "optimizer": {"state": {}}, wrapper: state}
    torch.save(whole, tmp_path / "x.pt")
    found = read_state_file(tmp_path / "x.pt")
    assert same(found.tensors, network.state_dict())
    told = " ".join(found.notes)
    assert (repr(prefix) in told) == (prefix != "")
    assert (f"read from {wrapper!r}; left out: epoch, optimizer" in told) == (wrapper is not None)


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
    torch.save(SmallNet().state_dict() | {"head.bias": torch.zeros(96)}, tmp_path / "x.pt")
    population = Population.from_modules([SmallNet()])
    with pytest.raises(CheckpointError, match=r"x\.pt: 'head\.bias' is torch\.float32 \(96,\)"):
        read_state_file(tmp_path / "x.pt").copy_into(population, 0)
    state = SmallNet().state_dict()
    for name in ("other", "head.bias"):
        save_state_dict(state, tmp_path / "m.pt", {name: torch.zeros(1)})
        with pytest.raises(CheckpointError, match=f"momentum of '{name}'"):
            read_state_file(tmp_path / "m.pt").copy_into(population, 0)


class Evil:
    """Would run code where it is unpickled."""

    def __reduce__(self):
        import os

        return os.mkdir, ("should-not-be",)


def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    torch.save({"a": Evil()}, path)
    assert "mkdir" in refused(path)
    assert not (tmp_path / "should-not-be").exists()
    torch.save(SmallNet(), path)  # a whole module
    assert "save network.state_dict() instead" in refused(path)
    torch.save({"state_dict": collections.Counter("ab")}, path)
    assert "'a' is a int, not a tensor" in refused(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensor"),
        ({"a": 1.0}, "'a' is a float, not a tensor"),
        ({3: torch.zeros(1)}, "3 is not the name of a tensor"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is not a dense tensor"),
        ({"model": {"a": torch.zeros(1)}, "net": {"a": torch.ones(1)}}, "holds model and net"),
    ],
)
def test_torch_files_of_other_things(tmp_path, value, said):
    torch.save(value, tmp_path / "x.pt")
    assert said in refused(tmp_path / "x.pt")


def test_damaged_files(seed, tmp_path):
    network = trained(SmallNet(), seed)
    for ending in ENDINGS:
        path = tmp_path / f"x{ending}"
        save_state_dict(network.state_dict(), path)
        whole = path.read_bytes()
        for size in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            refused(path)
        path.write_bytes(b"hello, world" * 100)
        refused(path)
    assert "cannot be read (No such file" in refused(tmp_path / "none.pt")
    assert "not a regular file" in refused(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_momentum(seed, tmp_path, ending):
    network = trained(SmallNet(), seed)
    population = Population.from_modules([network])
    population.momentum_MP.copy_(population.weights_MP * 3)
    momentum = population.momentum(0)
    path = tmp_path / f"x{ending}"
    save_state_dict(population.state_dict(0), path, momentum)
    found = read_state_file(path)
    assert same({name: found.tensors[name] for name in network.state_dict()}, network.state_dict())
    again = Population.zeros(population.layout, 2)
    found.copy_into(again, 1)
    assert torch.equal(again.momentum_MP[1], population.momentum_MP[0])
    assert torch.equal(again.weights_MP[1], population.weights_MP[0])


def test_members_of_a_population(seed, tmp_path):
    networks = [trained(SmallNet(), seed + m) for m in range(3)]
    Population.from_modules(networks).save(tmp_path / "three.safetensors")
    Population.from_modules(networks[:1]).save(tmp_path / "one.safetensors")
    assert same(fastwi.load_state_dict(tmp_path / "one.safetensors"), networks[0].state_dict())
    assert same(fastwi.load_state_dict(tmp_path / "three.safetensors", 2), networks[2].state_dict())
    assert "holds 3 members" in refused(tmp_path / "three.safetensors")
    with pytest.raises(CheckpointError, match="no member 3"):
        fastwi.load_state_dict(tmp_path / "three.safetensors", 3)
    save_state_dict(networks[0].state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="without a member 1"):
        fastwi.load_state_dict(tmp_path / "x.pt", 1)


def test_writing_is_refused_in_one_line(tmp_path):
    state = SmallNet().state_dict()
    for name in ("x", "x.bin", "x.npz"):
        with pytest.raises(UserError, match=r"neither \.safetensors nor \.pt"):
            save_state_dict(state, tmp_path / name)
    with pytest.raises(UserError, match="'a' is a int, not a tensor"):
        save_state_dict({"a": 1}, tmp_path / "x.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_state_dict(state, tmp_path / "file" / "x.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in refused(tmp_path / "pipe.pt")
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    assert "not a regular file" in refused(tmp_path / "endless.pt")

"""`fastwi.run`, `fastwi.sweep` and `fastwi.load_network`: the commands' results to the bit, from Python."""

import importlib
import inspect
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import polars
import pytest
import torch
from commands import rows_of
from mappings import config_from_mapping
from PIL import Image
from stored_samples import read_beton
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastwi
from data_prep.memory import write_memory
from data_prep.write import write_dataset
from fastwi.data.card import read_card, with_checksum
from fastwi.errors import CheckpointError, ConfigError, UserError
from fastwi.python.entry import _request, undisturbed
from fastwi.sweep import main as sweep_main
from fastwi.train import main as train_main

SETTINGS = {
    "data.train_images": 60, "data.test_images": 30, "model.width": 0.25, "optimizer.batch_size": 20,
    "optimizer.learning_rate": 0.05, "experiment.k": 1, "experiment.s": 2, "experiment.after": 1,
    "experiment.continue_children": True, "experiment.children_rate_factor": 0.1,
    "engine.device": "cpu", "engine.precision": "fp32", "engine.backend": "eager", "engine.threads": 1,
}  # fmt: skip
GRID = {"axes": {"experiment.k": [1, 2], "experiment.s": range(1, 3)}, "sweep": {"children": 4}}


def arguments(data: Path, *more: str) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SETTINGS, "data.path": data}.items()] + list(more)


def rows_in(frame: polars.DataFrame) -> list[dict]:
    return [{name: value for name, value in row.items() if value is not None} for row in frame.to_dicts()]


@pytest.fixture(autouse=True)
def same_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("fastwi_own_", "h2_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def ran(digits_directory, tmp_path_factory) -> fastwi.Results:
    """A run, from Python. Tests must not write to it."""
    directory = tmp_path_factory.mktemp("python") / "r"
    torch.set_num_threads(3)  # the run has one
    found = fastwi.run(SETTINGS, train=digits_directory, directory=directory, progress=False)
    assert torch.get_num_threads() == 3
    return found


@pytest.fixture(scope="module")
def swept(digits_directory, tmp_path_factory) -> fastwi.Results:
    """A sweep, from Python. Tests must not write to it."""
    home = tmp_path_factory.mktemp("python")
    options = {"sweep.store": home / "store", "data.path": digits_directory, "sweep.name": "g"}
    return fastwi.sweep({**SETTINGS, **GRID}, overrides={**options, "sweep.directory": home}, progress=False)


def test_a_run_is_that_of_the_command(ran, digits_directory, tmp_path, capfd):
    assert train_main(arguments(digits_directory, f"--run.directory={tmp_path}", "--run.name=r")) == 0
    assert rows_in(ran.frame) == rows_of(tmp_path / "r") == rows_of(ran.directory)
    for name in ("parent", "children", "average", "final"):
        files = [directory / "checkpoints" / f"{name}.safetensors" for directory in (ran.directory, tmp_path / "r")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert ran.problems == ()
    (row,) = ran.gains.to_dicts()
    at = {r["network"]: r["test_accuracy_%"] for r in rows_in(ran.frame) if r["stage"] == "interpolation"
          and r["batch_norm"] == "own"}  # fmt: skip
    assert row["gain_best_own_points"] == at["average"] - max(at["child 1"], at["child 2"])
    capfd.readouterr()
    again = fastwi.run(SETTINGS, train=digits_directory, directory=tmp_path / "r")  # the command's run goes on here
    assert again.frame.equals(ran.frame, null_equal=True)
    said = capfd.readouterr()
    assert "already finished" in said.err
    assert said.out == ""


@pytest.fixture
def odd_settings() -> Iterator[Callable[[], tuple]]:
    """What a program may have set for work of its own; returns what reads it."""
    drawn = {"figure.facecolor": "black", "font.size": 20.0, "savefig.bbox": "tight"}

    def settings() -> tuple:
        switches = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        numbers = torch.get_default_dtype(), torch.get_float32_matmul_precision()
        return *switches, *numbers, torch.get_default_device(), *map(matplotlib.rcParams.get, drawn)

    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_device("meta")
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), matplotlib.rc_context(drawn):
            yield settings
    finally:
        torch.set_default_device(None)
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)


def test_a_programs_settings_decide_nothing_and_stay(ran, digits_directory, tmp_path, odd_settings):
    before = odd_settings()
    found = fastwi.run(SETTINGS, train=digits_directory, directory=tmp_path / "r", progress=False)
    child = fastwi.load_network(found, child=2)
    assert odd_settings() == before
    assert found.frame.equals(ran.frame, null_equal=True)
    figures = [(results.directory / "figure.png").read_bytes() for results in (found, ran)]
    assert figures[0] == figures[1]
    kinds = {(each.dtype, each.device.type, each.is_inference()) for each in child.parameters()}
    assert kinds == {(torch.float32, "cpu", False)}


def test_products_of_float32_are_not_rounded_to_less():
    """Whatever a program asked for by the settings of newer versions of torch, which stay."""
    onednn, cudnn, matmul = torch.backends.mkldnn, torch.backends.cudnn, torch.backends.cuda.matmul
    exact = [onednn.conv, onednn.matmul, onednn.rnn, matmul]
    newer = [torch.backends, cudnn, *exact, cudnn.conv, cudnn.rnn]
    before = [each.fp32_precision for each in newer]
    try:
        for allowed in (True, False):  # by the older name of cuDNN's
            cudnn.allow_tf32 = allowed
            with undisturbed():
                assert cudnn.allow_tf32
                cudnn.allow_tf32 = False  # as the engines do on a GPU
            assert cudnn.allow_tf32 == allowed
        torch.backends.fp32_precision = "tf32"
        with undisturbed():
            assert {each.fp32_precision for each in exact} == {"ieee"}
            cudnn.allow_tf32 = False
            assert "tf32" not in {each.fp32_precision for each in newer}
        torch.backends.fp32_precision = "none"
        assert "tf32" not in {each.fp32_precision for each in newer}
        asked = ["bf16", "tf32", "bf16", "bf16", "bf16", "tf32", "ieee", "tf32"]
        for each, value in zip(newer, asked, strict=True):
            each.fp32_precision = value
        with undisturbed():
            assert {each.fp32_precision for each in exact} == {"ieee"}
            matmul.allow_tf32 = False
        assert [each.fp32_precision for each in newer] == asked
    finally:
        cudnn.allow_tf32 = True
        for each, value in zip(newer, before, strict=True):
            each.fp32_precision = value


def test_exact_kernels_are_the_callers_again():
    """engine.deterministic sets them for a process."""
    cudnn, attention = torch.backends.cudnn, torch.backends.mha
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark, cudnn.deterministic = True, True
    attention.set_fastpath_enabled(False)
    with undisturbed():
        assert not torch.are_deterministic_algorithms_enabled()
        assert (cudnn.benchmark, cudnn.deterministic) == (False, False)
        assert attention.get_fastpath_enabled()
        torch.use_deterministic_algorithms(True)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert (cudnn.benchmark, cudnn.deterministic) == (True, True)
    assert not attention.get_fastpath_enabled()


def test_every_form_of_a_configuration(ran, digits_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nested: dict[str, dict] = {"data": {"path": str(digits_directory)}}
    for name, value in SETTINGS.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    Path("mine.yaml").write_text(json.dumps(nested))
    for here in (".", "below/.."):
        run = _request(None, None, None, None, None, here).config.run
        assert (Path(run.directory), run.name) == (tmp_path.parent, tmp_path.name)
    for form in ("mine.yaml", nested, config_from_mapping(nested)):
        overrides = {"experiment": {"s": np.int64(2)}, "run.directory": Path("here")}
        found = fastwi.run(form, overrides=overrides, progress=False)
        assert found.frame.equals(ran.frame, null_equal=True)
        assert found.directory.parent == Path("here")
        assert found.directory.name.startswith("mine-" if form == "mine.yaml" else "run-")


def test_a_sweep_is_that_of_the_command(swept, digits_directory, tmp_path):
    options = ["--axes.experiment.k=1,2", "--axes.experiment.s=[1, 2]", "--sweep.children=4", "--sweep.name=g",
               f"--sweep.store={tmp_path / 'store'}", f"--sweep.directory={tmp_path}"]  # fmt: skip
    flags = [flag for flag in arguments(digits_directory, *options) if "experiment.k=1" not in flag[:16]]
    assert sweep_main([flag for flag in flags if not flag.startswith("--experiment.s")]) == 0
    for name, frame in (("results", swept.frame), ("gains", swept.gains)):
        expected = polars.read_parquet(tmp_path / "g" / f"{name}.parquet")
        assert frame.equals(expected, null_equal=True)
        assert polars.read_parquet(swept.directory / f"{name}.parquet").equals(expected, null_equal=True)
    assert swept.problems == ()
    assert swept.gains.height == 8


def test_the_sweep_module_is_called_and_is_the_commands_still():
    assert next(iter(inspect.signature(fastwi.sweep).parameters)) == "config"
    assert fastwi.sweep.main(["--version"]) == 0


NET = """
from torch import nn

WIDTH = 4

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, WIDTH, 3, stride=2), nn.Linear(WIDTH, classes)
    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
    @classmethod
    def small(cls, classes):
        return cls(classes)
"""
OWN = {name: value for name, value in SETTINGS.items() if name != "model.width"}


def test_a_network_of_a_file_is_what_a_configuration_names(digits_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("h2_net.py").write_text(NET)
    flags = [flag for flag in arguments(digits_directory, "--run.name=command") if "width" not in flag]
    assert train_main([*flags, "--model.name=h2_net.py:Net"]) == 0
    import h2_net

    def run(network, name: str) -> fastwi.Results:
        return fastwi.run(OWN, network=network, train=digits_directory, directory=name, progress=False)

    found = run(h2_net.Net, "python")
    assert sys.modules["h2_net"] is h2_net
    assert rows_in(found.frame) == rows_of(Path("runs/command"))
    manifests = [path / "manifest.json" for path in (found.directory, Path("runs/command"))]
    first, second = (json.loads(path.read_text()) for path in manifests)
    assert first["identity"] == second["identity"]
    assert run(h2_net.Net, "python").frame.equals(found.frame, null_equal=True)
    assert run(h2_net.Net.small, "small").frame.equals(found.frame, null_equal=True)
    loaded = fastwi.load_network(found, child=2)
    assert type(loaded).__name__ == "Net"
    assert not loaded.training
    Path("h2_net.py").write_text(NET.replace("WIDTH = 4", "WIDTH = 5"))
    assert "another network: the source of" in refusal(CheckpointError, fastwi.load_network, found, child=2)
    edited = run(h2_net.Net, "edited")
    assert fastwi.load_network(edited, child=2).linear.in_features == 5
    assert not set(edited.frame["test_loss"]) & set(found.frame["test_loss"])


def test_a_network_of_a_package_again_and_again(digits_directory, tmp_path, monkeypatch):
    """Of an __init__.py with relative imports, and of a folder without one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("h2_package", "h2_folder"):
        Path(folder).mkdir()
        Path(folder, "net.py").write_text(NET)
    Path("h2_package/__init__.py").write_text("from .net import Net as Base\nclass Net(Base):\n    pass\n")
    import h2_folder.net
    import h2_package

    for network in (h2_package.Net, h2_folder.net.Net):
        for _ in range(2):
            found = fastwi.run(
                OWN, network=network, train=digits_directory, directory=network.__module__, progress=False
            )
            assert found.frame.height
        assert sys.modules[network.__module__].Net is network
    assert h2_folder.net is sys.modules["h2_folder.net"]


def inputs(data: Path) -> torch.Tensor:
    """A few test images as a network gets them."""
    card = read_card(data)
    pixels_NHWC = torch.from_numpy(np.array(read_beton(data / "test.beton").images_NHWC[:8])).float() / 255
    mean_C, std_C = torch.tensor(card.mean), torch.tensor(card.std)
    return ((pixels_NHWC - mean_C) / std_C).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("checkpoint", "member", "asked"),
    [
        ("parent", 0, {"which": "parent"}),
        ("children", 1, {"child": 2}),
        ("average", 0, {"which": "average"}),
        ("final", 0, {"which": "average", "after": 1}),
        ("final", 2, {"child": 2, "after": 1}),
    ],
)
def test_loaded_networks_are_the_checkpoints(ran, digits_directory, checkpoint, member, asked):
    network = fastwi.load_network(ran, **asked)
    path = ran.directory / "checkpoints" / f"{checkpoint}.safetensors"
    expected = fastwi.load_state_dict(path, member=member)
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = fastwi.load_network(str(ran.directory), which="parent", k=0)
    other.load_state_dict(expected)
    x_NCHW = inputs(digits_directory)
    with torch.no_grad():
        assert torch.equal(network(x_NCHW), other(x_NCHW))


def test_networks_of_rounds(digits_directory, tmp_path):
    """Each round's children make its average, and the second round's start from the first's.

    Its statistics are averaged too, also where it is trained on with others.
    """
    settings = {**SETTINGS, "experiment.rounds": 2, "experiment.s": 1, "experiment.after": 0}
    settings["experiment.batch_norm"] = "recompute"
    found = fastwi.run(settings, train=digits_directory, directory=tmp_path / "r", progress=False)
    averages = []
    for number in (1, 2):
        children = [fastwi.load_network(found, child=c, round=number).state_dict() for c in (1, 2)]
        average = fastwi.load_network(found, which="average", round=number).state_dict()
        start = fastwi.load_network(found, child=1, round=number, s=0).state_dict()
        before = averages[-1] if averages else fastwi.load_network(found, which="parent").state_dict()
        for name, value in average.items():
            assert torch.equal(start[name], before[name])
            if value.is_floating_point():
                torch.testing.assert_close(value, (children[0][name] + children[1][name]) / 2)
                assert not torch.equal(children[0][name], children[1][name])
        averages.append(average)
    said = refusal(UserError, fastwi.load_network, found, which="average")
    assert said.startswith("round: give one")


def test_networks_of_rounds_of_a_sweep(digits_directory, tmp_path):
    """From round 2 on each cell has children of its own: they start from its own average."""
    grid = {"axes.experiment.s": [1, 2], "sweep.alphas": [0.25, 0.5], "sweep.children": 3, "sweep.tuples": "all"}
    settings = {**SETTINGS, **grid, "experiment.rounds": 2, "experiment.after": 0, "sweep.store": tmp_path / "store"}
    found = fastwi.sweep(settings, train=digits_directory, directory=tmp_path / "g", progress=False)

    def weights(**asked) -> dict[str, torch.Tensor]:
        return fastwi.load_network(found, **asked).state_dict()

    for number, s, alpha, pair, children in (
        (1, 1, 0.5, 1, (1, 3)), (2, 1, 0.25, 0, (1, 2)), (2, 1, 0.5, 1, (1, 3)), (2, 2, 0.25, 1, (1, 3)),
    ):  # fmt: skip
        cell = {"pair": pair, "alpha": alpha}
        average = weights(which="average", round=number, s=s, **cell)
        first, second = (weights(child=c, round=number, s=s, **cell if number > 1 else {}) for c in children)
        for name in filter(lambda name: average[name].is_floating_point(), average):
            torch.testing.assert_close(average[name], (1 - alpha) * first[name] + alpha * second[name])
    cell = {"child": 1, "round": 2, "pair": 0, "alpha": 0.5, "s": 1}
    for name, words in (("pair", "there are 0, 1"), ("alpha", "there are 0.25, 0.5"), ("s", "there are 1, 2")):
        line = refusal(UserError, fastwi.load_network, found, **{**cell, name: None})
        assert line.startswith(f"{name}: give one")
        assert words in line
    for name, other in (("pair", 2), ("alpha", 0.75), ("s", 0)):
        assert refusal(UserError, weights, **{**cell, name: other}).startswith(f"{name}: there is no {other}")
    assert refusal(UserError, weights, **{**cell, "round": 1}).startswith("pair: ")


def test_a_run_within_epochs(digits_directory, tmp_path):
    """Times from Python, its networks by them, and a longer run that goes on from it."""
    times = {"experiment.k": "1it", "experiment.s": "1ep1it", "experiment.after": "1ep"}

    def run(**more) -> fastwi.Results:
        settings = {**SETTINGS, **times, "experiment.continue_children": True, **more}
        return fastwi.run(settings, train=digits_directory, directory=tmp_path / "r", progress=False)

    found = run()
    iterations = found.frame["iteration"].to_list()
    steps = round(iterations[-1] / found.frame["epoch"].to_list()[-1])
    assert steps > 2
    assert found.frame["epoch"].to_list() == [done / steps for done in iterations]
    assert sorted(set(iterations)) == [1, steps, steps + 2, 2 * steps, 2 * steps + 2]
    for checkpoint, member, asked in (
        ("parent", 0, {"which": "parent"}), ("parent", 0, {"which": "parent", "k": "1it"}),
        ("children", 1, {"child": 2}), ("children", 1, {"child": 2, "s": f"{steps + 1}it"}),
        ("average", 0, {"which": "average"}), ("final", 0, {"which": "average", "after": 1}),
        ("final", 1, {"child": 1, "after": f"{steps}it"}),
    ):  # fmt: skip
        network = fastwi.load_network(found, **asked).state_dict()
        expected = fastwi.load_state_dict(
            found.directory / "checkpoints" / f"{checkpoint}.safetensors", member=member
        )
        assert all(torch.equal(network[name], expected[name]) for name in expected), asked
    said = refusal(UserError, fastwi.load_network, found, which="parent", k="2it")
    assert "k: there is no '2it'" in said
    assert "1it" in said
    longer = run(**{"experiment.after": "1ep2it"})
    # The end within an epoch is not on the longer run's way.
    both = [[row for row in rows_in(each.frame) if row["iteration"] <= 2 * steps] for each in (found, longer)]
    assert both[0] == both[1]
    assert longer.frame["iteration"].to_list()[-1] == 2 * steps + 4
    assert f"+{(steps + 2) / steps:.6g}" in (tmp_path / "r" / "summary.md").read_text()
    assert "experiment.after: 1ep2it" in refusal(CheckpointError, run)


def test_a_child_that_goes_through_the_interpolation_within_an_epoch(digits_directory, tmp_path):
    """At the same rates its epoch of three steps is not divided there: no state of it is at the interpolation."""
    settings = {**SETTINGS, "experiment.s": "1it", "experiment.after": "2it", "experiment.children_rate_factor": 1.0}
    found = fastwi.run(settings, train=digits_directory, directory=tmp_path / "r", progress=False)
    expected = fastwi.load_state_dict(found.directory / "checkpoints" / "final.safetensors", member=1)
    child = fastwi.load_network(found, child=1, after="2it").state_dict()
    assert all(torch.equal(child[name], expected[name]) for name in expected)
    line = refusal(UserError, fastwi.load_network, found, child=1, after="1it")
    assert line == "after: there is no '1it'; there are '2it'"


def test_a_child_up_to_a_global_end(digits_directory, tmp_path):
    settings = {**SETTINGS, "experiment.k": 2, "experiment.s": "3ep-k", "experiment.after": 0}
    found = fastwi.run(settings, train=digits_directory, directory=tmp_path / "r", progress=False)
    expected = fastwi.load_state_dict(found.directory / "checkpoints" / "children.safetensors", member=0)
    for asked in ({}, {"s": 1}, {"s": "3ep-k"}):
        child = fastwi.load_network(found, child=1, **asked).state_dict()
        assert all(torch.equal(child[name], expected[name]) for name in expected), asked
    for end in (3, "1ep-k", "4ep-k"):
        assert refusal(UserError, fastwi.load_network, found, child=1, s=end).startswith("s: there is no")


def test_a_sweeps_networks(swept):
    """Each cell's average is that of its children; a child before its first epoch is the parent."""
    child = fastwi.load_network(swept, parent=0, child=3, k=2, s=1)
    average = fastwi.load_network(swept, which="average", pair=1, k=2, s=1)
    other = fastwi.load_network(swept, parent=0, child=4, k="2ep", s="1ep")
    mean = fastwi.average([child, other])
    for name, value in average.state_dict().items():
        assert torch.equal(value, mean.state_dict()[name]), name
    assert not torch.equal(child.linear.weight, other.linear.weight)
    torch.testing.assert_close(
        fastwi.load_network(swept, which="parent", k=2).state_dict(),
        fastwi.load_network(swept, child=1, k=2, s=0).state_dict(), rtol=0, atol=0,
    )  # fmt: skip


def refusal(error: type[Exception], call, *given, **named) -> str:
    with pytest.raises(error) as caught:
        call(*given, **named)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"child": 1, "s": 1}, ["k:", "there are 1, 2"]),
        ({"k": 1, "s": 1}, ["child:", "there are 1, 2, 3, 4"]),
        ({"child": 5, "k": 1, "s": 1}, ["child:", "no 5", "there are 1, 2, 3, 4"]),
        ({"child": 1, "k": 1, "s": 9}, ["s:", "no 9", "there are 0, 1, 2"]),
        ({"parent": 7, "child": 1, "k": 1, "s": 1}, ["parent:", "no 7", "there are 0"]),
        ({"pair": 0, "k": 1, "s": 1}, ["pair:", "child"]),
        ({"which": "average", "pair": 0, "k": 1, "s": 1, "alpha": 0.5}, ["alpha:", "no 0.5"]),
        ({"which": "kid"}, ["which:", "'kid'", "parent, child, average"]),
        ({"child": 1, "k": 1, "s": 1, "axes": {"experiment.k": 1}}, ["experiment.k:", "child"]),
        ({"which": "parent", "after": 1}, ["after:", "parent"]),
        ({"child": 1, "k": 1, "s": 1, "axes": {"k": 2}}, ["axes: k", "k="]),
        ({"child": 1, "k": 1, "s": 1, "axes": {"after": None}}, ["axes: after", "after="]),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(swept, asked, words):
    line = refusal(UserError, fastwi.load_network, swept, **asked)
    assert line.startswith(words[0])
    assert all(word in line for word in words), line


def test_what_is_not_kept_is_refused_with_what_is(ran, tmp_path):
    line = refusal(UserError, fastwi.load_network, ran, child=1, s=1)
    assert line == f"{ran.directory}: the child at s = 1 is not kept; kept are 0, 2"
    line = refusal(UserError, fastwi.load_network, tmp_path / "nowhere")
    assert all(name in line for name in ("config.yaml", "sweep.yaml"))


def test_another_dataset_under_the_runs_path_is_refused(digits_directory, tmp_path):
    data = write_memory(*pairs(digits_directory), tmp_path)
    found = fastwi.run(SETTINGS, train=data, directory=tmp_path / "r", progress=False)
    card = json.loads((data / "card.json").read_text())
    (data / "card.json").write_text(json.dumps(with_checksum({**card, "mean": [0.4, 0.4, 0.4]})))
    assert "another configuration or dataset" in refusal(CheckpointError, fastwi.load_network, found, child=1)


def test_networks_are_loaded_from_where_the_run_began(digits_directory, tmp_path, monkeypatch):
    """Elsewhere one line says where paths are looked for, and advises nothing that loses the run."""
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    for place in (begun, elsewhere):
        place.mkdir()
    (begun / "data").symlink_to(digits_directory)
    (begun / "own.py").write_text(NET)
    monkeypatch.chdir(begun)
    settings = {**OWN, "model.name": "own.py:Net", "data.path": "data"}
    found = fastwi.run(settings, directory="r", progress=False)
    fastwi.load_network(found, child=1)
    monkeypatch.chdir(elsewhere)
    for name in ("data", "own.py"):
        line = refusal(UserError, fastwi.load_network, begun / "r", child=1)
        assert name in line
        assert str(elsewhere) in line
        assert "delete" not in line
        (elsewhere / name).symlink_to(begun / name)
    assert fastwi.load_network(begun / "r", child=1).linear.in_features == 4
    (elsewhere / "own.py").unlink()
    (elsewhere / "own.py").write_text(NET.replace("WIDTH = 4", "WIDTH = 5"))
    line = refusal(CheckpointError, fastwi.load_network, begun / "r", child=1)
    assert "another network" in line
    assert str(elsewhere) in line
    assert "delete" not in line


def pairs(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The splits of a dataset's directory."""
    betons = [read_beton(data / f"{split}.beton") for split in ("train", "test")]
    return [(np.array(beton.images_NHWC), np.array(beton.labels_N)) for beton in betons]


class Items:
    """A map-style dataset as torchvision's are."""

    def __init__(self, images_NHWC: np.ndarray, labels_N: np.ndarray, classes: list[str]) -> None:
        self._images_NHWC, self._labels_N, self.classes = images_NHWC, labels_N, classes

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, n: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images_NHWC[n]), int(self._labels_N[n])


def test_a_run_on_images_in_memory_is_that_on_their_directory(ran, digits_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test = pairs(digits_directory)
    found = fastwi.run(SETTINGS, train=train, test=test, progress=False)
    assert found.frame.equals(ran.frame, null_equal=True)
    assert found.directory.name == "run-" + json.loads((ran.directory / "manifest.json").read_text())["identity"]
    (data,) = Path("runs/datasets").glob("[!.]*")
    assert write_memory(train, test, "runs/datasets") == data


@pytest.mark.parametrize("form", ["arrays", "tensors", "items", "torch"])
def test_images_in_memory_are_the_same_as_in_a_directory(digits_directory, tmp_path, form):
    train, test = pairs(digits_directory)
    splits: list[object] = [train, test]
    if form in ("tensors", "torch"):
        tensors = [tuple(map(torch.from_numpy, split)) for split in (train, test)]
        splits = [TensorDataset(*split) for split in tensors] if form == "torch" else list(tensors)
    if form == "items":
        splits = [Items(*split, [f"digit {i}" for i in range(10)]) for split in (train, test)]
    data = write_memory(*splits, tmp_path)
    assert read_card(data).sha256 == read_card(digits_directory).sha256
    written = (data / "train.beton").stat().st_mtime_ns
    assert write_memory(*splits, tmp_path) == data
    assert (data / "train.beton").stat().st_mtime_ns == written


def test_the_same_images_with_other_class_names_are_another_dataset(tmp_path):
    for names in (("a", "b", "c", "d"), ("a", "b", "c", "e")):
        split = Items(np.zeros((4, 5, 5, 3), np.uint8), np.arange(4), list(names))
        assert read_card(write_memory(split, split, tmp_path)).classes == names
    few = Items(np.zeros((4, 5, 5, 3), np.uint8), np.arange(4), list("abc"))  # a label has no name
    card = read_card(write_memory(few, few, tmp_path))
    assert (card.name, card.classes) == ("Items", tuple("0123"))
    # The largest label may be a test image's alone.
    card = read_card(write_memory((RGB, LABELS % 2), (RGB, LABELS), tmp_path))
    assert (card.name, card.classes) == ("arrays", tuple("0123"))


@pytest.mark.parametrize("names", ["ac", "bac", "abcd"])
def test_splits_whose_labels_stand_for_other_classes_are_refused(tmp_path, names):
    """As torchvision's ImageFolder gives, where the folder of a class is missing in one split."""
    train = Items(RGB[:3], np.arange(3), list("abc"))
    test = Items(RGB[:2], np.arange(2), list(names))
    line = refusal(UserError, write_memory, train, test, tmp_path)
    assert line.startswith("test: class ")
    label = next(n for n, name in enumerate(names) if name != "abc "[n])
    assert f"class {label} is {names[label]!r}" in line
    assert not any(tmp_path.rglob("*.beton"))
    unnamed = RGB[:2], np.arange(2)
    for alike in (Items(*unnamed, list("abc")), Items(*unnamed, []), unnamed):
        assert read_card(write_memory(train, alike, tmp_path)).classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["card.json", "train.beton", "train.digests", "test.beton"])
@pytest.mark.parametrize("change", ["removed", "damaged"])
def test_images_in_memory_are_written_again_where_a_file_of_them_is_not_whole(tmp_path, name, change):
    split = Items(np.full((4, 5, 5, 3), 7, np.uint8), np.arange(4), list("abcd"))
    path = write_memory(split, split, tmp_path) / name
    whole = path.read_bytes()
    path.unlink()
    if change == "damaged":
        at = max(0, whole.find(bytes([7] * 75)))  # a pixel, where there are some
        path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
    assert write_memory(split, split, tmp_path) / name == path
    assert path.read_bytes() == whole


def test_two_at_one_time_write_the_same_images_once(tmp_path, monkeypatch):
    """As the jobs of an array do on a shared file system."""
    written = list[Path]()

    def slow(dataset, directory, *more):
        written.append(directory)
        time.sleep(0.2)
        return write_dataset(dataset, directory, *more)

    monkeypatch.setattr("data_prep.memory.write_dataset", slow)
    split = Items(np.zeros((4, 5, 5, 3), np.uint8), np.arange(4), list("abcd"))
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: write_memory(split, split, tmp_path), range(2))
    assert written == [first] == [second]


def test_the_documentation_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "tutorials" / "python.md").read_text()
    network, script = (block.partition("```")[0] for block in text.split("```python\n")[1:])
    Path("my_network.py").write_text(network)
    names: dict = {}
    exec(script, names)
    assert names["results"].directory == Path("sweeps/first")
    assert names["results"].gains.height == 4
    assert names["child"](torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert not torch.equal(names["child"][0].weight, names["average"][0].weight)
    del sys.modules["my_network"]


def test_another_thread_is_refused_while_a_call_runs(tmp_path):
    """Settings, and the generators that networks are drawn from, are those of the process."""
    said = list[str]()

    class Asking(Items):
        def __getitem__(self, n: int) -> tuple[Image.Image, int]:
            with ThreadPoolExecutor() as pool:
                said.append(pool.submit(refusal, UserError, fastwi.load_network, tmp_path).result())
            raise KeyError(n)  # which ends the run

    refusal(UserError, fastwi.run, train=Asking(RGB, LABELS, []), test=(RGB, LABELS), directory=tmp_path / "r")
    assert "another thread" in said[0]
    assert "no results" in refusal(UserError, fastwi.load_network, tmp_path)


def test_a_network_of_before_a_reload_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "h2_again.py").write_text(NET)
    import h2_again

    network = h2_again.Net
    importlib.reload(h2_again)
    line = refusal(ConfigError, fastwi.run, network=network)
    assert "Net" in line
    assert "reload" in line


class Streamed(IterableDataset):
    """With a length, and without items."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[object]:
        return iter([])


RGB, LABELS = np.zeros((4, 5, 5, 3), np.uint8), np.arange(4)


@pytest.mark.parametrize(
    ("train", "place", "what"),
    [
        ((RGB.astype(np.float32), LABELS), "train:", "float32"),
        ((np.moveaxis(RGB, 3, 1), LABELS), "train:", "[4, 3, 5, 5]"),
        ((RGB[:0], LABELS[:0]), "train:", "[0, 5, 5, 3]"),
        ((RGB, LABELS[:3]), "train:", "labels"),
        ((RGB, LABELS - 1), "train:", "-1"),
        ((RGB, LABELS + 10**12), "train:", "1000000000003"),
        ((RGB, LABELS / 2), "train:", "labels"),
        (([RGB[0], RGB[0, :4]], LABELS[:2]), "train:", "pair of arrays"),
        ((torch.zeros(4, 5, 5, 3, dtype=torch.bfloat16), LABELS), "train:", "BFloat16"),
        (iter([]), "train:", "list_iterator"),
        (DataLoader([(RGB[0], 0)]), "train:", "DataLoader"),
        (Dataset(), "train:", "Dataset"),
        (Streamed(), "train[0]:", "Streamed"),
        ({1: (RGB[0], 0)}, "train[0]:", "dict"),
        ([(RGB[0], LABELS == 1)], "train[0]:", "pair"),
        ([(RGB[0], 0), (RGB[0, :4], 1)], "train[1]:", "4 x 5 pixels"),
        ([(RGB[0], 0), RGB[0]], "train[1]:", "pair"),
        ([(RGB[0], 0.5)], "train[0]:", "pair"),
        ([(Image.new("RGBA", (5, 5)), 0)], "train[0]:", "transparent"),
        ([(Image.new("I;16", (5, 5)), 0)], "train[0]:", "I;16"),
    ],
)
def test_images_that_are_refused(tmp_path, train, place, what):
    line = refusal(UserError, fastwi.run, train=train, test=(RGB, LABELS), directory=tmp_path / "r")
    assert line.startswith(place)
    assert what in line
    assert not any(tmp_path.rglob("*.beton"))


def test_splits_of_two_sizes_are_refused(tmp_path):
    for other in (RGB[:, :4], RGB[:, :, :4]):
        line = refusal(UserError, write_memory, (RGB, LABELS), (other, LABELS), tmp_path)
        assert line.startswith("test: images of {} x {} pixels".format(*other.shape[1:3]))
        assert "5 x 5" in line
    assert not any(tmp_path.rglob("*.beton"))


def test_arguments_that_do_not_go_together(digits_directory, tmp_path):
    both = "train, test: give both, or as train alone the path of a dataset's directory"
    for given in ({"train": (RGB, LABELS)}, {"test": (RGB, LABELS)}, {"train": "a", "test": "b"}):
        assert refusal(ConfigError, fastwi.run, **given) == both
        assert refusal(ConfigError, fastwi.sweep, **given) == both
    once = "data.path: given as an argument of its own too; leave one of them out"
    for given in ({"train": digits_directory}, {"train": (RGB, LABELS), "test": (RGB, LABELS)}):
        for overrides in ({"data.path": "b"}, {"data": {"path": "b"}}):
            assert refusal(ConfigError, fastwi.run, **given, overrides=overrides) == once
    twice = {"run.name": "b"}
    assert refusal(ConfigError, fastwi.run, directory=tmp_path / "a", overrides=twice).startswith("run.name: given")
    axes, images = {"axes.data.path": [str(digits_directory)]}, (RGB, LABELS)
    assert refusal(ConfigError, fastwi.sweep, axes, train=images, test=images).startswith("axes.data.path")


def nested() -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        return nn.Linear(2, classes)

    return build


def shadowed(classes: int) -> nn.Module:
    """Its name is bound to something else below."""
    return nn.Linear(2, classes)


hidden, shadowed = shadowed, nested()


def test_networks_that_have_no_name_in_a_file(monkeypatch):
    cell: dict = {"__name__": "__main__"}
    exec("def build(classes):\n    return None\n", cell)
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))  # as a notebook's
    for network, words in [
        (nn.Linear(2, 10), "give the class or a function"),
        (lambda classes: nn.Linear(2, classes), "a lambda"),
        (nested(), "within a function"),
        (hidden, "shadowed"),
        (cell["build"], "build is defined in a notebook"),
        (3, "3"),
    ]:
        assert words in refusal(ConfigError, fastwi.run, network=network)


SCRIPT = """
import fastwi
from torch import nn

def build(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))

if {guard}:
    found = fastwi.run({settings!r}, network=build, train={data!r}, directory="r", progress=False)
    print(found.directory, found.frame.height)
"""


@pytest.mark.parametrize("guard", ["__name__ == '__main__'", "True"])
def test_a_script_is_its_own_networks_file(digits_directory, tmp_path, guard):
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=guard, settings=OWN, data=str(digits_directory)))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if guard == "True":
        assert "__name__ == '__main__'" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "r").exists()
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "r 14\n", "")


def test_a_sweep_with_a_network_that_diverges(digits_directory, tmp_path):
    axes = {"axes.optimizer.learning_rate": [0.05, 1e30], "axes.experiment.s": [1]}
    options = {"sweep.store": tmp_path / "store", "sweep.measure": ["own"]}
    with pytest.warns(UserWarning, match="diverged: its training loss is nan in epoch 1"):
        found = fastwi.sweep(
            {**SETTINGS, **axes}, train=digits_directory, directory=tmp_path / "g", overrides=options, progress=False
        )
    assert len(found.problems) == 1
    assert found.gains["optimizer.learning_rate"].to_list() == [0.05]
    network = fastwi.load_network(found, child=1, axes={"optimizer.learning_rate": 0.05})
    assert all(value.isfinite().all() for value in network.state_dict().values())
    said = refusal(UserError, fastwi.load_network, found, child=1, axes={"optimizer.learning_rate": 1e30})
    assert "is not kept" in said


@pytest.mark.parametrize(
    ("entry", "config", "overrides", "words"),
    [
        (fastwi.run, {}, {"experiment.k": "many"}, ["experiment.k", "'many'"]),
        (fastwi.run, {}, {"experiment": {"k": 2}, "experiment.k": 3}, ["experiment.k", "twice"]),
        (fastwi.run, "nowhere.yaml", {}, ["nowhere.yaml"]),
        (fastwi.run, 3, {}, ["3"]),
        (fastwi.sweep, "fastwi:nothing", {}, ["fastwi:nothing"]),
        (fastwi.sweep, {"axes": {"experiment.k": [1, 1]}}, {}, ["axes.experiment.k", "1"]),
        (fastwi.sweep, {}, {"axes.experiment.k": [1], "experiment.k": 2}, ["experiment.k", "axis"]),
        (fastwi.sweep, {}, {"seeds.init": 2}, ["seeds.init", "sweep.parents"]),
        (fastwi.sweep, {}, {"analysis.alphas": 3}, ["analysis.alphas", "fastwi.analyze"]),
        (fastwi.sweep, {}, {"base": "x.yaml"}, ["base"]),
        (fastwi.sweep, {"base": "nowhere.yaml"}, {}, ["base", "nowhere.yaml"]),
    ],
)
def test_configurations_that_are_refused(tmp_path, monkeypatch, entry, config, overrides, words):
    monkeypatch.chdir(tmp_path)
    line = refusal(ConfigError, entry, config, overrides=overrides)
    assert all(word in line for word in words), line


def test_a_key_that_a_sweep_does_not_use_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"seeds\.init: 3 .*sweep\.parents"), pytest.raises(UserError):
        fastwi.sweep({"data": {"path": str(tmp_path)}, "seeds": {"init": 3}})

"""What a network of the user's own is named by: all the code that it reaches. It uses nothing else."""

import json
import os
import shutil
import sys
import tempfile
import threading
import types
import zipfile
from importlib.metadata import version as version_of

import pytest
import torch

import data_prep  # noqa: F401
from fastwi.errors import ConfigError
from fastwi.models import own
from fastwi.models.changes import network_change
from fastwi.models.load import built_digest
from fastwi.models.registry import build_model
from fastwi.models.source import name_of, source_digest, source_of
from fastwi.models.watch import watching
from fastwi.version import __version__

NET = """
from pathlib import Path
import importlib, torch
from torch import nn
{}
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3, classes)
    def forward(self, x):
        return scale() * self.linear(x.mean((2, 3)))
"""


def net(code: str) -> str:
    """A network of which `code` has or imports the function `scale`."""
    return NET.format(code)


def scale(number: int) -> str:
    return f"def scale():\n    return {number}\n"


def logits(name: str) -> torch.Tensor:
    torch.manual_seed(3)
    return build_model(name, 4, image_size=(8, 8))(torch.ones(1, 3, 8, 8)).detach()


# The file that has `scale`; the module that has the network; how that comes to `scale`.
REACHED = {
    "import": ("h1_blk.py", "h1_net", "from h1_blk import scale"),
    "in a function": ("h1_blk.py", "h1_net", "def scale():\n    import h1_blk as b\n    return b.scale()"),
    "through another": ("h1_deep.py", "h1_net", "from h1_mid import scale"),
    "relative": ("h1_pkg/parts/blk.py", "h1_pkg.net", "from .parts import blk\nscale = blk.scale"),
    "relative, two levels": ("h1_pkg/blk.py", "h1_pkg.parts.net", "from ..blk import scale"),
    "through a package": ("h1_top/blk.py", "h1_net", "from h1_top import scale"),
    "of a parent": ("h1_pkg/__init__.py", "h1_pkg.net", "from . import scale"),
    "folders alone": ("h1_space/deep/blk.py", "h1_net", "from h1_space.deep.blk import scale"),
    "of a folder alone": ("h1_space/blk.py", "h1_net", "from h1_space import blk\nscale = blk.scale"),
    "beside it in a folder": ("h1_space/blk.py", "h1_space.net", "from . import blk\nscale = blk.scale"),
    "by its text": ("h1_blk.py", "h1_net", "scale = importlib.import_module('h1_blk').scale"),
    "listed": (
        "h1_plug_a.py", "h1_net",
        "fastwi_files = ['h1_plug_a.py']\nscale = importlib.import_module('h1_plug_' + 'a').scale",
    ),
    "data": (
        "h1_scale.txt", "h1_net",
        "fastwi_files: tuple[str] = ('h1_scale.txt',)\n"
        "scale = lambda: int(Path('h1_scale.txt').read_text().split()[-1])",
    ),
}  # fmt: skip


def files_of(reached: str, number: int) -> dict[str, str]:
    """A network h1_net:Net that is scaled by `number`."""
    place, home, code = REACHED[reached]
    return {
        "h1_pkg/__init__.py": "", "h1_pkg/parts/__init__.py": "", "h1_top/__init__.py": "from .blk import scale\n",
        "h1_mid.py": "from h1_deep import *\ndef f():\n    import h1_mid\n",
        "h1_net.py": f"from {home} import Net\n", f"{home.replace('.', '/')}.py": net(code), place: scale(number),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["h1_net.py:Net", "h1_net:Net"])
@pytest.mark.parametrize("reached", REACHED)
def test_an_edit_anywhere_is_another_network_and_what_is_built_is_what_is_named(write, reached, form, monkeypatch):
    """Edited twice within a second, to files of one size: Python's own cache would not see it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = {}
    for number in (1, 2, 3, 1):
        write(files_of(reached, number))
        os.utime(REACHED[reached][0], (1e9, 1e9))
        digest, value = source_digest(form), logits(form)
        assert built_digest(form) == digest
        assert torch.equal(value, found.setdefault(digest, (number, value))[1])
        assert found[digest][0] == number
    values = [value for _, value in sorted(found.values())]
    assert len(values) == 3
    assert all(torch.allclose(value, n * values[0]) for n, value in enumerate(values, 1))


def test_two_folders_list_files_of_one_name(write):
    """Both are in the network's name; the second has that of the module that lists it too."""
    listing = "fastwi_files = ['h1_table.txt']\n"
    write(
        {"h1_net.py": net(f"{listing}import h1_pkg.blk\n{scale(1)}"), "h1_pkg/__init__.py": "", "h1_table.txt": "1"}
    )
    write({"h1_pkg/blk.py": listing, "h1_pkg/h1_table.txt": "1"})
    found = {source_digest("h1_net.py:Net")}
    for edited in ("h1_table.txt", "h1_pkg/h1_table.txt"):
        write({edited: "2"})
        found.add(source_digest("h1_net.py:Net"))
    assert len(found) == 3
    assert len(source_of("h1_net.py:Net").by_path) == 5


def test_the_digest_is_that_of_earlier_versions(write):
    """Recorded: results of users' networks are found by it, whatever the order is in which files are reached."""
    write({"h1_net.py": "import h1_mid\nimport h1_blk\n", "h1_mid.py": "import h1_blk\n", "h1_blk.py": scale(1)})
    assert source_digest("h1_net.py:Net") == "0aaff93e18dcdd729516a5db284357f1c5fdfa7faf650ff1c051d59edb5782c7"


MIDDLES = ("h1_mid", "h1_space.mid")


@pytest.mark.parametrize("order", [("h1_one", "h1_two", "h1_one"), ("h1_one", "h1_two.py", "h1_one.py")])
@pytest.mark.parametrize(
    "reached",
    ["from h1_mid import scale\n", *(f"def scale():\n    import {m} as m\n    return m.scale()\n" for m in MIDDLES)],
)
def test_two_networks_that_share_a_file(write, reached, order):
    """Building one after an edit must not leave the other with the old code under the new digest, or the new's."""
    write({"h1_one.py": net(reached), "h1_two.py": net(reached)})
    write({f"{middle.replace('.', '/')}.py": "from h1_blk import scale\n" for middle in MIDDLES})
    seen = []
    for number, place in zip((1, 2, 1), order, strict=True):
        write({"h1_blk.py": scale(number)})
        seen.append(logits(f"{place}:Net"))
    assert torch.equal(seen[0], seen[2])
    assert torch.allclose(2 * seen[0], seen[1])


def test_files_of_one_name_in_two_folders_are_two_networks(write):
    write({"h1_a/net.py": net(scale(1)), "h1_b/net.py": net(scale(2))})
    one, two, again = (logits(f"{folder}/net.py:Net") for folder in ("h1_a", "h1_b", "h1_a"))
    assert torch.equal(one, again)
    assert torch.allclose(2 * one, two)


def test_a_script_of_a_package_has_its_name_there(write, monkeypatch, tmp_path):
    """Run as `python -m h1_pkg.net`. By its file it could not import its neighbours."""
    write({"h1_pkg/__init__.py": "", "h1_pkg/net.py": net(scale(1))})
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "h1_pkg" / "net.py")
    script.__spec__ = types.SimpleNamespace(name="h1_pkg.net")
    script.Net = type("Net", (), {"__module__": "__main__"})
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert name_of(script.Net) == "h1_pkg.net:Net"
    script.__spec__ = None  # python h1_pkg/net.py
    assert name_of(script.Net) == f"{tmp_path.resolve()}/h1_pkg/net.py:Net"


def test_the_name_is_of_content_alone(tmp_path, write, monkeypatch):
    """Not of where the files lie, nor of what was imported before."""
    digests, imported = set(), set(sys.modules)
    for home in ("a", "b"):
        write({f"{home}/{name}": text for name, text in files_of("relative", 1).items()})
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / home)
            digests |= {(form, source_digest(form)) for form in ("h1_net:Net", "h1_pkg.net:Net")}
    assert len(digests) == 2
    assert not any(name.startswith("h1_") for name in set(sys.modules) - imported)  # nothing was executed


def test_installed_packages_count_by_version(tmp_path, write, monkeypatch):
    """Editable installs and a checkout's own metadata install nothing: such modules are the user's."""
    digests = []
    for version, code, record in (
        ("1", "x = 1", True), ("1", "x = 2", True), ("2", "x = 2", True), ("2", "x = 3", False),
        ("2", "x = 4", False),
    ):  # fmt: skip
        home = f"home{len(digests)}"
        about = f"{home}/h1_installed." + ("dist-info/METADATA" if record else "egg-info/PKG-INFO")
        write({
            f"{home}/h1_installed/__init__.py": code, f"{home}/h1_installed/more.py": code,
            about: f"Metadata-Version: 2.1\nName: h1_installed\nVersion: {version}\n",
            f"{home}/net.py": "import h1_installed.more\nimport json, torch.nn\n",
            **({f"{home}/h1_installed.dist-info/RECORD": "h1_installed/__init__.py,,\n"} if record else {}),
        })  # fmt: skip
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / home)
            source = source_of(f"{home}/net.py:Net")
        assert set(source.files) == ({"net.py"} if record else {"net.py", "h1_installed", "h1_installed.more"})
        assert source.packages == {
            "torch": version_of("torch"), **({"h1_installed": version} if record else {}),
        }  # fmt: skip
        digests.append(source.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    # An editable install has its metadata, with a record, in another folder than its code.
    write({
        "site/h1_linked-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: h1_linked\nVersion: 1\n",
        "site/h1_linked-1.dist-info/RECORD": "__editable__.h1_linked.pth,,\n",
        "code/h1_linked.py": "x = 1", "code/net.py": "import h1_linked, torch\n",
    })  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path / "site")
    source = source_of("code/net.py:Net")
    assert (set(source.files), set(source.packages)) == ({"net.py", "h1_linked"}, {"torch"})


def test_data_prep_is_a_part_of_fastwi(write):
    """An example writes its dataset and holds its network: the other is no code of the network's."""
    write({"own_net.py": net("from data_prep import prepare\n" + scale(2))})
    source = source_of("own_net.py:Net")
    assert list(source.files) == ["own_net.py"]
    assert source.packages["fastwi"] == __version__
    loaded = sys.modules["data_prep"]
    logits("own_net.py:Net")
    assert sys.modules["data_prep"] is loaded


def test_a_module_by_the_name_of_data_prep_is_the_users_own(write):
    write({"own_net.py": "import data_prep\n", "data_prep.py": "x = 1\n"})
    source = source_of("own_net.py:Net")
    assert (set(source.files), source.packages) == ({"own_net.py", "data_prep"}, {})


def test_a_network_of_an_installed_package():
    source = source_of("torchvision.models:resnet18")
    assert not source.files
    assert set(source.packages) == {"torchvision"}
    for name in ("resnet20", "collections:OrderedDict", "h1_none.py:net", "h1_none:net"):
        assert source_digest(name) == built_digest(name) == ""


FROM_ARCHIVE = "import sys\nsys.path.insert(0, str(Path('h1_lib.zip').resolve()))\n"


def write_archive(number: int) -> None:
    """Code that FROM_ARCHIVE finds."""
    with zipfile.ZipFile("h1_lib.zip", "w") as archive:
        archive.writestr("h1_zipped.py", f"TWO = {number}\n{scale(number)}")


UNNAMED = {
    "computed": ("scale = importlib.import_module('h1_' + 'blk').scale\n", "h1_blk.py"),
    "executed": ("exec(Path('h1_blk.py').read_text())\n", "h1_blk.py"),
    "by a path": ("import sys\nsys.path.insert(0, 'other')\nfrom h1_far import scale\n", "h1_far.py"),
    "read as it is built": ("DATA = Path('h1_data.txt').read_text()\nscale = lambda: int(DATA)\n", "h1_data.txt"),
    "appended to and read": (
        "open('h1_data.txt', 'a').close()\nscale = lambda: int(Path('h1_data.txt').read_text())\n", "h1_data.txt",
    ),
    "read as it runs": ("def scale():\n    return int(Path('h1_data.txt').read_text())\n", "h1_data.txt"),
    "read and written back": (
        "DATA = Path('h1_data.txt').read_text()\nPath('h1_data.txt').write_text(DATA)\nscale = lambda: int(DATA)\n",
        "h1_data.txt",
    ),
    "open for both": (
        "def scale():\n    with open('h1_data.txt', 'r+') as file:\n        return int(file.read())\n", "h1_data.txt",
    ),
    "by torch.jit": ("scale = lambda: torch.jit.load('h1_data.ts').bias.item()\n", "h1_data.ts"),
    "by from_file": ("scale = lambda: torch.from_file('h1_data.bin', size=1).item()\n", "h1_data.bin"),
    "by NumPy": ("import numpy\nscale = lambda: float(numpy.load('h1_data.npy'))\n", "h1_data.npy"),
    "by torch": ("scale = lambda: torch.load('h1_data.pt')\n", "h1_data.pt"),
    "by safetensors": (
        "from safetensors.torch import load_file\nscale = lambda: load_file('h1_data.st')['x']\n", "h1_data.st",
    ),
    "by safetensors, imported": (
        "from safetensors.torch import load_file\nDATA = load_file('h1_data.st')\nscale = lambda: DATA['x']\n",
        "h1_data.st",
    ),
    "a number, computed": (
        "NUMBER = importlib.import_module('h1_' + 'two').TWO\nscale = lambda: NUMBER\n", "h1_two.py",
    ),
    "a number, by a path": (
        "import sys\nsys.path.insert(0, 'other')\nfrom h1_away import TWO\nscale = lambda: TWO\n", "h1_away.py",
    ),
    "a number in a folder": (
        "import sys\nsys.path.insert(0, 'other')\nfrom h1_folder import h1_deep as n\nscale = lambda: n.TWO\n",
        "h1_deep.py",
    ),
    "in an archive": (f"{FROM_ARCHIVE}from h1_zipped import scale\n", "h1_lib.zip"),
    "a number in an archive": (f"{FROM_ARCHIVE}from h1_zipped import TWO\nscale = lambda: TWO\n", "h1_lib.zip"),
    "by ctypes": (
        "import ctypes\ndef scale():\n    ctypes.CDLL('./h1_lib.so')\n    return 2\n", "h1_lib.so",
    ),
    "by safe_open": (
        "from safetensors import safe_open\n"
        "def scale():\n    with safe_open('h1_data.st', 'pt') as f:\n        return f.get_tensor('x')\n",
        "h1_data.st",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # TorchScript is deprecated
@pytest.mark.parametrize("form", ["h1_net.py:Net", "h1_net:Net"])
@pytest.mark.parametrize("how", UNNAMED)
def test_what_the_name_would_not_cover_is_refused(write, how, form):
    """Each time, and also where the process imported it before; the line says what to write, and that helps."""
    import numpy as np
    import safetensors
    from safetensors.torch import save_file

    code, file = UNNAMED[how]
    text = net(code)
    write({"h1_net.py": text, "h1_blk.py": scale(2), "other/h1_far.py": scale(2), "h1_data.txt": "2"})
    np.save("h1_data.npy", 2.0)
    np.array(2.0, np.float32).tofile("h1_data.bin")
    torch.save(torch.tensor(2.0), "h1_data.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), "h1_data.ts")
    save_file({"x": torch.tensor(2.0)}, "h1_data.st")
    write(dict.fromkeys(("h1_two.py", "other/h1_away.py", "other/h1_folder/h1_deep.py"), "TWO = 2\n"))
    write_archive(2)
    shutil.copyfile(safetensors._safetensors_rust.__file__, "h1_lib.so")
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            build_model(form, 4, image_size=(8, 8))
        said = str(caught.value)
        assert f"uses {file}" in said
        assert "\n" not in said
    fix = said.partition("write ")[2].partition(" in h1_net.py")[0]
    write({"h1_net.py": text + fix + "\n"})
    assert logits(form).shape == (1, 4)


@pytest.mark.parametrize("imported", ["scale", "TWO"])
def test_code_in_a_listed_archive_is_executed_as_it_is_now(write, imported):
    found = []
    for number in (1, 2, 1):
        write_archive(number)
        own_scale = "" if imported == "scale" else "scale = lambda: TWO\n"
        listed = "fastwi_files = ['h1_lib.zip']\n"
        write({"h1_net.py": net(f"{listed}{FROM_ARCHIVE}from h1_zipped import {imported}\n{own_scale}")})
        found.append((source_digest("h1_net.py:Net"), logits("h1_net.py:Net")))
    assert found[0][0] != found[1][0]
    assert torch.equal(found[0][1], found[2][1])
    assert torch.allclose(2 * found[0][1], found[1][1])


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no shared memory")
def test_a_file_in_shared_memory_is_one_like_others(write):
    with tempfile.NamedTemporaryFile("w", dir="/dev/shm") as file:
        file.write("2")
        file.flush()
        write({"h1_net.py": net(f"scale = lambda: int(Path({file.name!r}).read_text())\n")})
        with pytest.raises(ConfigError, match=f"uses {os.path.basename(file.name)}"):
            build_model("h1_net.py:Net", 4, image_size=(8, 8))


def test_what_compilers_keep_is_left_out_and_no_folder_that_is_named_alike(tmp_path, monkeypatch):
    folders = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_HOME", "XDG_CACHE_HOME")
    for name in folders:
        monkeypatch.setenv(name, str(tmp_path / name))
    kept = {*folders[:3], "TRITON_HOME/.triton", "XDG_CACHE_HOME/torch_extensions", "temporary/torchinductor_me"}
    alike = {
        "torchinductor_nets",
        "x.triton",
        ".triton",
        "torch_extensions_demo",
        "torch_extensions",
        f"{folders[0]}2",
    }
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    paths = {folder: tmp_path.resolve() / folder / "deep" / "file" for folder in kept | alike}
    for path in paths.values():
        path.parent.mkdir(parents=True)
        path.touch()
    with watching() as watch:
        for path in paths.values():
            path.read_bytes()
    assert watch.files() == {paths[folder] for folder in alike}


def test_what_another_thread_reads_is_not_watched(tmp_path):
    """One may load images while a network is built."""
    here, elsewhere = (tmp_path.resolve() / name for name in ("here", "elsewhere"))
    for path in (here, elsewhere):
        path.touch()
    with watching() as watch:
        here.read_bytes()
        thread = threading.Thread(target=elsewhere.read_bytes)
        thread.start()
        thread.join()
    assert watch.files() == {here}


def test_what_is_written_first_and_read_then_is_code(write):
    code = "Path('h1_made.txt').write_text('2')\nscale = lambda: int(Path('h1_made.txt').read_text())\n"
    write({"h1_net.py": net(code)})
    assert logits("h1_net.py:Net").shape == (1, 4)


def test_a_file_beside_the_networks_is_found_from_anywhere(write):
    """After what the path has under that name."""
    write({"nets/h1_net.py": net("fastwi_files = ['h1_more.txt']\nimport h1_both\nfrom h1_blk import scale")})
    write({"nets/h1_blk.py": scale(2), "nets/h1_more.txt": ""})
    write({"nets/h1_both.py": "raise ValueError\n", "h1_both.py": ""})
    path = list(sys.path)
    assert logits("nets/h1_net.py:Net").shape == (1, 4)
    assert set(source_of("nets/h1_net.py:Net").files) == {"h1_net.py", "h1_both", "h1_blk", "file h1_more.txt"}
    assert sys.path == path


def test_what_was_built_is_known_after_an_edit(write):
    write({"h1_net.py": net("from h1_blk import scale"), "h1_blk.py": scale(1)})
    built = source_digest("h1_net.py:Net")
    build_model("h1_net.py:Net", 4)
    write({"h1_blk.py": scale(2)})
    assert built_digest("h1_net.py:Net") == built != source_digest("h1_net.py:Net")
    write({"h1_blk.py": "raise ValueError\n"})
    with pytest.raises(ConfigError):
        build_model("h1_net.py:Net", 4)
    assert built_digest("h1_net.py:Net") == ""


def test_modules_that_register_themselves_once_are_executed_once(write, monkeypatch):
    """Some registers refuse a name twice; the second execution, which only compares, is then left out."""
    monkeypatch.setattr(own, "h1_register", set(), raising=False)
    code = "from fastwi.models import own\nassert 'net' not in own.h1_register\nown.h1_register.add('net')\n"
    write({"h1_net.py": net(code + scale(2))})
    assert torch.equal(logits("h1_net.py:Net"), logits("h1_net.py:Net"))


@pytest.mark.parametrize("noted", ['{"networks": {}}', "{}", "[", '{"networks": {"net.py:Net": 3}}', None])
def test_what_a_manifest_does_not_name_has_not_changed(tmp_path, noted):
    manifest = tmp_path / "manifest.json"
    if noted is not None:
        manifest.write_text(noted)
    assert network_change(manifest, {"net.py:Net": {"digest": "a" * 64, "made_of": {}}}) is None


def test_a_file_that_is_no_longer_a_part_has_changed(tmp_path):
    noted = {"net.py:Net": {"digest": "a" * 64, "made_of": {"net.py": "1", "h1_blk": "1"}}}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"networks": noted}))
    said = network_change(manifest, {"net.py:Net": {"digest": "b" * 64, "made_of": {"net.py": "1", "h1_new": "1"}}})
    assert said is not None
    assert said.endswith("(changed: h1_blk, h1_new)")


@pytest.mark.parametrize("changed", [("a.py:Net",), ("b.py:Net",), ("a.py:Net", "b.py:Net"), ()])
def test_whichever_of_several_networks_has_changed_is_named(tmp_path, changed):
    """The first of them; the file that made the difference is named too."""
    noted = {
        name: {"digest": "a" * 64, "made_of": {name[:4]: "1", "h1_blk": "1"}} for name in ("a.py:Net", "b.py:Net")
    }
    now = {name: {"digest": "b" * 64, "made_of": {**noted[name]["made_of"], name[:4]: "2"}} for name in changed}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"networks": noted}))
    said = network_change(manifest, {**noted, **now})
    if changed:
        assert said is not None
        assert said.startswith(f"the source of {changed[0]} was aaaaaaaaaaaa")
        assert f"(changed: {changed[0][:4]})" in said
    else:
        assert said is None

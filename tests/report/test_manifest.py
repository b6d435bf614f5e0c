"""What a manifest says of the program that made a result."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from drawn_measurements import planned, spec_of

import fastwi.report.manifest as made


@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
def test_the_commit_is_that_of_the_programs_own_repository(tmp_path, monkeypatch):
    """Installed within somebody else's repository it has none. A hook of Git's has the directory of its own."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    tracked = tmp_path / "tracked"
    tracked.write_text("1")
    for words in (["init", "-q"], ["add", "tracked"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    for root, content, expected in (
        (tmp_path, "1", head), (tmp_path, "changed", f"{head}+changes"), (tmp_path / ".venv", "1", None)
    ):  # fmt: skip
        source = root / "fastwi" / "report" / "manifest.py"  # which is not tracked
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
        tracked.write_text(content)
        monkeypatch.setattr(made, "__file__", str(source))
        assert made.commit() == expected


def test_networks_and_datasets_on_axes_are_all_named():
    spec = spec_of({"model.name": ["resnet20", "resnet32"], "data.path": ["data/a", "data/b"]})
    resources = SimpleNamespace(card=lambda config: SimpleNamespace(name=config.data.path.rpartition("/")[2].upper()))
    assert made.subject_of(spec, made.cards_of(planned(spec), resources)) == "resnet20, resnet32 on A, B"


def test_digests_are_of_one_dataset():
    """Of several, a manifest has each one's in `inputs`: the first one's would pass for that of all."""
    resolved = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, backend="eager")
    cards = [SimpleNamespace(name=name, source="drawn", sha256={"train": name * 64}) for name in "ab"]
    one, both = (made.manifest(some, resolved, "identity", {})["dataset"] for some in (cards[:1], cards))
    assert one == {"name": "a", "source": "drawn", "sha256": {"train": "a" * 64}}
    assert both == {"name": "a; b", "source": "drawn; drawn"}

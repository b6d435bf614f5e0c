"""What a manifest says of the program that made a result."""

import subprocess
from types import SimpleNamespace

from drawn_measurements import planned, spec_of

import fastwi.report.manifest as made


def test_the_commit_is_that_of_the_programs_own_repository(tmp_path, monkeypatch):
    """Installed within somebody else's repository it has none."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for root, expected in ((tmp_path, head), (tmp_path / ".venv" / "site-packages", None)):
        package = root / "fastwi" / "report"
        package.mkdir(parents=True)
        monkeypatch.setattr(made, "__file__", str(package / "manifest.py"))
        assert made.commit() == expected


def test_networks_and_datasets_on_axes_are_all_named():
    spec = spec_of({"model.name": ["resnet20", "resnet32"], "data.path": ["data/a", "data/b"]})
    resources = SimpleNamespace(card=lambda config: SimpleNamespace(name=config.data.path.rpartition("/")[2].upper()))
    assert made.subject_of(spec, made.cards_of(planned(spec), resources)) == "resnet20, resnet32 on A, B"

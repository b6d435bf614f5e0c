"""What is accepted, and which layer wins."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastwi.config.read
from fastwi.cli import ShowAndExit
from fastwi.config.keys import KEYS, SECTIONS
from fastwi.config.read import config_from_mapping, config_from_yaml, read_request
from fastwi.config.schema import Config
from fastwi.version import __version__

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def read(*argv: str) -> Config:
    return read_request(argv, "fastwi.train").config


def test_nothing_given_is_the_defaults() -> None:
    request = read_request([], "fastwi.train")
    assert request.config == Config()
    assert request.config_file is None
    assert (request.dry_run, request.json) == (False, False)


def test_switches_and_file_reach_the_request(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("experiment: {k: 4}")
    request = read_request(["--json", "--dry-run", f"--config={file}"], "fastwi.train")
    assert (request.config_file, request.dry_run, request.json) == (file, True, True)
    assert request.config.experiment.k == 4
    with pytest.raises(ShowAndExit) as shown:
        read_request(["--json", "--dry-run", f"--config={file}", "--print-config"], "fastwi.train")
    assert config_from_yaml(shown.value.text) == request.config


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("experiment: {k: 4, s: 5}\noptimizer: {nesterov: true}\nschedule: {drop_epochs: [3, 9]}\n")
    before = read("--experiment.k", "6", "--config", str(file))
    after = read(
        "--config", str(file), "--experiment.k=6", "--optimizer.nesterov", "false", "--schedule.drop_epochs="
    )
    assert (before.experiment.k, before.experiment.s, before.experiment.after) == (6, 5, 10)
    assert (before.optimizer.nesterov, before.schedule.drop_epochs) == (True, (3, 9))
    # Values that Python calls false override too.
    assert (after.experiment.k, after.optimizer.nesterov, after.schedule.drop_epochs) == (6, False, ())


def test_one_read_leaves_nothing_behind_for_the_next() -> None:
    assert read("--experiment.k", "3").experiment.k == 3
    assert read().experiment.k == 10


def test_environment_variables_have_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "experiment.k": "99",
        "EXPERIMENT.K": "98",
        "experiment.k.x": "1",
        "experiment": "y",
    }.items():
        monkeypatch.setenv(name, value)
    assert read("--experiment.s", "4").experiment.k == 10
    assert read() == Config()


@pytest.mark.parametrize(
    ("words", "value"),
    [(("true", "True", "yes", "on", "1"), True), (("false", "FALSE", "no", "off", "0"), False)],
)
def test_booleans_on_the_command_line(words: tuple[str, ...], value: bool) -> None:
    for word in words:
        assert read("--optimizer.nesterov", word).optimizer.nesterov is value
        assert read(f"--optimizer.nesterov={word}").optimizer.nesterov is value


@pytest.mark.parametrize(
    ("word", "value"), [("1e-4", 1e-4), ("1E+2", 100.0), ("3", 3.0), (".5", 0.5), ("2.", 2.0), ("-0.0", 0.0)]
)
def test_floats_in_both_places(word: str, value: float) -> None:
    for config in (
        read("--optimizer.learning_rate", word),
        config_from_yaml(f"optimizer: {{learning_rate: {word}}}"),
    ):
        assert repr(config.optimizer.learning_rate) == repr(value)


def test_tuples_in_both_places() -> None:
    assert read("--schedule.drop_epochs", "80").schedule.drop_epochs == (80,)
    assert read("--schedule.drop_epochs=80, 120").schedule.drop_epochs == (80, 120)
    assert read("--experiment.weights", "1e0,0").experiment.weights == (1.0, 0.0)
    assert config_from_yaml("schedule: {drop_epochs: []}").schedule.drop_epochs == ()
    assert config_from_yaml("experiment: {weights: [1, 0]}").experiment.weights == (1.0, 0.0)
    assert config_from_mapping({"schedule": {"drop_epochs": (3,)}}).schedule.drop_epochs == (3,)


def test_text_is_kept_as_it_is() -> None:
    assert read("--run.name=--odd").run.name == "--odd"
    assert read("--run.name", "2024").run.name == "2024"
    assert read("--run.name", "").run.name == ""
    assert config_from_yaml("run: {name: 'yes'}").run.name == "yes"


def test_help_and_version_win_over_mistakes() -> None:
    for flag in ("--help", "-h"):
        with pytest.raises(ShowAndExit) as shown:
            read_request(["--nonsense", flag], "fastwi.train", "Trains.")
        assert shown.value.text.startswith("usage: python -m fastwi.train ")
    with pytest.raises(ShowAndExit) as shown:
        read_request(["stray", "--version"], "fastwi.train")
    assert shown.value.text == f"fastwi {__version__}"


def test_help_lists_every_key_with_its_facts() -> None:
    with pytest.raises(ShowAndExit) as shown:
        read_request(["--help"], "fastwi.train", "Trains a parent.")
    text = " ".join(shown.value.text.split())
    assert shown.value.text.isascii()
    assert "Trains a parent." in text
    for section in SECTIONS:
        assert f"{section}: " in text
    for key in KEYS.values():
        assert f"--{key.path} " in text
        assert " ".join(key.help.split()) in text
    assert (
        "--experiment.k INT epochs that the parent trains before cloning [default 10; in epochs; at least 0]" in text
    )
    assert "--experiment.momentum {reset,average,keep}" in text
    assert "--schedule.drop_epochs INT,INT,... epochs at which the rate is multiplied [default 80,120;" in text
    assert "--optimizer.nesterov BOOL Nesterov's form of momentum [default false]" in text


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from fastwi.cli import run_command\n"
        "from fastwi.config.read import read_request\n"
        "def body():\n"
        "    read_request(['--help'], 'fastwi.train')\n"
        "    return 1\n"
        "status = run_command(body)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)\n"
    )
    root = Path(fastwi.config.read.__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--optimizer.learning_rate FLOAT" in ended.stdout


def test_configs_are_there() -> None:
    assert {"digits.yaml", "fig1_cifar10_resnet20.yaml"} <= {file.name for file in CONFIGS}


@pytest.mark.parametrize("file", [f for f in CONFIGS if "\nbase:" not in f.read_text()], ids=lambda file: file.name)
def test_every_config_loads(file: Path) -> None:
    assert read("--config", str(file)).data.path.startswith("data/")


def test_figure_1_is_the_papers_protocol() -> None:
    file = next(file for file in CONFIGS if file.name == "fig1_cifar10_resnet20.yaml")
    assert read("--config", str(file)) == Config()

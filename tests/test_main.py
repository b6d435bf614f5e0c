"""`fastwi COMMAND`: one name for all commands."""

import importlib

import pytest

from fastwi.__main__ import COMMANDS, main


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_says_help(name, capsys):
    if name != "data-prep":
        module = importlib.import_module(f"fastwi.{name}" + (".__main__" if name == "report" else ""))
        assert callable(module.main)
    try:
        code = main([name, "--help"])
    except SystemExit as shown:  # argparse's way
        code = shown.code
    assert code == 0
    assert name in capsys.readouterr().out


def test_unknown_command(capsys):
    assert main(["swep"]) == 2
    assert capsys.readouterr().err == "fastwi: error: fastwi: 'swep' is not a command; did you mean sweep?\n"

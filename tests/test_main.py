"""`fastwi COMMAND`: one name for all commands."""

import subprocess
import sys

import pytest

from fastwi.__main__ import COMMANDS, main


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_help(name, capsys):
    try:
        code = main([name, "--help"])
    except SystemExit as shown:  # argparse's way
        code = shown.code
    assert code == 0
    assert name in capsys.readouterr().out


def test_help_needs_neither_torch_nor_polars():
    code = (
        "import sys; from fastwi.__main__ import main\n"
        "for name in ('train', 'sweep', 'convert', 'doctor', 'tune', 'store'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'polars'} & sys.modules.keys()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_unknown_command(capsys):
    assert main(["swep"]) == 2
    assert capsys.readouterr().err == "fastwi: error: fastwi: 'swep' is not a command; did you mean sweep?\n"

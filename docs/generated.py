"""Pages that follow from declarations: keys, commands, columns. Written where their text has changed."""

import io
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path


COMMANDS = ("train", "sweep", "analyze", "report", "store", "convert", "tune", "doctor")


def _help(module: str, *arguments: str) -> str:
    """What `python -m module --help` prints."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [module, *arguments, "--help"]
    try:
        with redirect_stdout(printed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return printed.getvalue().rstrip()


def _commands() -> str:
    names = {f"fastwi {name}": f"fastwi.{name}" for name in COMMANDS} | {"fastwi data-prep": "data_prep"}
    sections = [f"## {name}\n\n```text\n{_help(module)}\n```\n" for name, module in names.items()]
    return "# Commands\n\n" + "\n".join(sections)


def write_pages(directory: Path) -> None:
    """Write all generated pages into `directory`."""
    directory.mkdir(exist_ok=True)
    for name, text in {"commands": _commands()}.items():
        page = directory / f"{name}.md"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)

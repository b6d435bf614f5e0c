"""Pages of the reference that follow from declarations: keys, commands, columns. `python docs/generated.py` writes them.

They are committed, so that they can be read without building the site; a test compares them with the declarations.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fastwi.__main__ import COMMANDS
from fastwi.analysis.columns import Columns
from fastwi.config.schema import section_keys
from fastwi.config.sweep import ALL_SECTIONS, NAMES
from fastwi.config.write import default_text, title
from fastwi.report.rows import COLUMNS, GAIN_COLUMNS
from fastwi.report.summary import sentence
from fastwi.studies import all_studies

HERE = Path(__file__).parent
MODULES = {"data-prep": "data_prep"}
"""Of commands, where it is not fastwi.COMMAND."""

_CONFIG = """\
# Configuration keys

A configuration is a YAML file with a section for each heading below. `--section.key value` on the command line overrides the file, and the file overrides
the defaults. A sweep file has the same sections, `axes` (any key with a yes under "axis", with the values that it takes in turn: a list, or a range such as
`1..4` or `0..0.5 step 0.25`), `sweep`, `analysis`, and `base`: another file under this one.

Unknown keys, values of another type, values out of bounds and keys that are given twice are refused, all of a file at once, a line each.
"""
_COLUMNS = """\
# Columns of results

The Parquet files hold unit and meaning of each column in their metadata, under `fastwi.columns`. A number that JSON does not have is a string in
metrics.jsonl and in all `--json` output: `"NaN"`, `"Infinity"`, `"-Infinity"`.

## metrics.jsonl of a run

| column | meaning |
|---|---|
| `stage` | `parent`, `children`, `interpolation` or `after` |
| `epoch` | epochs since initialisation: children of a parent at k start from k, their average from k + s |
| `network` | `parent`, `child 1` ... `child n`, `average` |
| `batch_norm` | statistics used for testing: `own` (of the average: the mean of the children's), or `recomputed` on training images |
| `train_loss` | nats: mean cross-entropy of the epoch's batches, each before its step |
| `learning_rate` | at the start of the epoch |
| `test_loss`, `test_accuracy_%` | nats and %, on the test images without augmentation; NaN for a network that is not finite |
"""


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [columns, *cells]]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:], ""]


def config_page() -> str:
    """Every key of every section: default, what is allowed, whether it can be an axis, meaning."""
    lines = [_CONFIG]
    for section in ALL_SECTIONS:
        rows = []
        for key in section_keys(section, NAMES.values()):
            default = f"`{default_text(key)}`" if default_text(key) else "empty"
            type_name = "list of " * key.many + key.scalar.__name__
            values = ", ".join(filter(None, (type_name, key.allowed, key.unit)))
            axis = "yes" if f"axes.{key.path}" in NAMES else "no"
            rows.append([f"`{key.path}`", default, values, axis, key.help])
        lines += [f"## {section}", "", title(section), ""]
        lines += _table(["key", "default", "values", "axis", "meaning"], rows)
    return "\n".join(lines)


def _columns(title: str, about: str, columns: Columns) -> list[str]:
    rows = [[f"`{name}`", column.unit, column.help] for name, column in columns.items()]
    return [title, "", *([about, ""] if about else []), *_table(["column", "unit", "meaning"], rows)]


def columns_page() -> str:
    """Every column of every table."""
    lines = [_COLUMNS]
    axes = "Before these: the axes of the sweep other than k and s, by dotted name."
    lines += _columns("## results.parquet of a sweep", f"One row a measurement, in long form. {axes}", COLUMNS)
    lines += _columns("## gains.parquet of a sweep", f"One row an average. {axes} Null: not measured.", GAIN_COLUMNS)
    for name, study in all_studies().items():
        lines += [f"## analyses/{name}", "", f"{sentence(study.question)}. {axes}", ""]
        for frame, columns in study.columns.items():
            lines += _columns(f"### {frame}.parquet", "", columns)
    return "\n".join(lines)


def commands_page() -> str:
    """What each command prints for --help."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(HERE.parent)}
    sections = ["# Commands\n"]
    for name in COMMANDS:
        command = [sys.executable, "-m", MODULES.get(name, f"fastwi.{name}"), "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.rstrip()
        sections.append(f"## fastwi {name}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def pages() -> Mapping[str, str]:
    """The text of each page by its file below docs/reference."""
    return {"config.md": config_page(), "columns.md": columns_page(), "commands.md": commands_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / "reference" / name).write_text(text)

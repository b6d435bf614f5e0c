"""`--help` of the commands that take a configuration, made of the declarations of the keys."""

import textwrap
from collections.abc import Iterable, Mapping

from fastwi.config.schema import SECTIONS, section_keys
from fastwi.config.sweep import ALL_SECTIONS, NAMES
from fastwi.config.write import facts, shown_default, title
from fastwi.config.yamlfile import shipped_configs

WIDTH = 100
SWITCHES = {
    "dry-run": "check everything, say what would be done, and stop",
    "print-config": "print the whole configuration as YAML and stop",
    "json": "print results as JSON",
}
_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}
SAMPLE = """\
base: fig1.yaml          # a config or sweep file, relative to this one, or fastwi:NAME; its values come first
experiment:
  after: 10              # sections, as in a config file
axes:                    # keys of the configuration, each with the values that it takes in turn
  experiment.k: [1, 2, 4, 8]
  experiment.s: 1..4     # a range, both ends in: 1, 2, 3, 4
  experiment.recompute_images: 1000..5000 step 1000
  augment.flip: 0..0.5 step 0.25
  schedule.drop_epochs: [[80, 120], [100]]    # a key that takes a list: a list of lists
sweep:                   # the sweep's options
  parents: 0..4          # initialisation seeds; intervals and verdicts need 5
  children: 8
"""
"""A sweep file that shows every form."""


def run_help(command: str, description: str, topic: str) -> str:
    """The help of `python -m command`. `topic`: a section for all about its keys, `all`; else the short help."""
    return _help(command, description, {}, "", SECTIONS, topic)


def sweep_help(topic: str) -> str:
    """The help of `python -m fastwi.sweep`."""
    flags = {
        "--axes.section.key VALUES": "override or add an axis: 1,2,4 or '[1, 2, 4]' or 1..4",
        "--sweep.option VALUE": "override an option of the sweep (below)",
        "--shard I/N": "carry out part I of N, 1/N to N/N, such as 2/4",
    }
    what = "Carries out the protocol at every cell of a grid, for parents, tuples of children and alphas."
    return _help("fastwi.sweep", what, flags, "A sweep file:\n" + textwrap.indent(SAMPLE, "  "), ["sweep"], topic)


def analysis_help(studies: Mapping[str, str], topic: str) -> str:
    """The help of `python -m fastwi.analyze`."""
    flags = {
        "--analysis.option VALUE": "override an option of the file's section analysis (below)",
        "--list": "print the studies and stop; with --json as JSON",
    }
    what = (
        "Answers one question for a finished sweep from its stored states and measurements, and writes tables, "
        "figures and the data to analyses/NAME in the sweep's directory. Nothing is trained."
    )
    text = "\n".join(["The studies:", *study_lines(studies)])
    return _help("fastwi.analyze NAME", what, flags, text, ["analysis"], topic)


def study_lines(studies: Mapping[str, str]) -> list[str]:
    """Each study with what it answers, one line each."""
    width = max(map(len, studies))
    return [f"  {name:<{width}}  {text}" for name, text in studies.items()]


def _help(
    command: str, description: str, flags: Mapping[str, str], text: str, sections: Iterable[str], topic: str
) -> str:
    if topic in ALL_SECTIONS or topic == "all":
        chosen = ALL_SECTIONS if topic == "all" else [topic]
        return "\n\n".join("\n".join([f"{name}: {title(name)}", *_key_lines(name)]) for name in chosen)
    lines = [f"usage: python -m {command} [--config FILE] [--section.key VALUE ...]", ""]
    lines += [*_wrap(description, ""), "", "A flag wins over the config file, the file over the defaults.", ""]
    flags = {
        "--config FILE": f"YAML file, or one that comes with fastwi: {', '.join(shipped_configs())}",
        "--section.key VALUE": "override a value of the file",
        **flags,
        **{f"--{name}": text for name, text in SWITCHES.items()},
        "--version": "print the version and stop",
        "--help SECTION": f"all about the keys of {', '.join(ALL_SECTIONS)}; --help all: of all sections",
    }
    for flag, meaning in flags.items():
        lines += [f"  {flag}", *_wrap(meaning, " " * 6)]
    lines += ["", text.rstrip("\n")] if text else []
    for section in sections:
        keys = (f"{key.name} {shown_default(key)}".rstrip() for key in section_keys(section, NAMES))
        lines += ["", f"{section}: {title(section)}", *_wrap("Keys and defaults: " + ", ".join(keys), "  ")]
    return "\n".join(lines)


def _key_lines(section: str) -> list[str]:
    lines = []
    for key in section_keys(section, NAMES):
        one = "{" + ",".join(key.choices) + "}" if key.choices else _METAVARS[key.scalar]
        lines.append(f"  --{key.path} " + (f"{one}{key.separator}{one}{key.separator}..." if key.many else one))
        lines += _wrap(f"{key.help} [{facts(key)}]", " " * 6)
    return lines


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

"""From the command line of `python -m fastwi.analyze` to a checked `AnalysisRequest`."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastwi.cli import ShowAndExit
from fastwi.config import commandline
from fastwi.config.analysis import AnalysisOptions, analysis_problems
from fastwi.config.helptext import WIDTH, key_lines, shipped_lines, switch_lines
from fastwi.config.keys import section_title
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepfile import SWEEP_FLAGS, default_name, read_arguments
from fastwi.config.sweeplayers import ANALYSIS_OPTIONS
from fastwi.config.sweepwrite import option_lines, sweep_to_yaml
from fastwi.config.wording import did_you_mean, show
from fastwi.errors import ConfigError

_FLAGS = """
  NAME
      the study, the first word
  --config FILE
      the sweep file that the sweep was carried out with, or the sweep.yaml beside its results
{shipped}
  --analysis.option VALUE
      override an option of the file's section analysis (below)
  --section.key VALUE, --axes.section.key VALUES, --sweep.option VALUE
      what the sweep was given beside its file; python -m fastwi.sweep --help lists them
  --list
      print the studies and stop; with --json as JSON
"""


@dataclass(frozen=True)
class AnalysisRequest:
    """What the analyze command was asked to do.

    `name`: the study; empty where `list_only`. `sweep`: the name of the sweep's directory.
    """

    name: str
    spec: SweepSpec
    options: AnalysisOptions
    config_file: Path | None
    sweep: str
    list_only: bool
    dry_run: bool
    json: bool

    @property
    def directory(self) -> Path:
        """Where the study's files go: `analyses/NAME` in the sweep's results, or in analysis.directory."""
        home = (
            Path(self.options.directory) if self.options.directory else Path(self.spec.options.directory, self.sweep)
        )
        return home / "analyses" / self.name


def read_analysis_request(
    argv: Sequence[str], studies: Mapping[str, str], command: str = "fastwi.analyze", description: str = ""
) -> AnalysisRequest:
    """Read the analyze command's arguments (without the program's name), its sweep file and the file's bases.

    Args:
        argv: the arguments, such as `sys.argv[1:]`.
        studies: the studies that there are, each with what it answers in one line.
        command: the module that was run, for `--help`.
        description: what the command does, for `--help`.

    Raises:
        ConfigError: with one line for each problem found, in the command line, the files and the values.
        ShowAndExit: `--help`, `--version` or `--print-config` stands in `argv`.
    """
    commandline.answer(argv, lambda: analysis_help_text(command, description, studies))
    words = [word for word in argv if word != "--list"]
    list_only = len(words) < len(argv)
    problems = []
    name = ""
    if words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in studies:
            problems.append(f"{show(name)}: unknown study; {did_you_mean(name, studies)}")
    elif not list_only:
        problems.append("the study's name is missing; write it first, one of " + ", ".join(studies))
    arguments = commandline.parse(words, (*SWEEP_FLAGS, *ANALYSIS_OPTIONS))
    problems += arguments.problems
    spec, options, origins = read_arguments(arguments, problems)
    for line in analysis_problems(options, spec):
        problems.append(f"{origins.get(line.partition(':')[0], '')}{line}")
    if problems:
        raise ConfigError("\n".join(problems))
    request = AnalysisRequest(
        name=name,
        spec=spec,
        options=options,
        config_file=arguments.config_file,
        sweep=spec.options.name or default_name(arguments.config_file),
        list_only=list_only,
        dry_run="dry-run" in arguments.switches,
        json="json" in arguments.switches,
    )
    if "print-config" in arguments.switches and not list_only:
        raise ShowAndExit(analysis_to_yaml(request).removesuffix("\n"))
    return request


def analysis_to_yaml(request: AnalysisRequest) -> str:
    """The sweep and the options of its analyses as one sweep file (ASCII) that reads back to the same."""
    title = section_title(AnalysisOptions)
    lines = ["", f"analysis:  # {title}", *option_lines(ANALYSIS_OPTIONS.values(), request.options)]
    return sweep_to_yaml(request.spec) + "\n".join(lines) + "\n"


def analysis_help_text(command: str, description: str, studies: Mapping[str, str]) -> str:
    """The help of `python -m command`: the studies, the flags, and every option of the analyses."""
    switches = " ".join(f"[--{switch}]" for switch in ("list", *commandline.SWITCHES))
    usage = f"usage: python -m {command} NAME [--config FILE] [--analysis.option VALUE ...] "
    usage += f"[--section.key VALUE ...] [--axes.section.key VALUES ...] [--sweep.option VALUE ...] {switches}"
    lines = textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)
    lines += ["", *textwrap.wrap(description, WIDTH)] if description else []
    lines += ["", "The studies:", *study_lines(studies)]
    lines += ["", "A flag wins over the sweep file, the file over its base, the base over the defaults."]
    lines += [*_FLAGS.format(shipped="\n".join(shipped_lines())).rstrip().splitlines(), *switch_lines()]
    lines += ["", f"analysis: {section_title(AnalysisOptions)}", *key_lines(ANALYSIS_OPTIONS.values())]
    return "\n".join(lines)


def study_lines(studies: Mapping[str, str]) -> list[str]:
    """Each study with what it answers, one line each."""
    width = max(map(len, studies))
    return [f"  {name:<{width}}  {text}" for name, text in studies.items()]

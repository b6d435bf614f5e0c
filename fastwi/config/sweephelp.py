"""`python -m fastwi.sweep --help`: the sweep's options, how axes are written, and where the keys are listed."""

import textwrap

from fastwi.config.commandline import SWITCHES
from fastwi.config.helptext import WIDTH, key_lines, shipped_lines, switch_lines
from fastwi.config.keys import section_title
from fastwi.config.sweep import SweepOptions
from fastwi.config.sweeplayers import LONGEST_CHAIN, OPTIONS

_FLAGS = """
  --config FILE
      sweep file: a config file's sections, and base, axes and sweep (below)
{shipped}
  --section.key VALUE
      override a value of the base; python -m fastwi.train --help lists the keys
  --axes.section.key VALUES
      override or add an axis: 1,2,4 or '[1, 2, 4]' or 1..4
  --sweep.option VALUE
      override an option of the sweep (below)
  --shard I/N
      carry out part I of N, 1/N to N/N, such as 2/4
"""

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
  parents: 0..4           # initialisation seeds; intervals and verdicts need 5
  children: 8
"""
"""A sweep file that shows every form."""

_RULES = f"""
Every combination of axis values is a cell; every cell has all parents, tuples and alphas. A base may have a
base itself, {LONGEST_CHAIN} in a chain at most. No axes can be: run.*, seeds.*, experiment.children and
experiment.weights, for which the sweep's options stand, and engine.* but for engine.precision.
A file may have a section analysis too, for the studies of the finished sweep: python -m fastwi.analyze --help.
"""


def sweep_help_text(command: str, description: str) -> str:
    """The help of `python -m command`; `description` says in a line or two what it does."""
    usage = f"usage: python -m {command} [--config FILE] [--section.key VALUE ...] [--axes.section.key VALUES ...] "
    usage += "[--sweep.option VALUE ...] [--shard I/N] " + " ".join(f"[--{switch}]" for switch in SWITCHES)
    lines = textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)
    if description:
        lines += ["", *textwrap.wrap(description, WIDTH)]
    lines += ["", "A flag wins over the sweep file, the file over its base, the base over the defaults."]
    lines += [*_FLAGS.format(shipped="\n".join(shipped_lines())).rstrip().splitlines(), *switch_lines()]
    lines += ["", "A sweep file:", *(f"  {line}" for line in SAMPLE.splitlines())]
    lines += ["", *textwrap.wrap(" ".join(_RULES.split()), WIDTH)]
    lines += ["", f"sweep: {section_title(SweepOptions)}", *key_lines(OPTIONS.values())]
    return "\n".join(lines)

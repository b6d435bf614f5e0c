"""`python -m fastwi.convert export|import`: a member of a checkpoint as an ordinary state dict, and back."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from fastwi.cli import command
from fastwi.config.schema import KEYS
from fastwi.errors import ConfigError, UserError
from fastwi.files import to_json
from fastwi.models.names import model_problem
from fastwi.version import __version__

_EPILOG = "Exit codes: 0 ok; 2 bad use, or a file that cannot be read, used or written; 130 Ctrl-C."
_EXPORT = """\
Write one member of a checkpoint (a run's checkpoints/*.safetensors, a store's state) as an ordinary state dict, for
network.load_state_dict(fastwi.load_state_dict(FILE)), or torch.load(FILE) of a .pt file."""
_IMPORT = """\
Write ordinary state dicts as the members of one checkpoint, in their order. FILE: what torch.save wrote (read with
weights_only=True), or safetensors. Wrappers such as {'state_dict': ...} and the prefixes module. and _orig_mod. are
removed, and reported."""
_OPTIMIZER = """\
include momentum by parameter name: {'state_dict': ..., 'momentum': ...} in a .pt file, tensors called momentum.NAME
in a .safetensors file; for torch.optim.SGD: optimizer.state[parameter]['momentum_buffer'] = momentum[name]"""


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad use or input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    done, facts = _export(arguments) if arguments.action == "export" else _import(arguments)
    print(to_json({"file": arguments.out, **facts}) if arguments.json else f"{arguments.out}: {done}")
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Exchange networks with other programs: fastwi checkpoints from and to ordinary state dicts."
    parser = argparse.ArgumentParser(
        "python -m fastwi.convert", description=description, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common: dict[str, Any] = {"epilog": _EPILOG, "allow_abbrev": False}
    out = actions.add_parser("export", help="a checkpoint's member to a state dict", description=_EXPORT, **common)
    out.add_argument("checkpoint", metavar="CHECKPOINT", help="the population to take a member from")
    out.add_argument("--member", type=int, metavar="M", help="which member, from 0; needed where there are several")
    out.add_argument("--optimizer", action="store_true", help=_OPTIMIZER)
    into = actions.add_parser("import", help="state dicts to one checkpoint", description=_IMPORT, **common)
    into.add_argument("files", nargs="+", metavar="FILE", help="a state dict, one a member")
    into.add_argument("--model", required=True, metavar="NAME", help="as model.name: a built-in or your own network")
    into.add_argument("--classes", required=True, type=int, metavar="K", help="classes of the network")
    size = "side of the images, or height and width such as 24x32, for a network of your own that takes image_size"
    into.add_argument("--image-size", metavar="PIXELS", help=size)
    into.add_argument("--width", type=float, default=1.0, help="multiplier of channels, as model.width; default: 1")
    for action, endings in ((out, ".safetensors, .pt or .pth"), (into, ".safetensors")):
        action.add_argument("--out", required=True, metavar="FILE", help=f"what to write: {endings}")
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def _export(arguments: argparse.Namespace) -> tuple[str, dict[str, int]]:
    """What was done, in words and as facts."""
    # torch takes seconds to import, and help needs none of it.
    from fastwi.population.state_file import read_member, save_state_dict

    member = arguments.member or 0
    if member < 0:
        raise UserError(f"--member: {member} is not a member; they count from 0")
    population = read_member(arguments.checkpoint, arguments.member)
    momentum = population.momentum(0) if arguments.optimizer else None
    save_state_dict(population.state_dict(0), arguments.out, momentum)
    return f"member {member} of {arguments.checkpoint}", {"member": member}


def _image_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, of 32 or of 24x32."""
    from fastwi.beton.format import MAX_SIDE  # imports NumPy

    # At most five digits: int() refuses thousands of them, and no image is so large.
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    height, width = map(int, found.groups(default=found[1])) if found is not None else (0, 0)
    if not 1 <= max(height, width) <= MAX_SIDE:
        fix = f"give a side of 1 to {MAX_SIDE} pixels, or height and width such as 24x32"
        raise UserError(f"--image-size: {text}; {fix}")
    return height, width


def _import(arguments: argparse.Namespace) -> tuple[str, dict[str, int]]:
    problem = model_problem(arguments.model, arguments.width)
    if problem is not None:
        raise UserError(problem.replace("model.name", "--model").replace("model.width", "--width"))
    try:
        KEYS["model.width"].check(arguments.width)
    except ValueError as error:
        raise UserError(f"--width: {error}") from None
    if arguments.classes < 1:
        raise UserError(f"--classes: {arguments.classes}; give at least 1")
    image_size = None if arguments.image_size is None else _image_size(arguments.image_size)
    if Path(arguments.out).suffix != ".safetensors":
        raise UserError(f"--out: {arguments.out} does not end in .safetensors; call it so")

    from fastwi.models.registry import build_model
    from fastwi.population import Layout, Population
    from fastwi.population.state_file import read_state_file
    from fastwi.report.summary import count_of

    try:
        network = build_model(arguments.model, arguments.classes, arguments.width, image_size)
    except ConfigError as error:
        said = str(error).replace("model.name", "--model").replace("give image_size", "give --image-size")
        raise ConfigError(said) from error
    layout = Layout.of(network)
    population = Population.zeros(layout, len(arguments.files))
    for m, file in enumerate(arguments.files):
        source = read_state_file(file)
        for note in source.notes:
            print(f"fastwi: {file}: {note}", file=sys.stderr)
        source.copy_into(population, m)
    population.save(arguments.out)
    members = population.members
    return f"{count_of(members, 'member')} of {arguments.model}", {"members": members}


if __name__ == "__main__":
    sys.exit(main())

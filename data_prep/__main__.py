"""`fastwi data-prep DATASET --out DIR`, or `python -m data_prep ...`: the command line of `data_prep.prepare`."""

import argparse
import sys
from typing import NoReturn

from data_prep import WRITE_MODES, WRITERS, prepare
from data_prep.progress import shown_progress
from fastwi.cli import command
from fastwi.errors import UserError, printable
from fastwi.version import __version__

_HELP = """\
Write a dataset as train.beton, test.beton, a digest of each image and card.json into a directory.

datasets:
    cifar10    CIFAR-10: 50,000 + 10,000 images of 32 x 32, 10 classes; downloaded, or from --source
    cifar100   CIFAR-100: likewise, 100 classes
    svhn       SVHN, cropped digits: 73,257 + 26,032 images of 32 x 32; downloaded, or from --source
    cinic10    CINIC-10: 90,000 + 90,000 images of 32 x 32; from --source, an image folder or a zip of it
    folder     an image folder, or a zip of one: [prefix/]train/<class>/*.png or *.jpg, test/<class>/...
    digits     scikit-learn's digits: 1,437 + 360 images, 8 x 8 repeated to 16 x 16; needs no download

The .beton files are FFCV's: uint8 RGB images, raw or JPEG, and an integer label each. They are replaced only when
complete. Exit codes: 0 ok, 1 the run failed, 2 bad input or use, 130 interrupted, 143 terminated."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(program: str) -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=program, description=_HELP, formatter_class=style, allow_abbrev=False)
    add = parser.add_argument
    add("--version", action="version", version=f"fastwi {__version__}")
    add("dataset", metavar="DATASET", help="one of those above")
    add("--out", required=True, metavar="DIR", help="directory to write; made if missing")
    source = "the folder or the zip; or a local copy, as torchvision lays it out, or a CIFAR .tar.gz"
    add("--source", metavar="PATH", help=source)
    add("--name", help="the dataset's name in card.json")
    writer = "FFCV, the project's own, or FFCV where it is installed (auto); the files are the same"
    add("--writer", metavar="{" + ",".join(WRITERS) + "}", default="auto", help=writer)
    folder = parser.add_argument_group("for folder and cinic10")
    add = folder.add_argument
    add("--size", type=int, metavar="N", help="resize every image to N x N pixels, without a crop")
    add("--with-valid", action="store_true", help="add valid/ to the training images")
    mode = (
        "pixels; or, for sets larger than memory, smart: JPEG files as they are, other images raw, so that nothing "
        "is lost; jpeg: others encoded as JPEGs"
    )
    add("--write-mode", metavar="{" + ",".join(WRITE_MODES) + "}", default="raw", help=mode)
    colour = "lay images with transparent pixels on this colour: white, #808080; without it they are refused"
    add("--background", metavar="COLOUR", help=colour)
    add("--keep-size", action="store_true", help="store images of several sizes as they are")
    return parser


def _run(arguments: list[str], program: str) -> int:
    options = vars(_parser(program).parse_args(arguments))
    warnings: list[str] = []
    directory = prepare(report=shown_progress(), warn=warnings.append, **options)
    for line in warnings:
        print(f"fastwi: warning: {printable(line)}", file=sys.stderr)
    from fastwi.data.card import read_card

    card = read_card(directory)
    height, width, _ = card.image_shape
    counts = " + ".join(f"{count:,} {split}" for split, count in card.counts.items())
    sizes = f"{height} x {width}" if card.sizes == "one" else "several sizes"
    kind = "" if card.encoding == "raw" else f" ({card.encoding})"
    print(f"{directory}: {card.name}, {counts} images of {sizes}{kind}, {len(card.classes)} classes")
    return 0


def main(arguments: list[str] | None = None, program: str = "python -m data_prep") -> int:
    """Run the command and return its exit code. `arguments`: None takes those of the process."""
    return command(lambda words: _run(words, program))(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""`python examples/average_two_checkpoints.py A.pt B.pt OUT.pt`: the mean of two networks, whoever trained them.

A and B are state dicts (.pt, .pth, .safetensors) of one architecture, such as two checkpoints of one run. Batch-norm
statistics are averaged too: recompute them (torch.optim.swa_utils.update_bn) before you judge the result.
"""

import sys

import fastwi
from fastwi.cli import command
from fastwi.errors import UserError


@command  # what is wrong with a file is one line and exit code 2
def main(files: list[str]) -> int:
    """Average all files but the last, and write that one. Returns the exit code."""
    if len(files) < 3:
        print(f"usage: python {sys.argv[0]} A.pt B.pt OUT.pt", file=sys.stderr)
        return 2
    try:
        average = fastwi.average(files[:-1])
    except ValueError as error:  # networks of two architectures
        raise UserError(str(error)) from error
    fastwi.save_state_dict(average, files[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())

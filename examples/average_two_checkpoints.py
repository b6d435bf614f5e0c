"""`python examples/average_two_checkpoints.py A.pt B.pt OUT.pt`: the mean of two networks, whoever trained them.

A and B are state dicts (.pt, .pth, .safetensors) of one architecture, such as two checkpoints of one run. Batch-norm
statistics are averaged too: recompute them (torch.optim.swa_utils.update_bn) before you judge the result.
"""

import sys

import fastwi
from fastwi.errors import UserError


def main(*files: str) -> int:
    """Average all files but the last, and write that one. Returns the exit code."""
    if len(files) < 3:
        print(f"usage: python {sys.argv[0]} A.pt B.pt OUT.pt", file=sys.stderr)
        return 2
    try:
        fastwi.save_state_dict(fastwi.average(files[:-1]), files[-1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`python examples/average_two_checkpoints.py A.pt B.pt OUT.pt`: the mean of two networks, whoever trained them.

A and B are state dicts (.pt, .pth, .safetensors) of one architecture, such as two checkpoints of one run. Batch-norm
statistics are averaged too: recompute them (torch.optim.swa_utils.update_bn) before you judge the result.
"""

import sys

import fastwi

*inputs, out = sys.argv[1:]
fastwi.save_state_dict(fastwi.average(inputs), out)

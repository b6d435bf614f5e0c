"""`python examples/average_two_checkpoints.py A.pt B.pt OUT.pt`: the mean of two networks, whoever trained them.

A and B are state dicts (.pt, .pth, .safetensors) of one architecture, such as two checkpoints of one run. Batch-norm
statistics are averaged too: recompute them (torch.optim.swa_utils.update_bn) before you judge the result.
"""

import sys

import fastwi

first, second, out = sys.argv[1:]
state = fastwi.average([fastwi.load_state_dict(first), fastwi.load_state_dict(second)])
fastwi.save_state_dict(state, out)

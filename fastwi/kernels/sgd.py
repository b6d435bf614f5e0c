"""SGD with momentum on all rows of [M, P] in one pass, each member at its own rate (as torch.optim.SGD defines it).

    d = u g + wd w
    v = mu v + d
    w = w - r_m v              or, with Nesterov,    w = w - r_m (d + mu v)

in float32, with v = 0 before the first step; u is the inverse of the gradients' scale. Memory moved a parameter: 20
bytes (w, g and v read, w and v written), and 2 more for a low-precision copy of the new weights, which saves a pass
of its own (6).

On a GPU with Triton: one launch, which waits for nothing and reads all that changes from the device, so that it can
be captured in a CUDA graph. On a CPU: torch's fused SGD, row after row.

Shapes: M members, P parameters of each, S steps of a rate table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastwi.kernels.interpolate import has_triton

LOW_DTYPES = (torch.bfloat16, torch.float16)


def sgd_reference_(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    momentum_MP: Tensor,
    rate_M: Tensor,
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    low_MP: Tensor | None = None,
    skip_M: Tensor | None = None,
    inverse_scale_M: Tensor | None = None,
) -> None:
    """`sgd_` in torch's own functions, in any float dtype, on any device, without waiting for it."""
    g_MP = gradient_MP if inverse_scale_M is None else gradient_MP * inverse_scale_M[:, None]
    v_MP = step_MP = g_MP + weight_decay * weights_MP
    if momentum:
        v_MP = momentum * momentum_MP + v_MP
        step_MP = step_MP + momentum * v_MP if nesterov else v_MP
    w_MP = weights_MP - rate_M[:, None] * step_MP
    skipped_M1 = None if skip_M is None else (skip_M != 0)[:, None]
    weights_MP.copy_(w_MP if skipped_M1 is None else torch.where(skipped_M1, weights_MP, w_MP))
    if momentum:
        momentum_MP.copy_(v_MP if skipped_M1 is None else torch.where(skipped_M1, momentum_MP, v_MP))
    if low_MP is not None:
        low_MP.copy_(weights_MP)


@torch.no_grad()
def sgd_(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    momentum_MP: Tensor,
    rate: Tensor,
    *,
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    step: Tensor | None = None,
    low_MP: Tensor | None = None,
    skip_M: Tensor | None = None,
    inverse_scale: Tensor | None = None,
) -> None:
    """One step of every member, in place: weights and momentum change, gradients do not.

    weights, gradients and momentum: float32 [M, P], rows contiguous, no memory in common. `rate`: float32 [M], or a
    table [S, M] whose row `step`, int64 [1], is used (0 .. S - 1, not checked); it may be an expanded tensor. With
    `momentum` 0, momentum_MP is neither read nor written.

    low_MP: bfloat16 or float16, receives every member's weights as they are after the step. skip_M: bool or integer
    [M]; members with a nonzero entry keep weights and momentum to the bit, whatever their gradients hold.
    inverse_scale: float32 [M], or [1] for all, by which gradients are multiplied. All tensors are on one device; in a
    captured call, their values may change from replay to replay.

    A member's result does not depend on its neighbours. Raises ValueError for wrong shapes, dtypes, strides, devices.
    """
    M, P = weights_MP.shape
    for name, x in (("weights_MP", weights_MP), ("gradient_MP", gradient_MP), ("momentum_MP", momentum_MP)):
        _check(name, x, (torch.float32,), [(M, P)], weights_MP.device)
    rates = [(M,)] if step is None else [(rate.shape[0], M)]
    _check("rate", rate, (torch.float32,), rates, weights_MP.device)
    _check("step", step, (torch.int64,), [(1,)], weights_MP.device)
    _check("low_MP", low_MP, LOW_DTYPES, [(M, P)], weights_MP.device)
    integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    _check("skip_M", skip_M, integers, [(M,)], weights_MP.device)
    _check("inverse_scale", inverse_scale, (torch.float32,), [(M,), (1,)], weights_MP.device)
    inverse_M = None if inverse_scale is None else inverse_scale.expand(M)

    if has_triton(weights_MP.device):
        from fastwi.kernels.sgd_triton import launch

        launch(
            weights_MP, gradient_MP, momentum_MP, rate if step is not None else rate[None], step,
            momentum, weight_decay, nesterov, low_MP, skip_M, inverse_M,
        )  # fmt: skip
        return
    rate_M = rate if step is None else rate.index_select(0, step)[0]
    if weights_MP.device.type != "cpu" or inverse_M is not None:  # torch's fused SGD would rewrite the gradients
        sgd_reference_(
            weights_MP, gradient_MP, momentum_MP, rate_M, momentum, weight_decay, nesterov, low_MP, skip_M, inverse_M
        )  # fmt: skip
        return
    skipped = [False] * M if skip_M is None else skip_M.tolist()
    for m, (member_rate, skip) in enumerate(zip(rate_M.tolist(), skipped, strict=True)):
        if not skip:
            torch._fused_sgd_(
                [weights_MP[m]], [gradient_MP[m]], [momentum_MP[m]] if momentum else [],
                weight_decay=weight_decay, momentum=momentum, lr=member_rate, dampening=0.0, nesterov=nesterov,
                maximize=False, is_first_step=False,
            )  # fmt: skip
    if low_MP is not None:
        low_MP.copy_(weights_MP)


def _check(
    name: str,
    tensor: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
) -> None:
    """Raise ValueError unless `tensor` is absent or as it should be. Rows of [M, P] must be contiguous, and apart."""
    if tensor is None:
        return
    if tensor.dtype not in dtypes or tuple(tensor.shape) not in shapes or tensor.device != device:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it needs to be "
            f"{' or '.join(map(str, dtypes))} {' or '.join(map(str, shapes))} on {device}"
        )
    if name.endswith("_MP"):
        M, P = tensor.shape
        if (P > 1 and tensor.stride(1) != 1) or (M > 1 and tensor.stride(0) < P):
            raise ValueError(f"{name} has strides {tensor.stride()}; its rows need to be contiguous and apart")

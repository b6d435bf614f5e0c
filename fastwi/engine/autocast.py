"""Which networks run under torch.autocast in low precision: all of which it is not known that their dtypes never mix.

A network may hold positions in a float32 buffer, or make a mask or an embedding in its forward: with bf16 activations
the next product then has operands of two dtypes. Under autocast products cast their operands, parameters stay in
float32, and so does what loses accuracy in low precision, as in everybody's mixed-precision training. The networks of
`fastwi.models` and sequences of the layers below need none of it: their parameters are cast once a step.
"""

from torch import nn

_ONE_DTYPE = (
    nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout,
)  # fmt: skip


def needs_autocast(model: nn.Module) -> bool:
    """Whether `model` has a module that may mix dtypes: one of the user's own, or a norm that computes in float32."""
    return any(type(m) not in _ONE_DTYPE and not _is_built_in(m) for m in model.modules())


def _is_built_in(module: nn.Module) -> bool:
    return type(module).__module__.startswith("fastwi.models.")

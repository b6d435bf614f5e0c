"""Tries a network of the user's own before anything is trained: what would fail, be left out, or differ each time.

Shapes: N images, H height, W width, K classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastwi.errors import ConfigError
from fastwi.models import generators
from fastwi.models.refusal import reason, refusal, type_of

TRIED_SIZES = ((32, 32), (16, 16), (64, 64))
"""Image sizes (height, width) in pixels that a network is tried on where the size of the images is not known."""

_UNSEEDED = "draw from the global generators of torch, NumPy or random, which are seeded, and from nothing else"
_LOGITS = "return the logits that go into it, which the loss takes"
_ROUNDING = 1e-3
_SCALES = (0.3, 1.0, 3.0, 3.0, 3.0, 10.0)  # standard deviations of what is added to the weights


def try_network(
    name: str, network: nn.Module, again: nn.Module, classes: int, image_size: tuple[int, int] | None
) -> None:
    """Raise ConfigError, in one line, where `network` is not fit for a run. Copies run: nothing in it is changed.

    again: the same network from another building by the same draws. Refused are networks that differ from it, that
    give no logits [N, K], probabilities instead, or other outputs each time; and those of which a part would not be
    trained. What the network draws from is noted on it (`fastwi.models.generators.draws_of`).
    """
    _require_same_weights(name, network, again)
    drawn = _try(name, network, again, classes, image_size)
    drawn |= _try_to_train(name, network, again, image_size)
    if drawn:
        generators.note_draws(network, drawn)


@torch.no_grad()
def _try(
    name: str, network: nn.Module, again: nn.Module, classes: int, image_size: tuple[int, int] | None
) -> frozenset[str]:
    """In evaluation mode; returns the generators drawn from."""
    wrong = None
    for height, width in TRIED_SIZES if image_size is None else (image_size,):
        images = _images(height, width)
        try:
            with generators.seeded(0):
                before = generators.states()
                found = copy.deepcopy(network).eval()(images)
                drawn = generators.drawn_from(before)
            with generators.seeded(0):
                other = copy.deepcopy(again).eval()(images)
        except Exception as error:  # whatever the user's code raises
            if image_size is None:  # it may be made for another size
                continue
            problem = f"fails on images of {height} x {width} pixels (take image_size to build it for them)"
            raise refusal(name, f"{problem}: {reason(error)}") from error
        if isinstance(found, Tensor) and found.shape == (2, classes):
            if not _alike(found, other):
                raise refusal(name, f"gives other outputs each time, also in evaluation mode; {_UNSEEDED}")
            _refuse_probabilities(name, copy.deepcopy(network).eval(), images)
            return drawn
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type_of(found)
        wrong = wrong or (
            f"gives {got} for 2 images of {height} x {width} pixels and {classes} classes; return logits of shape "
            f"(2, {classes}), and take the number of classes as classes or num_classes"
        )
    if wrong is not None:
        raise refusal(name, wrong)
    return frozenset()


def _try_to_train(
    name: str, network: nn.Module, again: nn.Module, image_size: tuple[int, int] | None
) -> frozenset[str]:
    """In training mode; returns the generators drawn from."""
    parameters = dict(network.named_parameters())
    if not parameters:
        raise refusal(name, "has no parameters to train")
    if any(is_lazy(each) for each in (*network.parameters(), *network.buffers())):
        raise refusal(name, "has lazy layers, whose sizes are not known before they run; give the sizes")
    frozen = next((each for each, parameter in parameters.items() if not parameter.requires_grad), None)
    if frozen is not None:
        raise refusal(name, f"parameter {frozen} asks for no gradient, and all are trained; make it a buffer")
    for height, width in TRIED_SIZES if image_size is None else (image_size,):
        images = _images(height, width)
        plain, handed, other = (copy.deepcopy(each).train() for each in (network, network, again))
        buffers = {each: buffer.clone() for each, buffer in handed.named_buffers()}
        leaves = {each: parameter.detach().clone().requires_grad_() for each, parameter in parameters.items()}
        try:
            with generators.seeded(0):
                before = generators.states()
                first = plain(images)
                drawn = generators.drawn_from(before)
            with generators.seeded(0):
                second = other(images)
            with generators.seeded(0):
                logits = torch.func.functional_call(handed, {**leaves, **buffers}, (images,))
                if not isinstance(logits, Tensor):
                    raise refusal(name, f"gives {type_of(logits)} in training mode; return the logits alone")
                found = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            if image_size is None:  # it may be made for another size
                continue
            raise refusal(name, f"fails when it is trained: {reason(error)}") from error
        unused = next((each for each, gradient in zip(leaves, found, strict=True) if gradient is None), None)
        if unused is not None:
            raise refusal(name, f"parameter {unused} has no part in the logits; remove it")
        if not _alike(first, second):
            raise refusal(name, f"gives other outputs each time in training mode; {_UNSEEDED}")
        for each, buffer in plain.named_buffers():
            if not torch.equal(buffer, buffers[each]):
                raise refusal(name, f"assigns its buffer {each} anew; change it in place (mul_, add_, copy_)")
        _refuse_probabilities(name, copy.deepcopy(network).train(), images)
        return drawn
    return frozenset()


def _images(height: int, width: int) -> Tensor:
    """Two images of numbers from -1 to 1."""
    return torch.linspace(-1, 1, 2 * 3 * height * width).view(2, 3, height, width)


def _require_same_weights(name: str, network: nn.Module, again: nn.Module) -> None:
    one, two = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (network, again))
    for each, tensor in one.items():
        if not is_lazy(tensor) and (each not in two or not _alike(tensor, two[each])):
            raise refusal(name, f"{each} is another each time that it is built; {_UNSEEDED}")


def _alike(one: Tensor, two: Tensor) -> bool:
    """Equal up to rounding: where memory lies may decide the order of a library's sums."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    size = float(one.detach().abs().amax()) if one.numel() else 0.0
    return torch.allclose(one, two, rtol=1e-5, atol=1e-6 * size, equal_nan=True)


@torch.no_grad()
def _refuse_probabilities(name: str, network: nn.Module, images: Tensor) -> None:
    """Raise ConfigError where the outputs of `network`, in its mode, lie in 0..1 whatever its weights are.

    Cross-entropy takes them for logits: its loss has a floor, and its gradients vanish. The logarithms of
    probabilities are fine: log-softmax of them is themselves. A network's own weights tell nothing, since the outputs
    of one whose last layer starts at zero are constant; so it is also tried with random ones.
    """
    sums, inside = [], False
    for seed, scale in enumerate((0.0, *_SCALES)):
        changed = copy.deepcopy(network)
        try:
            with generators.seeded(seed):
                for parameter in changed.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
                outputs_NK = changed(images)
        except Exception:  # whatever the user's code raises: its own weights went well
            continue
        if not outputs_NK.isfinite().all():
            continue
        if outputs_NK.min() < 0 or outputs_NK.max() > 1 + _ROUNDING:
            return
        sums.append(outputs_NK.sum(1))
        inside |= bool(((outputs_NK > 0) & (outputs_NK < 1)).any())
    if len(sums) > 1 and all(torch.allclose(each, torch.ones(()), atol=_ROUNDING) for each in sums):
        raise refusal(name, f"returns probabilities (a softmax); {_LOGITS}")
    if len(sums) > len(_SCALES) and inside:
        raise refusal(name, f"returns numbers from 0 to 1 whatever its weights are (a sigmoid?); {_LOGITS}")

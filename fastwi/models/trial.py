"""Tries a network of the user's own before anything is trained: what would fail, be left out, or differ each time.

Shapes: N images, H height, W width, K classes.
"""

import copy
import os
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastwi.config.values import one_line, show
from fastwi.errors import ConfigError
from fastwi.models import generators

TRIED_SIZES = ((32, 32), (16, 16), (64, 64))
"""Image sizes (height, width) in pixels that a network is tried on where the size of the images is not known."""

_UNSEEDED = "draw from the global generators of torch, NumPy or random, which are seeded, and from nothing else"
_LOGITS = "return the logits that go into it, which the loss takes"
_ROUNDING = 1e-3
_SCALES = (0.3, 1.0, 3.0, 3.0, 3.0, 10.0)  # standard deviations of what is added to the weights
_HERE = os.path.join(os.path.dirname(__file__), "")


def refusal(name: str, problem: str) -> ConfigError:
    """The error for the network `name`."""
    return ConfigError(f"model.name: {show(name)}: {problem}")


def type_of(value: object) -> str:
    """What a value is that should have been another."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def reason(error: BaseException) -> str:
    """The error in one line, with the last line of the user's code that it came through."""
    text = one_line(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    last = frames[-1] if frames and not frames[-1].filename.startswith(_HERE) else None
    place = f" ({Path(last.filename).name} line {last.lineno})" if last else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def try_network(
    name: str, network: nn.Module, again: nn.Module, classes: int, image_size: tuple[int, int] | None
) -> None:
    """Raise ConfigError, in one line, where `network` is not fit for a run. Copies run: nothing in it is changed.

    again: the same network from another building by the same draws. Refused are networks that differ from it, that
    give no logits [N, K], probabilities instead, or other outputs each time; and those of which a part would not be
    trained. What the network draws from is noted on it (`fastwi.models.generators.draws_of`).
    """
    if not any(True for _ in network.parameters()):
        raise refusal(name, "has no parameters to train")
    if any(is_lazy(each) for each in (*network.parameters(), *network.buffers())):
        raise refusal(name, "has lazy layers, whose sizes are not known before they run; give the sizes")
    for each, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise refusal(name, f"parameter {each} needs no gradient, and all are trained; make it a buffer")
    one, two = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (network, again))
    for each, tensor in one.items():
        if each not in two or not _alike(tensor, two[each]):
            raise refusal(name, f"{each} differs each time that it is built; {_UNSEEDED}")
    drawn: frozenset[str] = frozenset()
    for training in (False, True):
        drawn |= _try(name, network, again, classes, image_size, training)
    if drawn:
        generators.note_draws(network, drawn)


def _try(
    name: str,
    network: nn.Module,
    again: nn.Module,
    classes: int,
    image_size: tuple[int, int] | None,
    training: bool,
) -> frozenset[str]:
    """Run copies in one mode; returns the generators drawn from."""
    mode, wrong = " in training mode" if training else "", None
    for height, width in TRIED_SIZES if image_size is None else (image_size,):
        images = torch.linspace(-1, 1, 2 * 3 * height * width).view(2, 3, height, width)
        one, two = (copy.deepcopy(each).train(training) for each in (network, again))
        try:
            with torch.set_grad_enabled(training), generators.seeded(0):
                before = generators.states()
                found = one(images)
                drawn = generators.drawn_from(before)
            with torch.set_grad_enabled(training), generators.seeded(0):
                other = two(images)
            if isinstance(found, Tensor) and found.shape == (2, classes):
                if training:
                    _require_trained(name, network, one, images)
                if not _alike(found, other):
                    raise refusal(
                        name, f"gives other outputs each time{mode or ', also in evaluation mode'}; {_UNSEEDED}"
                    )
                _refuse_probabilities(name, copy.deepcopy(network).train(training), images)
                return drawn
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            if image_size is None:  # it may be made for another size
                continue
            problem = f"fails on images of {height} x {width} pixels (take image_size to build it for them)"
            raise refusal(name, f"{'fails when it is trained' if training else problem}: {reason(error)}") from error
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type_of(found)
        wrong = wrong or (
            f"gives {got}{mode} for 2 images of {height} x {width} pixels and {classes} classes; return logits of "
            f"shape (2, {classes}) alone, and take the number of classes as classes or num_classes"
        )
    if wrong is not None:
        raise refusal(name, wrong)
    return frozenset()


def _require_trained(name: str, network: nn.Module, ran: nn.Module, images: Tensor) -> None:
    """Raise ConfigError unless all parameters have gradients, and buffers change in place, as in `ran`, a copy."""
    handed = copy.deepcopy(network).train()
    buffers = {each: buffer.clone() for each, buffer in handed.named_buffers()}
    leaves = {each: p.detach().clone().requires_grad_() for each, p in network.named_parameters()}
    with generators.seeded(0):
        logits = torch.func.functional_call(handed, {**leaves, **buffers}, (images,))
        gradients = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    for each, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise refusal(name, f"parameter {each} has no part in the logits; remove it")
    for each, buffer in ran.named_buffers():
        if not torch.equal(buffer, buffers[each]):
            raise refusal(name, f"assigns a new tensor to its buffer {each}; change it in place (mul_, add_, copy_)")


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
    probabilities are fine: log-softmax leaves them as they are. Where the last layer starts at zero a network's own
    weights do not show it; so it is also tried with random ones.
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

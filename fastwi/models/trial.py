"""Tries a network of the user's own before anything is trained: what would fail, be left out, or differ each time.

Shapes: N images, H height, W width, K classes.
"""

import contextlib
import copy
import itertools
import math
import os
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from fastwi.config.values import one_line, show
from fastwi.errors import ConfigError
from fastwi.models import generators, watch

_UNSEEDED = "draw from the global generators of torch, NumPy or random, which are seeded, and from nothing else"
_ROUNDING = 1e-3
_SCALES = (0.0, 0.3, 1.0, 3.0, 3.0, 3.0, 10.0)  # standard deviations of what is added to the weights
_CHANGE = 0.02  # standard deviation of what is added to the weights of another member
_FURTHER = 1_000_000  # calls
_MEMORY = "keeps between calls what decides its outputs and is neither a parameter nor a persistent buffer"
_DRAWN = "draws, when it is built, what decides its outputs and is neither a parameter nor a persistent buffer"
_IN_PLACE = "change it in place (mul_, add_, copy_)"
_WITHOUT = "register it as a buffer, or compute it in each call"
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
    every = traceback.extract_tb(error.__traceback__)
    frames = [f for f in every if not f.filename.startswith("<frozen") and f.filename != watch.__file__]
    last = frames[-1] if frames and not frames[-1].filename.startswith(_HERE) else None
    place = f" ({Path(last.filename).name} line {last.lineno})" if last else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def try_network(
    name: str,
    network: nn.Module,
    again: nn.Module,
    other: nn.Module | None,
    classes: int,
    image_size: tuple[int, int] | None,
) -> None:
    """Raise ConfigError, in one line, where `network` is not fit for a run. Copies run: nothing in it is changed.

    again: the same network from another building by the same draws; other: one by other draws, to be compared too.
    Without an image size (height, width) nothing is run. What the network draws from is noted on it
    (`fastwi.models.generators.draws_of`).
    """
    one, two = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (network, again))
    if not any(True for _ in network.parameters()):
        raise refusal(name, "has no parameters to train")
    if any(map(is_lazy, one.values())):
        raise refusal(name, "has lazy layers, whose sizes are not known before they run; give the sizes")
    for each, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise refusal(name, f"parameter {each} needs no gradient, and all are trained; make it a buffer")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            fix = "change the gradient in forward: w * mask + (w * (1 - mask)).detach()"
            raise refusal(name, f"parameter {each} has a hook on its gradient, which no engine calls; {fix}")
    for each, tensor in one.items():
        if each not in two or not _alike(tensor, two[each]):
            raise refusal(name, f"{each} differs each time that it is built; {_UNSEEDED}")
    if image_size is None:
        return
    size = f"{image_size[0]} x {image_size[1]} pixels"
    images_NCHW = torch.linspace(-1, 1, 2 * 3 * image_size[0] * image_size[1]).view(2, 3, *image_size)
    drawn: frozenset[str] = frozenset()
    for training in (False, True):
        try:
            drawn |= _try(name, (network, again), classes, images_NCHW, training)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            fails = f"fails on images of {size} (take image_size to build it for them)"
            raise refusal(name, f"{'fails when it is trained' if training else fails}: {reason(error)}") from error
    _require_no_memory(name, network, images_NCHW)
    if other is not None:
        _require_no_drawn_constant(name, network, other, images_NCHW)
    if drawn:
        network.fastwi_draws = drawn  # type: ignore[assignment]


def _try(
    name: str, networks: tuple[nn.Module, nn.Module], classes: int, images_NCHW: Tensor, training: bool
) -> frozenset[str]:
    """Run copies of the two networks in one mode; returns the generators drawn from.

    The second one is run as engines run it: its weights and buffers are given, and buffers must change in place.
    """
    mode = " in training mode" if training else ""
    one, two = (_copied(name, each).train(training) for each in networks)
    leaves = {each: p.detach().clone().requires_grad_() for each, p in two.named_parameters()}
    buffers = {each: buffer.clone() for each, buffer in two.named_buffers()}
    own = leaves | {each: buffers[each] for each in _persistent(two)}
    places = {each: tensor.data_ptr() for each, tensor in own.items()}
    with torch.set_grad_enabled(training):
        with generators.seeded(0):
            before = generators.states()
            found = one(images_NCHW.clone())  # a network may change them in place
            drawn = generators.drawn_from(before)
        if not isinstance(found, Tensor) or found.shape != (2, classes):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type_of(found)
            images = f"2 images of {images_NCHW.shape[2]} x {images_NCHW.shape[3]} pixels"
            fix = f"return logits of shape (2, {classes}) alone, and take the classes as classes or num_classes"
            raise refusal(name, f"gives {got}{mode} for {images} and {classes} classes; {fix}")
        with generators.seeded(0):
            other = functional_call(two, {**leaves, **buffers}, (images_NCHW.clone(),))
    if not _alike(found, other):
        raise refusal(name, f"gives other outputs each time{mode or ', also in evaluation mode'}; {_UNSEEDED}")
    for each, tensor in own.items():
        if tensor.data_ptr() != places[each]:
            raise refusal(name, f"sets the data of {each} to another tensor's{mode}; {_IN_PLACE}")
    if training:
        gradients = torch.autograd.grad(other.sum(), list(leaves.values()), allow_unused=True)
        for each, gradient in zip(leaves, gradients, strict=True):
            if gradient is None:
                fix = "multiply what its layer gives by 0 in place of skipping it" if drawn else "remove it"
                raise refusal(name, f"parameter {each} has no part in the logits; {fix}")
        for each, buffer in _persistent(one).items():
            if each not in buffers:
                fix = "make it when it is built, or with persistent=False"
                raise refusal(name, f"adds its buffer {each} in a call; {fix}")
            if not _alike(buffer, buffers[each]):
                raise refusal(name, f"assigns a new tensor to its buffer {each}; {_IN_PLACE}")
    if _are_probabilities(_copied(name, networks[0]).train(training), images_NCHW):
        fix = "return the logits that go into it, which the loss takes"
        raise refusal(name, f"gives numbers from 0 to 1 whatever its weights are (a softmax or a sigmoid?); {fix}")
    return drawn


def _require_no_memory(name: str, network: nn.Module, images_NCHW: Tensor) -> None:
    """Raise ConfigError where what a call leaves behind decides later outputs, except in persistent buffers.

    One module computes for all members, and a resumed run has a new one.
    """
    called = _copied(name, network)
    own, changed = _own(network), _changed(network)
    calls = ((False, own), (False, changed), (True, own), (True, changed), (False, own))
    for counted_on in (False, True):
        numbers = []
        for place, (training, tensors) in enumerate(calls):
            images = (1 + place / 8) * images_NCHW + place / 8  # others in each call: they may be kept too
            try:
                expected_NK = _outputs(_copied(name, network), tensors, images, training)
            except Exception:  # for instance of weights that must be positive
                continue
            try:
                found_NK = _outputs(called, tensors, images, training)
            except Exception as error:  # whatever the user's code raises
                if counted_on:
                    return
                raise refusal(name, f"{_MEMORY} ({reason(error)}); {_WITHOUT}") from error
            if not _alike(found_NK, expected_NK):
                raise refusal(name, f"{_MEMORY}; {_WITHOUT}")
            numbers.append((training, _numbers(called)))
        if not _count_on(called, numbers):
            return


def _require_no_drawn_constant(name: str, network: nn.Module, other: nn.Module, images_NCHW: Tensor) -> None:
    """Raise ConfigError where `other`, built by other draws, with the tensors of `network` is not the same network.

    One module computes for all members, with the parameters and persistent buffers of each.
    """
    own, others = _own(network), _own(other)
    for each in (*own, *others):
        if each not in own or each not in others or own[each].shape != others[each].shape:
            raise refusal(name, f"draws, when it is built, whether it has {each}, or its shape; draw values alone")
    for training in (False, True):
        for tensors in (own, _changed(network)):  # with its own, for instance, the last layer may give zeros
            try:
                expected_NK = _outputs(_copied(name, network), tensors, images_NCHW, training)
            except Exception:  # for instance of weights that must be positive
                continue
            try:
                found_NK = _outputs(_copied(name, other), tensors, images_NCHW, training)
            except Exception as error:  # whatever the user's code raises
                raise refusal(name, f"{_DRAWN} ({reason(error)}); register it as a buffer") from error
            if not _alike(found_NK, expected_NK):
                raise refusal(name, f"{_DRAWN}; register it as a buffer")


def _own(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that each member has its own of."""
    return {**dict(network.named_parameters()), **_persistent(network)}


def _changed(network: nn.Module) -> dict[str, Tensor]:
    """The same of another member."""
    with generators.seeded(0), torch.no_grad():
        changed = {each: p + _CHANGE * torch.randn_like(p) for each, p in network.named_parameters()}
    return _own(network) | changed


def _outputs(network: nn.Module, tensors: dict[str, Tensor], images_NCHW: Tensor, training: bool) -> Tensor:
    """The outputs of `network` with copies of `tensors`."""
    parameters = dict(network.named_parameters())
    given = {each: t.detach().clone().requires_grad_(each in parameters) for each, t in tensors.items()}
    if network.training != training:  # engines set the mode once for all members
        network.train(training)
    with generators.seeded(0), torch.set_grad_enabled(training):
        outputs_NK: Tensor = functional_call(network, given, (images_NCHW.clone(),))
    return outputs_NK.detach()


Numbers = dict[tuple[str, str], float]


def _numbers(network: nn.Module) -> Numbers:
    """The numbers among the attributes of its modules, by path and name."""
    return {
        (path, key): float(value.item() if isinstance(value, Tensor) else value)
        for path, module in network.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float) or (isinstance(value, Tensor) and value.numel() == 1 and value.isreal().all())
    }


def _count_on(network: nn.Module, numbers: list[tuple[bool, Numbers]]) -> bool:
    """Set numbers that each call in a mode changes far ahead; returns whether there are any.

    A count may decide something only after many calls.
    """
    modules, found = dict(network.named_modules()), False
    for (mode, before), (next_mode, after) in itertools.pairwise(numbers):
        for path, key in after.keys() & before.keys() if mode == next_mode else ():
            step = after[path, key] - before[path, key]
            if step and math.isfinite(step):
                value = getattr(modules[path], key)
                further = int(_FURTHER * step) if isinstance(value, int) else _FURTHER * step
                setattr(modules[path], key, value + further)
                found = True
    return found


def _copied(name: str, network: nn.Module) -> nn.Module:
    """A copy, as engines make them. Raises ConfigError where Python cannot make one."""
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever the user's code raises
        computed = [
            f"{path}.{key}".lstrip(".")
            for path, module in network.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor) and value.grad_fn is not None
        ]
        if not computed:
            raise refusal(name, f"cannot be copied by copy.deepcopy, as engines do: {reason(error)}") from error
        fix = "keep none between calls (for weight_norm take torch.nn.utils.parametrizations.weight_norm)"
        raise refusal(name, f"cannot be copied: {computed[0]} is computed from weights; {fix}") from error


def _persistent(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that each member has its own of."""
    kept = network.state_dict(keep_vars=True)
    return {each: buffer for each, buffer in network.named_buffers() if each in kept}


def _alike(one: Tensor, two: Tensor) -> bool:
    """Equal up to rounding: where memory lies may decide the order of a library's sums."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    size = float(one.detach().abs().amax()) if one.numel() else 0.0
    return torch.allclose(one, two, rtol=1e-5, atol=1e-6 * size, equal_nan=True)


def _are_probabilities(network: nn.Module, images_NCHW: Tensor) -> bool:
    """Whether the outputs of `network`, in its mode, lie in 0..1 whatever its weights are.

    Cross-entropy takes them for logits: its loss has a floor, and its gradients vanish. The logarithms of
    probabilities are fine: log-softmax leaves them as they are. Where the last layer starts at zero a network's own
    weights do not show it; so it is also tried with random ones.
    """
    inside = []
    for seed, scale in enumerate(_SCALES):
        changed = copy.deepcopy(network)
        # Suppressed is what the user's code raises: with its own weights it ran.
        with contextlib.suppress(Exception), generators.seeded(seed):
            with torch.no_grad():
                for parameter in changed.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
            with torch.set_grad_enabled(changed.training):
                outputs_NK = changed(images_NCHW.clone())
            if outputs_NK.isfinite().all():
                if outputs_NK.min() < 0 or outputs_NK.max() > 1 + _ROUNDING:
                    return False
                inside.append(bool(((outputs_NK > 0) & (outputs_NK < 1)).any()))
    return len(inside) > 2 and any(inside)

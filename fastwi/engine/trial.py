"""One training step and one evaluation of a user's network, as the run will do them, before anything is stored.

What a precision, device or compiler refuses is then said in one line that names the layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fastwi.config.schema import Config, ScheduleConfig
from fastwi.config.values import one_line
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine
from fastwi.engine.loop import LoopEngine
from fastwi.errors import ConfigError
from fastwi.models.trial import refusal
from fastwi.population import Population


def try_training(engine: Engine, config: Config, network: nn.Module, train: Dataset, test: Dataset) -> None:
    """Train a copy of `network` for one step and evaluate it on one batch.

    Raises ConfigError, in one line, where either fails.
    """
    # One epoch here is one step: a schedule of the run means other iterations.
    engine = engine.with_config(replace(engine.config, schedule=ScheduleConfig(name="constant")))
    population = Population.from_modules([network], device=engine.device)
    batch, name = _first(train, config.optimizer.batch_size), config.model.name

    def check(_module: nn.Module, _: object) -> None:
        if torch._C._current_graph_task_id() >= 0:  # the network has its own weights again by then
            problem = "calls layers again in its backward pass (torch.utils.checkpoint)"
            raise refusal(name, f"{problem}, which engine.backend eager does with other weights; give compile")

    hook = register_module_forward_pre_hook(check) if engine.resolved.backend == "eager" else None
    try:
        engine.train_epoch(population, batch, [Noise(0)], 0)
        engine.evaluate(population, _first(test, engine.evaluation_batch(test)))
    except ConfigError:
        raise
    except torch.OutOfMemoryError as error:
        raise refusal(name, f"needs more memory than {engine.device} has; lower optimizer.batch_size") from error
    except Exception as error:  # whatever the network, torch and its compilers raise
        raise refusal(name, _where(engine, network, batch, error)) from error
    finally:
        if hook is not None:
            hook.remove()


def _first(dataset: Dataset, images: int) -> Dataset:
    return dataset.part(torch.arange(min(images, len(dataset)), device=dataset.labels_N.device))


def _where(engine: Engine, network: nn.Module, batch: Dataset, error: Exception) -> str:
    """Where it failed and what helps, found by a step of the `loop` engine without compiled or fused code."""
    running = list[str]()
    how = f"fails in {str(engine.dtype).removeprefix('torch.')} on {engine.device}"
    eager = replace(engine.config, engine=replace(engine.config.engine, backend="eager"))
    plain = LoopEngine(network, eager)
    population = Population.from_modules([network], device=engine.device)
    try:
        with _watched(plain.resolved.network, running):
            plain.train_epoch(population, batch, [Noise(0)], 0)
            plain.evaluate(population, batch)
    except Exception as again:  # whatever the network raises
        layer = f"in layer {running[-1]}" if running and running[-1] else "in its forward" if running else "backward"
        fix = "; give engine.precision fp32" if engine.dtype != torch.float32 else ""
        return f"{how}, {layer}: {_reason(again)}{fix}"
    if engine.name != "loop":
        return f"{how} by engine.name {engine.name}: {_reason(error)}; give engine.name loop or engine.precision fp32"
    return f"{how} by engine.backend {engine.resolved.backend}: {_reason(error)}; give engine.backend eager"


@contextmanager
def _watched(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Within the block `running` holds the paths of the modules that are being called, outermost first."""
    paths = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, _: object) -> None:
        if id(module) in paths:
            running.append(paths[id(module)])

    def leave(module: nn.Module, _: object, __: object) -> None:
        if id(module) in paths:
            running.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

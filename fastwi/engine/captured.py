"""What `graph`, `stacked` and `halo` share: programs of B members, through which populations are passed.

Shapes: M members of a population, B members of a program.
"""

import abc
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastwi.config.schema import Config
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, require_resident
from fastwi.engine.base import Engine, Epoch
from fastwi.engine.device import free_memory, peak_bytes
from fastwi.engine.program import Gradients, Program, State
from fastwi.errors import ConfigError
from fastwi.models.generators import draws_of
from fastwi.population import Layout, Population

PROGRAMS_KEPT = 4  # each holds the activations of its members
SHARE_OF_MEMORY = 0.6  # of the device's free memory, for one program
MEMBERS_ON_CPU = 4
MOST_MEMBERS = 256


class ProgramEngine(Engine):
    """Trains B members at a time by a `Program`, which is captured as a CUDA graph on a GPU.

    A population passes through it in portions. The last rows idle where a portion is smaller.
    """

    _counted: frozenset[str] = frozenset()
    """Counters of batch norms to which the program adds the batch (see `fastwi.engine.counters`)."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model, config)
        drops = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())
        if drops or draws_of(model):
            raise ConfigError(
                f"engine.name: {self.name} has one generator for all members, so dropout and other draws in the "
                "network would be the same for all; use loop"
            )
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._rooms: dict[Hashable, int] = {}
        if self.device.type == "cuda" and not config.engine.deterministic:
            torch.backends.cudnn.benchmark = True  # chosen in the warm-up, frozen into the graph

    @property
    def members_at_once(self) -> int:  # type: ignore[override]
        """At most; how many of these a GPU's memory holds is found out at the first epoch."""
        return MOST_MEMBERS if self.device.type == "cuda" else MEMBERS_ON_CPU

    @abc.abstractmethod
    def _make_gradients(self, state: State) -> Gradients:
        """What computes the gradients of `state`'s members."""

    def _train(self, population: Population, epoch: Epoch, rates_S: list[float]) -> list[float]:
        dataset = require_resident(epoch.dataset, f"engine.name: {self.name}")
        rates = torch.tensor(rates_S, device=self.device)
        at_once = self._portion(population, dataset)
        program = self._program(population.layout, at_once, dataset)
        losses: list[float] = []
        for first in range(0, population.members, at_once):
            rows = slice(first, first + at_once)
            part = population[rows]
            program.load(part, *self._stacked_draws(epoch.noises[rows], epoch), rates, epoch.first)
            for _ in rates_S:
                epoch.report(part.members * program.step())
            losses += program.store(part, epoch.images)
        return losses

    def _stacked_draws(self, noises: Sequence[Noise], epoch: Epoch) -> tuple[Tensor, Tensor, Tensor]:
        """The draws of the members with `noises` on the device: order [M, D], offset [M, D, 2], flip [M, D]."""
        requests = [self._request(noise, epoch.number, epoch.dataset) for noise in noises]
        draws = self._ahead.take_all(requests, torch.get_num_threads())
        order, offset, flip = zip(*((d.order_N, d.offset_N2, d.flip_N) for d in draws), strict=True)
        return self.stacked(order).long(), self.stacked(offset).long(), self.stacked(flip)

    def stacked(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        """Arrays alike on the device, by way of memory that a GPU reads at full speed and torch uses again."""
        dtype, on_gpu = torch.from_numpy(arrays[0]).dtype, self.device.type == "cuda"
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=on_gpu)
        np.stack(arrays, out=stacked.numpy())
        return stacked.to(self.device, non_blocking=True)

    def _portion(self, population: Population, dataset: ResidentDataset) -> int:
        """How many members one program takes: even portions of what memory holds."""
        most = min(population.members, self.members_at_once)
        if self.device.type == "cuda" and most > 1:
            most = min(most, self._room(population.layout, dataset))
        portions = -(-population.members // most)
        return -(-population.members // portions)

    def _room(self, layout: Layout, dataset: ResidentDataset) -> int:
        """Members that fit into free memory, from what a step of one takes. Measured once, without other programs."""
        kind = self._kind(dataset)
        if kind not in self._rooms:
            self._programs.clear()
            free_memory(self.device)
            program = self._new_program(layout, 1, dataset)
            program.draw_weights()
            program.step()
            program.restart()  # an epoch may have one step only
            taken = peak_bytes(self.device, program.step) + 16 * layout.P
            del program
            self._rooms[kind] = self._members_of(taken)
        return self._rooms[kind]

    def _members_of(self, taken: int) -> int:
        """Members that fit into the memory that is free now, where one takes `taken` bytes."""
        free_memory(self.device)
        free = torch.cuda.mem_get_info(self.device)[0]
        return max(1, int(SHARE_OF_MEMORY * free / max(1, taken)))

    def _kind(self, dataset: ResidentDataset) -> Hashable:
        """What decides how much memory a member's step takes."""
        return len(dataset), dataset.image_shape, self.config.optimizer.batch_size

    def _program(self, layout: Layout, members: int, dataset: ResidentDataset) -> Program:
        """The program for so many members, made at first use. It holds the dataset, whose address is in the key.

        Earlier programs make room: together they have no more members than fit into memory.
        """
        config = self.config
        key = (members, layout.moving, id(dataset), config.optimizer, config.augment, config.data.last_batch)
        if key not in self._programs:
            room = self._rooms.get(self._kind(dataset), 10**9)
            while self._programs and (len(self._programs) >= PROGRAMS_KEPT or members + self._held() > room):
                self._programs.popitem(last=False)
            program = self._new_program(layout, members, dataset)
            if self.device.type == "cuda":
                program.capture()
            self._programs[key] = program
        self._programs.move_to_end(key)
        return self._programs[key]

    def _held(self) -> int:
        return sum(program.members for program in self._programs.values())

    def _new_program(self, layout: Layout, members: int, dataset: ResidentDataset) -> Program:
        return Program(layout, members, dataset, self.dtype, self.config, self._make_gradients, self._counted)

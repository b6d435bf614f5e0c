"""EL2N: how far from its label networks put an example early in training, and files of such scores.

Paul, Ganguli, Dziugaite 2021 (Deep Learning on a Data Diet), section 2.2, definition 2.3: the EL2N score of (x, y) is
E ||p(w, x) - y||_2, p the softmax output and y the one-hot label; the expectation is over networks that are
independent: of other initialisation and noise. Children of one parent are not. Its place here: paper, Figure 5.

A file of scores, or of kept positions, is safetensors: one array, and as metadata the kind, the digest of the very
images and labels that it belongs to, what it was computed from, and a SHA-256 over all of that.

Shapes: N images, K classes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.splits import LogitsEngine
from fastwi.beton import content_sha256
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.files import atomic_open
from fastwi.population import Population

FORMAT = "fastwi.example_scores"
VERSION = "1"


@dataclass(frozen=True, eq=False)
class MeanScore:
    """The mean of one number an image over networks that come one at a time: a count and float64 sums [N]."""

    networks: int
    total_N: NDArray[np.float64]

    @classmethod
    def empty(cls, images: int) -> "MeanScore":
        """Of no network yet."""
        return cls(0, np.zeros(images))

    def update(self, scores_N: ArrayLike) -> "MeanScore":
        """With one network more. Raises UserError for another number of images or a score that is not finite."""
        scores = np.asarray(scores_N, dtype=np.float64)
        self._need_images(scores.shape)
        if not np.isfinite(scores).all():
            place = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise UserError(
                f"network {self.networks}: its score of image {place} is not finite; leave out networks that diverged"
            )
        return MeanScore(self.networks + 1, self.total_N + scores)

    def merge(self, other: "MeanScore") -> "MeanScore":
        """Of both's networks together. Raises UserError for another number of images."""
        self._need_images(other.total_N.shape)
        return MeanScore(self.networks + other.networks, self.total_N + other.total_N)

    @property
    def mean_N(self) -> NDArray[np.float64]:
        """The mean over networks. Raises UserError where there was none."""
        if self.networks == 0:
            raise UserError("scores: no network was given; give at least one")
        return self.total_N / self.networks

    def _need_images(self, shape: tuple[int, ...]) -> None:
        if shape != self.total_N.shape:
            raise UserError(f"scores: shape {shape} beside {self.total_N.shape}; they are of different datasets")


def error_norms(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """||softmax(logits) - onehot(label)||_2 of each image, float64 [N], in 0 .. sqrt(2)."""
    error_NK = functional.softmax(logits_NK.double(), dim=1)
    # softmax - onehot, without the one-hot matrix
    error_NK[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1.0
    return torch.linalg.vector_norm(error_NK, dim=1)


def member_error_norms(
    engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset
) -> NDArray[np.float64]:
    """Member m's `error_norms` on every image of `dataset`, float64 [N], without augmentation."""
    norms_N = torch.empty(len(dataset), dtype=torch.float64, device=dataset.labels_N.device)
    for positions, logits_nK in engine.logits(population, m, dataset):
        norms_N[positions] = error_norms(logits_nK, dataset.labels_N[positions])
    return norms_N.cpu().numpy()


def el2n_scores(
    engine: LogitsEngine, populations: Population | Iterable[Population], dataset: ResidentDataset
) -> NDArray[np.float64]:
    """The EL2N score of every image, float64 [N]: the mean of `error_norms` over all members of all populations.

    The members should be independent networks early in training; definition 2.3 and the paper's Figure 5 (epoch 10).
    Raises UserError where there is no network, or one has diverged.
    """
    estimate = MeanScore.empty(len(dataset))
    for population in [populations] if isinstance(populations, Population) else populations:
        for m in range(population.members):
            estimate = estimate.update(member_error_norms(engine, population, m, dataset))
    return estimate.mean_N


def select_highest(scores_N: ArrayLike, count: int, skip: int = 0) -> NDArray[np.int64]:
    """Positions of the `count` highest scores after leaving out the `skip` highest, ascending, int64 [count].

    What Deep Learning on a Data Diet trains on (section 3; `skip` leaves out likely wrong labels, section 4). Among
    equal scores later positions count as higher, as they do in `equal_splits`.
    Raises UserError for NaN, or for more images than there are.
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise UserError("scores: not one number an image (a list of numbers without NaN)")
    if count < 1 or skip < 0 or count + skip > len(scores):
        raise UserError(f"kept images: {count} after the {skip} highest; there are {len(scores)} images")
    last = len(scores) - skip
    return np.sort(np.argsort(scores, kind="stable")[last - count : last]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """One number an image, or the kept positions of a dataset, and what they were computed from.

    Attributes:
        kind: what the array is: "el2n", "forgetting", ...; "kept:el2n" for positions kept by that score.
        values: float64 [N] scores, or int64 positions.
        dataset_sha256: `dataset_digest` of the dataset that they belong to.
        source: what they were computed from: epoch, seeds, networks ..., anything that JSON holds.
    """

    kind: str
    values: NDArray[Any]
    dataset_sha256: str
    source: Mapping[str, Any] = field(default_factory=dict)


def dataset_digest(dataset: ResidentDataset) -> str:
    """SHA-256 of the images and labels; for a whole split the card's `sha256` of it."""
    return content_sha256(dataset.images_NHWC.cpu().numpy(), dataset.labels_N.cpu().numpy())


def save_scores(scores: ExampleScores, path: str | os.PathLike[str]) -> None:
    """Write `scores` to `path`; an earlier file is replaced only once the new one is whole.

    Raises UserError for values of another dtype than float64 or int64, for a source that JSON cannot hold, and where
    the disk is full or not writable.
    """
    values = np.ascontiguousarray(scores.values)
    if values.dtype not in (np.float64, np.int64) or values.ndim != 1:
        raise UserError(f"{scores.kind}: {values.dtype} {values.shape}; scores are float64 [N], positions int64 [n]")
    try:
        content = json.dumps(
            {"kind": scores.kind, "dataset_sha256": scores.dataset_sha256, "source": dict(scores.source)},
            sort_keys=True, allow_nan=False,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"{scores.kind}: its source cannot be written as JSON ({error}); use plain values") from error
    metadata = {"format": FORMAT, "version": VERSION, "content": content, "sha256": _checksum(content, values)}
    data = to_safetensors({"values": values}, metadata)
    with atomic_open(path) as stream:
        stream.write(data)


def load_scores(
    path: str | os.PathLike[str], dataset: ResidentDataset | None = None, kind: str | None = None
) -> ExampleScores:
    """Read what `save_scores` wrote; with `dataset` and `kind`, only where they are those of the file.

    Raises UserError, in one line, for a file that is missing, damaged, foreign or of another dataset or kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a file of scores that was saved")
    try:
        # Opened by descriptor first: safetensors reports an unreadable file less clearly.
        with path.open("rb"), safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise UserError(f"{path}: not a file of scores of version {VERSION}; save them with save_scores")
            if list(file.keys()) != ["values"]:
                raise UserError(f"{path}: holds {sorted(file.keys())} instead of values; compute the scores again")
            if file.get_slice("values").get_dtype() not in ("F64", "I64"):
                raise UserError(f"{path}: its values are neither float64 nor int64; compute the scores again")
            values = file.get_tensor("values")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); restore or rewrite it") from error
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or no safetensors file ({reason}); compute the scores again") from error
    content = metadata.get("content", "")
    if metadata.get("sha256") != _checksum(content, values):
        raise UserError(f"{path}: damaged (checksum); compute the scores again")
    scores = ExampleScores(values=values, **json.loads(content))
    if kind is not None and scores.kind != kind:
        raise UserError(f"{path}: holds {scores.kind!r}, not {kind!r}; name another file")
    if dataset is not None:
        _need_dataset(path, scores, dataset)
    return scores


def _need_dataset(path: Path, scores: ExampleScores, dataset: ResidentDataset) -> None:
    """Raise UserError unless `scores` belong to `dataset`."""
    found = dataset_digest(dataset)
    if scores.dataset_sha256 != found:
        raise UserError(
            f"{path}: computed on dataset {scores.dataset_sha256[:12]}, this one is {found[:12]}; "
            "compute the scores again, or give the dataset that they are of"
        )


def _checksum(content: str, values: NDArray[Any]) -> str:
    """SHA-256 over the metadata's content and the array's dtype, shape and little-endian bytes."""
    digest = hashlib.sha256(f"{content}\n{values.dtype.name} {values.shape}\n".encode())
    digest.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).data)
    return digest.hexdigest()

"""How alike networks represent images, layer by layer: linear centred kernel alignment.

Shapes: M members, L layers, N images, n of a batch, F features of a layer (its output of an image, flattened).
"""

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastwi.analysis.blocks import block_groups
from fastwi.analysis.evaluator import Evaluator, Values
from fastwi.data.noise import Stream, permutation
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.kernels.augment import augment
from fastwi.models.generators import seeded
from fastwi.population import Population

BATCH = 256
_FEWEST = 4  # images that the estimator divides by n - 3 of


class Similarities(NamedTuple):
    """Linear CKA of each two of M networks: cka_LMM float64, 1 on the diagonal; NaN where an output is constant.

    layers: the L names, those of `fastwi.analysis.block_groups` in the order in which they are first called.
    """

    layers: Sequence[str]
    cka_LMM: Values


@torch.no_grad()
def linear_cka(evaluator: Evaluator, networks: Population, dataset: ResidentDataset) -> Similarities:
    """Compare the outputs of each layer between all members, each with its own statistics, in float32.

    Kornblith, Norouzi, Lee, Hinton 2019 (Similarity of Neural Network Representations Revisited), equation 2 for
    linear kernels: CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). Each HSIC is the mean over batches of the unbiased
    estimator of Song et al. 2012, as Nguyen, Raghu, Kornblith 2021 (Do Wide and Deep Networks Learn the Same
    Things?), equations 2 and 3: no N x N matrix is needed, and no value depends on N in expectation.

    Batches have about `BATCH` images of a fixed random order, the same for all members. A layer is a block's module;
    left out are those that are not called, or whose output is no tensor with an entry an image. Memory: 0.5 MiB a
    member and layer. Raises UserError for fewer than 4 images, and where no layer is left.
    """
    if len(dataset) < _FEWEST:
        raise UserError(f"CKA on {len(dataset)} images; give {_FEWEST} or more")
    device = evaluator.device
    networks = networks.to(device)
    states = [networks.parameters(m) | networks.buffers(m) for m in range(networks.members)]
    network = copy.deepcopy(evaluator.network).to(device).eval()
    outputs = _watch(network)
    order = torch.from_numpy(permutation(0, Stream.SUBSET, 1, len(dataset)).copy()).to(device)
    hsic: dict[str, Tensor] = {}
    for at_n in order.tensor_split(-(-len(order) // BATCH)):
        grams: dict[str, list[Tensor]] = {}
        for state in states:
            x_NCHW = augment(dataset.images_NHWC, at_n, None, None, dataset.table_C256, 0)
            outputs.clear()
            with seeded(0, x_NCHW.device):  # what a network draws in evaluation is the same for every member
                torch.func.functional_call(network, state, (x_NCHW,))
            for layer, y_nF in outputs.items():
                if len(y_nF) == len(at_n):
                    grams.setdefault(layer, []).append(_centred_gram(y_nF))
        for layer, each in grams.items():
            gram_Mnn = torch.stack(each)
            hsic[layer] = hsic.get(layer, 0) + gram_Mnn @ gram_Mnn.T / (len(at_n) * (len(at_n) - 3))
    if not hsic:
        raise UserError("CKA: no layer of this network gives a tensor with an entry an image; nothing to compare")
    hsic_LMM = torch.stack(list(hsic.values()))
    norm_LM = hsic_LMM.diagonal(dim1=1, dim2=2).sqrt()
    return Similarities(list(hsic), (hsic_LMM / (norm_LM[:, :, None] * norm_LM[:, None])).cpu().numpy())


def _centred_gram(y_nF: Tensor) -> Tensor:
    """The linear kernel of the features, U-centred, float64 [n * n].

    The product of two, over n (n - 3), is Song et al.'s estimator of HSIC (Székely, Rizzo 2014, Partial Distance
    Correlation, definition 2 and proposition 1): the diagonal is left out, and each row sums to 0.
    """
    # Centred before the product, which keeps digits; by one image first, which leaves exact zeros of a constant.
    y_nF = y_nF.float() - y_nF[:1].float()
    y_nF = y_nF - y_nF.mean(dim=0)
    gram_nn = (y_nF @ y_nF.T).double().fill_diagonal_(0)
    count = len(gram_nn)
    row_n = gram_nn.sum(dim=1) / (count - 2)
    gram_nn -= row_n[:, None] + row_n - row_n.sum() / (count - 1)
    return gram_nn.fill_diagonal_(0).flatten()


def _watch(network: nn.Module) -> dict[str, Tensor]:
    """Where each forward pass leaves the last output [N, F] of each block that it calls, by the block's name."""
    found = dict[str, Tensor]()

    def keep(layer: str, module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim > 0:
            # A copy: what follows may change it in place, as nn.ReLU(inplace=True) does.
            found[layer] = (output.flatten(1) if output.ndim > 1 else output[:, None]).clone()

    modules = dict(network.named_modules())
    for shown, (name,) in block_groups(network).items():
        if name in modules:  # a parameter of the network itself is no layer
            modules[name].register_forward_hook(functools.partial(keep, shown))
    return found

"""A trained network as it embeds fastest: batch norms become part of the convolutions before them."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)


def folded(network: M) -> M:
    """A copy to embed with, in evaluation mode; the network stays as it is.

    A batch norm that follows a convolution is folded into its weights and bias, which leaves every embedding what it
    was up to rounding. What `forward` says of metric vectors is not kept where they lie between the two.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        parts = list(module.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(parts):
            # All networks here register a norm right after the convolution that it follows.
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network

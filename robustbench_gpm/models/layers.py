"""Pieces shared by the networks of this package."""

from __future__ import annotations

from torch import nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1); the norm beside it brings the bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_norm_relu(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, ReLU; nothing in place: gradients are differentiated."""
    return [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]


def initialised(network: nn.Module) -> nn.Module:
    """`network` with fresh weights: normal, scaled as in He et al. 2015 (arXiv 1502.01852, eq. 14).

    Convolutions keep the variance of what flows back through ReLUs; linear heads start small
    (deviation .01, as in torchvision's VGG), so that no class is favoured and input gradients,
    which penalties square, start small too; batch norms start as the identity, biases at 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return network

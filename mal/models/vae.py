"""VAAL's beta-VAE (Sinha et al. 2019): four convolutions to a Gaussian code, and their mirror image.

Channels 128, 256, 512, 1024 (`width` times 1, 2, 4, 8), kernel 4, stride 2, padding 1, batch norm, ReLU; 22,835,139
parameters for colour images of 32x32 with a code of 32. Smaller images are enlarged to 32x32. Above 64 pixels the first
stride is 4 instead of 2, on both sides; the source gives no strides for 224, this is the least change that ends at 7x7.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mal.models.backbones import xavier

SMALLEST = 32
LARGEST_STRIDE_2 = 64


class VAE(nn.Module):
    """Images to the mean and log-variance of a Gaussian code, and back.

    channels, side: of the images; latent: size of the code; width: channels of the first convolution.
    """

    def __init__(self, channels: int, side: int, latent: int, width: int = 128) -> None:
        super().__init__()
        first = 2 if side <= LARGEST_STRIDE_2 else 4
        self.side = max(SMALLEST, -(-side // (8 * first)) * 8 * first)
        end, sizes = self.side // (8 * first), [width, 2 * width, 4 * width, 8 * width]
        self.encoder = nn.Sequential(*_down(channels, sizes, first), nn.Flatten())
        self.mean = nn.Linear(sizes[-1] * end**2, latent)
        self.log_variance = nn.Linear(sizes[-1] * end**2, latent)
        # The code is spread over twice the encoder's last grid; three transposed convolutions do the rest.
        spread = nn.Unflatten(1, (sizes[-1], 2 * end, 2 * end))
        self.decoder = nn.Sequential(
            nn.Linear(latent, sizes[-1] * (2 * end) ** 2), spread, *_up(sizes, first), nn.Conv2d(width, channels, 1)
        )
        xavier(self)

    def fit(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) at the network's size, bilinear where theirs is another."""
        if images.shape[-2:] == (self.side, self.side):
            return images
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the code, each (B, latent)."""
        hidden = self.encoder(self.fit(images))
        return self.mean(hidden), self.log_variance(hidden)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, C, side, side) of a drawn code, and the code's mean and log-variance."""
        mean, log_variance = self.encode(images)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return cast(Tensor, self.decoder(code)), mean, log_variance


class VectorVAE(VAE):
    """The same for features of a frozen encoder, (B, d, 1, 1): a hidden layer of 8 * width units on both sides."""

    def __init__(self, channels: int, latent: int, width: int = 128) -> None:
        nn.Module.__init__(self)
        self.side = 1
        hidden = 8 * width
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        spread = nn.Unflatten(1, (channels, 1, 1))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, channels), spread)
        xavier(self)


def _down(channels: int, sizes: list[int], first: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip([channels, *sizes], sizes, (first, 2, 2, 2), strict=False):
        convolution = nn.Conv2d(inputs, outputs, 4, stride, padding=1 if stride == 2 else 0, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


def _up(sizes: list[int], last: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip(sizes[:0:-1], sizes[-2::-1], (2, 2, last), strict=True):
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding=1 if stride == 2 else 0, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers

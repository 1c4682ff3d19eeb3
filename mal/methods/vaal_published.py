"""VAAL asked as its published code asks: with batch norm by the statistics of each batch, as in training.

The code of Sinha et al. (2019) leaves the VAE in training mode when it scores the pool.
"""

from __future__ import annotations

from torch import Tensor

from mal.methods.base import METHODS
from mal.methods.vaal import VAAL
from mal.minimax import statistics_kept


@METHODS.register("vaal_published")
class VAALPublished(VAAL):
    """VAAL with another score; the statistics that evaluation uses stay as they are."""

    def labelledness(self, images: Tensor) -> dict[str, Tensor]:
        """D's logit of the mean of each image's code, which depends on the images scanned with it."""
        vae = self.objective.vae
        vae.train()
        with statistics_kept(vae):
            codes = vae.encode(images)[0]
        vae.eval()
        return {"labelledness": self.objective.discriminator(codes)}

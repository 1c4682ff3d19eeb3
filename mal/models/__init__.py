"""Networks: feature encoders F (backbones), the heads C and D, the task model M. A new backbone is imported here."""

from mal.models import backbones, drn

__all__ = ["backbones", "drn"]

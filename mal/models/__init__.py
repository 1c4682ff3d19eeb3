"""Networks: feature encoders F (backbones), the heads C and D, the task model M. A new backbone has its line here."""

from mal.models import backbones as backbones
from mal.models import drn as drn

"""Networks: feature encoders F (backbones), the heads C and D, the task model M. A new backbone has its line here."""

from mal.models import backbones as backbones
from mal.models import convnext as convnext
from mal.models import drn as drn
from mal.models import mlp as mlp
from mal.models import timm_model as timm_model
from mal.models import vit as vit

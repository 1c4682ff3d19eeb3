"""Acquisition methods, one file each, registered by name: a new one is a file, its YAML and its line here."""

from mal.methods import badge as badge
from mal.methods import bald as bald
from mal.methods import batchbald as batchbald
from mal.methods import coreset as coreset
from mal.methods import ensemble as ensemble
from mal.methods import entropy as entropy
from mal.methods import least_confidence as least_confidence
from mal.methods import mal as mal
from mal.methods import mal_plus as mal_plus
from mal.methods import margin as margin
from mal.methods import power_bald as power_bald
from mal.methods import probcover as probcover
from mal.methods import random as random
from mal.methods import typiclust as typiclust
from mal.methods import vaal as vaal
from mal.methods import vaal_published as vaal_published
from mal.methods.base import METHODS as METHODS
from mal.methods.base import Method as Method
from mal.methods.base import Query as Query
from mal.methods.base import Setting as Setting

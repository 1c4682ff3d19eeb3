"""Readers of datasets in their official formats, one file each: a new one is a file, its YAML and its line here."""

from mal.data.sources import bdd100k as bdd100k
from mal.data.sources import cifar10 as cifar10
from mal.data.sources import cifar100 as cifar100
from mal.data.sources import digits as digits
from mal.data.sources import downsampled_imagenet as downsampled_imagenet
from mal.data.sources import fashion_mnist as fashion_mnist
from mal.data.sources import features as features
from mal.data.sources import folder as folder
from mal.data.sources import imagenet as imagenet
from mal.data.sources import inaturalist2018 as inaturalist2018
from mal.data.sources import mask_folder as mask_folder
from mal.data.sources import scenes as scenes
from mal.data.sources import svhn as svhn
from mal.data.sources import tiny_imagenet as tiny_imagenet
from mal.data.sources import webdataset as webdataset

"""Readers of data sets in their official formats, one file each: a new one is a file, its YAML and its import here."""

from mal.data.sources import bdd100k, cifar100, digits, fashion_mnist, folder, imagenet, inaturalist2018, scenes

__all__ = ["bdd100k", "cifar100", "digits", "fashion_mnist", "folder", "imagenet", "inaturalist2018", "scenes"]

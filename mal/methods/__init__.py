"""Acquisition methods, one file each, registered by name: a new one is a file, its YAML and its import here."""

from mal.methods import entropy, mal, random
from mal.methods.base import METHODS, Method, Setting

__all__ = ["METHODS", "Method", "Setting", "entropy", "mal", "random"]

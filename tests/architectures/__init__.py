"""Networks of every kind, each small: what the library says that it supports is tried on all of them."""

from architectures import others, sequences, vision
from architectures.architecture import ALL, Architecture, loaded_elsewhere

__all__ = ["ALL", "Architecture", "loaded_elsewhere", "others", "sequences", "vision"]

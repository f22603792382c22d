"""The networks that are known by name, and the loading of weights into them."""

from autocompress.models.factory import MODEL_NAMES, make_model
from autocompress.models.weights import load_weights

__all__ = ["MODEL_NAMES", "load_weights", "make_model"]

"""Data sets by name, split in three by a fixed seed; the small ones lie whole on the device."""

from autocompress.data.arrays import data_root
from autocompress.data.batches import CropAndFlip, Normalize, TensorBatches
from autocompress.data.factory import DATA_NAMES, Splits, load_data

__all__ = ["DATA_NAMES", "CropAndFlip", "Normalize", "Splits", "TensorBatches", "data_root", "load_data"]

"""Aggregated learning: one network classifies several inputs at once (Soflaei et al. 2020, AgrLearn).

An ordinary network quantizes each input by itself. By rate-distortion theory several are represented better together,
so n inputs, concatenated in their channels, are encoded jointly and n predictions come out. The loss is that of all n,
and, as an option, alpha * I(X^n; T): the information that the features T keep of the inputs, as `training`
estimates it. An aggregated network is a network like any other: the same compressor makes a file of it, which serves
n inputs.
"""

from autocompress.aggregated.model import AggregatedBatches, AggregatedModel, Batched, Replicated
from autocompress.aggregated.training import aggregated_task, train_aggregated

__all__ = ["AggregatedBatches", "AggregatedModel", "Batched", "Replicated", "aggregated_task", "train_aggregated"]

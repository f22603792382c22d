"""Settings for all tests."""

import os

# The networks here are tiny: a second thread mostly waits, and beside the other processes of the tests it waits long.
# In the environment for the processes that tests start, too; it is read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

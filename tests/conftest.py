"""Settings for all tests."""

import torch

# The networks here are tiny: a second thread mostly waits, and on a busy machine it waits long.
torch.set_num_threads(1)

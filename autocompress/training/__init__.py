"""The training loop that everything shares, and what it needs: batches, recipes, losses, evaluation."""

from autocompress.training.batch_norm import refit_batch_norm
from autocompress.training.batches import default_device, forward, split_batch, to_device
from autocompress.training.callbacks import Callback, TrainerCallback
from autocompress.training.evaluate import Evaluation, evaluate
from autocompress.training.losses import classification_loss, correct_predictions
from autocompress.training.recipe import Recipe, recipe_for
from autocompress.training.resume import TrainingLog
from autocompress.training.trainer import Trainer

__all__ = [
    "Callback",
    "Evaluation",
    "Recipe",
    "Trainer",
    "TrainerCallback",
    "TrainingLog",
    "classification_loss",
    "correct_predictions",
    "default_device",
    "evaluate",
    "forward",
    "recipe_for",
    "refit_batch_norm",
    "split_batch",
    "to_device",
]

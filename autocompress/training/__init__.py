"""The training loop that everything shares, and what it needs: batches, recipes, losses, evaluation."""

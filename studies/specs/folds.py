"""Aggregated learning and its compression: one and two inputs at once, with and without the information penalty.

Each network is trained from scratch by the task's recipe, then compressed in equal steps, without the penalty. The
test accuracy is that with a different input in each place ("batched"); the records have that with the same input in all
places ("replicated") beside it.
"""

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

# 0.3 is the published weight of the penalty.
VARIANTS = {f"fold {fold}, alpha {alpha:g}": (fold, alpha) for fold in (1, 2) for alpha in (0.0, 0.3)}

SPEC = StudySpec(
    name="folds",
    description="Aggregated learning: one and two inputs, with and without the information penalty, at one file size",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[Variant(name, COMPRESSOR, fold=fold, alpha=alpha) for name, (fold, alpha) in VARIANTS.items()],
    targets=["4KB"],
    seeds=range(3),
    final_epochs=120,
    trial_epochs=1,
    smoke=Smoke(final_epochs=1),
)

"""LeNet-5 on the handwritten digits that come with scikit-learn: every method; hours on two cores."""

from baselines.methods import PLAN_METHODS
from studies.design.spec import Smoke, StudySpec, TaskSpec
from studies.records.record import COMPRESSOR

SPEC = StudySpec(
    name="digits",
    description="LeNet-5 on scikit-learn's digits: every method, two sizes, five seeds",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[COMPRESSOR, *PLAN_METHODS],
    targets=["4KB", "2KB"],
    seeds=range(5),
    final_epochs=40,
    trial_epochs=8,
    # As proposals get better, and as all equal accuracies pass, halving lets about twice as many trials go on as it
    # is meant to: asked for 10 times the compressor's steps, two runs took 18.6 and 21.5 times.
    budgets={"optuna-tpe": 10, "ray-asha": 5},
    smoke=Smoke(targets=("4KB",), final_epochs=1, trial_epochs=1, budget=1.0),
)

"""Studies as they are written down: what is refused, what their cells are, and what decides a cell's digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_cells import make_spec

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.solver.constants import DEFAULTS
from baselines.methods import PLAN_METHODS
from studies.design.cell import Cell, cells_of, check_methods, solver_constants
from studies.design.checking import check_cells
from studies.design.spec import Smoke, TaskSpec, Variant
from studies.finding import find_study, own_specs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "study name 'a b'"),
        ({"methods": []}, r"methods \[\] must be a list with at least one entry"),
        ({"methods": "compressor"}, "methods 'compressor' must be a list"),
        ({"methods": ["optuna-tpee"]}, "'optuna-tpee' must be one of .* did you mean optuna-tpe"),
        ({"methods": ["random", Variant("random", "uniform")]}, "methods has 'random' twice"),
        ({"methods": [Variant(" a", "random")]}, "method name ' a'"),
        ({"methods": [Variant("a", "random", {"pruned_rate": 0.3})]}, "constants of 'a'"),
        ({"methods": [Variant("a", "random", budget=0)]}, "budget 0 must be a number above 0"),
        ({"methods": [Variant("a", "random", targets=("9KB",))]}, "target of a '9KB' must be one of the study's, 4KB"),
        ({"tasks": [TaskSpec("lenet5", "digits"), TaskSpec("lenet5", "digits", "a.pt")]}, "tasks has 'lenet5-digits'"),
        ({"tasks": ["lenet5-digits"]}, "tasks 'lenet5-digits' must be a TaskSpec"),
        ({"targets": ["4 apples"]}, "cannot use the target '4 apples'"),
        ({"targets": ["4KB", "4000B"]}, "targets has '4000B' twice"),
        ({"seeds": [0, 1.0]}, "seeds 1.0 must be a whole number"),
        ({"seeds": [True]}, "seeds True must be a whole number"),
        ({"seeds": [0, 0]}, "seeds has '0' twice"),
        ({"seeds": []}, "seeds .* must be a list with at least one entry"),
        ({"final_epochs": 0}, "final_epochs 0 must be a whole number of at least 1"),
        ({"trial_epochs": 1.5}, "trial_epochs 1.5 must be a whole number"),
        ({"budget": float("nan")}, "budget nan must be a number above 0"),
        ({"methods": [Variant("a", "compressor", fold=0)]}, "fold of a 0 must be a whole number of at least 1"),
        ({"methods": [Variant("a", "random", fold=2)]}, "fold of a 2 must be 1 for all methods but the compressor"),
        ({"methods": [Variant("a", "compressor", alpha=-1.0)]}, "alpha of a -1.0 must be a number of at least 0"),
        (
            {"methods": [Variant("a", "random", alpha=0.3)]},
            "alpha of a 0.3 must be 0 for all methods but the compressor",
        ),
        ({"budgets": {"random": 3}}, "budgets 'random' must be a method of the study"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant("a", "random", space="block-wise"), "space 'block-wise' is not one of"),
        (Variant("a", "random", pruner="medium"), "pruner 'medium' is not one of"),
        (Variant("a", "compressor", {"pruned": 0.3}), "constant 'pruned' is not one of iteration, updates"),
        (Variant("a", "compressor", {"updates": 30.0}), "is 30 and cannot be 30.0"),
        (Variant("a", "compressor", {"pruned_rate": True}), "is 0.4 and cannot be True"),
        (Variant("a", "compressor", {"iteration": "newton"}), "iteration is 'newton'; it may be 'lazy' or 'admm'"),
        (Variant("a", "compressor", {"path_start": -1.0}), "path_start is -1.0; it must be a number of at least 0"),
    ],
)
def test_what_a_method_names_is_looked_for(variant, message):
    with pytest.raises(InvalidInputError, match=message):
        check_methods(make_spec(methods=[variant]))


def test_constants_are_fields_of_the_solvers():
    assert solver_constants({"pruned_rate": 0.25}) == replace(DEFAULTS, pruned_rate=0.25)
    assert solver_constants({}) == DEFAULTS


def test_a_method_may_have_a_length_of_its_own():
    longer = Variant("longer", "compressor", final_epochs=9)
    at_once = Variant("at once", "compressor", final_epochs=0)
    cells = cells_of(make_spec(methods=["compressor", longer, at_once], final_epochs=3, seeds=[0]))
    assert [cell.final_epochs for cell in cells] == [3, 9, 0]
    with pytest.raises(InvalidInputError, match="final_epochs of a 0 must be a whole number of at least 1"):
        make_spec(methods=[Variant("a", "random", final_epochs=0)])


def test_targets_must_be_possible():
    check_cells(cells_of(make_spec()))
    with pytest.raises(InfeasibleTargetError, match=r"lenet5-digits: .*40 bytes"):
        check_cells(cells_of(make_spec(targets=["4KB", "40B"])))


@pytest.mark.parametrize(("task", "close"), [(("lenet", "digits"), "lenet5"), (("lenet5", "mnits"), "mnist")])
def test_names_of_tasks_are_looked_for_before_anything_is_trained(task, close):
    with pytest.raises(InvalidInputError, match=f"did you mean .*{close}"):
        check_cells(cells_of(make_spec(tasks=[TaskSpec(*task)])))


def test_a_task_without_test_split_is_refused(monkeypatch):
    from small_task import loaders

    monkeypatch.setattr("small_task.loaders", lambda: loaders()[:2])
    with pytest.raises(InvalidInputError, match="has no test split"):
        check_cells(cells_of(make_spec(tasks=[TaskSpec("small_task:make_model", "small_task:loaders")])))


def test_cells_are_the_grid():
    spec = make_spec(2, targets=["2kb", "4KB"], tasks=[TaskSpec("lenet5", "digits"), TaskSpec("lenet5", "mnist")])
    keys = [cell.key for cell in cells_of(spec)]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2 * 2
    assert keys[:3] == [
        ("lenet5-digits", "compressor", "2KB", 0),
        ("lenet5-digits", "compressor", "2KB", 1),
        ("lenet5-digits", "magnitude", "2KB", 0),
    ]


def test_a_method_may_be_for_some_targets_alone():
    some = Variant("random", "random", targets=("4KB",))
    spec = make_spec(1, targets=["2KB", "4KB"], methods=["compressor", some], smoke=Smoke(targets=("2KB",)))
    pairs = [(cell.name, cell.target) for cell in cells_of(spec)]
    assert pairs == [("compressor", "2KB"), ("compressor", "4KB"), ("random", "4KB")]
    assert [(cell.name, cell.target) for cell in cells_of(spec.smoke_variant())] == [("compressor", "2KB")]


def test_a_method_may_be_for_some_targets_of_some_tasks():
    tasks = [TaskSpec("lenet5", "digits"), TaskSpec("lenet5", "mnist")]
    where = {"lenet5-digits": ("4KB", "2KB"), "lenet5-mnist": ("2KB",)}
    spec = make_spec(1, tasks=tasks, targets=["2KB", "4KB"], methods=[Variant("a", "compressor", where=where)],
                     smoke=Smoke(targets=("4KB",)))  # fmt: skip
    pairs = {(cell.task.name, cell.target) for cell in cells_of(spec)}
    assert pairs == {("lenet5-digits", "2KB"), ("lenet5-digits", "4KB"), ("lenet5-mnist", "2KB")}
    assert [(cell.task.name, cell.target) for cell in cells_of(spec.smoke_variant())] == [("lenet5-digits", "4KB")]
    with pytest.raises(InvalidInputError, match="task of a 'lenet5-cifar10' must be one of"):
        make_spec(methods=[Variant("a", "compressor", where={"lenet5-cifar10": ("4KB",)})])
    with pytest.raises(InvalidInputError, match="target of a '9KB' must be one of the study's, 4KB"):
        make_spec(methods=[Variant("a", "compressor", where={"lenet5-digits": ("9KB",)})])


def test_a_budget_is_a_number_of_trials():
    methods = ["compressor", "random", "optuna-tpe", "ray-asha", Variant("long", "random", trial_epochs=50, budget=1)]
    spec = make_spec(1, methods=methods, final_epochs=40, trial_epochs=4, budget=3, budgets={"optuna-tpe": 10})
    trials = {cell.name: (cell.trials, cell.trial_epochs) for cell in cells_of(spec)}
    # Of 54 trials of 8 epochs halving runs 54 * (1 + 2 / 3 + 5 / 9) = 120 epochs, 3 times 40.
    assert trials == {
        "compressor": (0, 0),
        "random": (30, 4),
        "optuna-tpe": (100, 4),
        "ray-asha": (54, 8),
        "long": (1, 50),
    }


def test_golden_digests():
    """Records of former releases are found by these: a change makes every study run anew."""
    plain, search, varied = cells_of(
        make_spec(1, methods=["compressor", "magnitude", Variant("v", "compressor", {"pruned_rate": 0.25})])
    )
    assert [plain.hash, search.hash, varied.hash] == ["b7767e088b6674a7", "8f24a80fa5994803", "f33c5149de6d1c28"]


def test_a_digest_is_of_its_own_cell_alone():
    spec = make_spec()
    more = make_spec(
        5,
        name="other",
        description="x",
        methods=["random", "magnitude", "compressor"],
        targets=["2KB", "4000B", "4KiB"],
    )
    hashes = {cell.key: cell.hash for cell in cells_of(replace(more, targets=["2KB", "4KB"]))}
    for cell in cells_of(spec):
        assert hashes[cell.key] == cell.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"final_epochs": 11},
        {"trial_epochs": 1},
        {"budget": 5},
        {"budgets": {"magnitude": 4}},
        {"tasks": [TaskSpec("lenet5", "digits", reference_epochs=3)]},
        {"tasks": [TaskSpec("lenet5", "digits", weights="a.pt")]},
        {"methods": [Variant("magnitude", "magnitude", pruner="median")]},
        {"methods": [Variant("magnitude", "magnitude", space="magnitude", trial_epochs=3)]},
        {"resources": True},
    ],
)
def test_a_digest_changes_with_what_decides_its_cell(changes):
    def digest(cells: list[Cell]) -> str:
        return next(cell.hash for cell in cells if cell.key == ("lenet5-digits", "magnitude", "4KB", 0))

    assert digest(cells_of(make_spec(**changes))) != digest(cells_of(make_spec()))


def test_the_projects_own_studies():
    specs = own_specs()
    assert {"digits", "lenet5-mnist", "resnet20-cifar10", "constants", "solver", "family"} <= set(specs)
    for spec in specs.values():
        check_methods(spec)
        check_methods(spec.smoke_variant())
    digits = cells_of(specs["digits"])
    assert {cell.name for cell in digits} == {"compressor", *PLAN_METHODS}
    assert len(digits) == (1 + len(PLAN_METHODS)) * 2 * 5
    factors = {cell.name: cell.trials * cell.trial_epochs / cell.final_epochs for cell in digits}
    assert factors["optuna-tpe"] == 10
    assert factors["random"] == 2
    asha = next(cell for cell in digits if cell.name == "ray-asha")
    assert 6 * asha.final_epochs == pytest.approx(asha.epochs, rel=0.01)


def test_a_smoke_variant_is_small():
    spec = make_spec(
        smoke=Smoke(targets=("8KB",), final_epochs=1, trial_epochs=1, budget=2.0), budgets={"magnitude": 9}
    )
    small = spec.smoke_variant()
    assert small.name == "fake-smoke"
    assert [cell.key[2:] for cell in cells_of(small)] == [("8KB", 0), ("8KB", 0)]
    assert [(cell.final_epochs, cell.trials, cell.task.reference_epochs) for cell in cells_of(small)] == [
        (1, 0, 3),
        (1, 2, 3),
    ]


def test_a_part_of_a_study_is_of_the_same_cells():
    spec = make_spec(budgets={"magnitude": 4})
    assert cells_of(spec.only(["compressor"])) == [cell for cell in cells_of(spec) if cell.name == "compressor"]
    with pytest.raises(InvalidInputError, match="'random' is not in fake, which has compressor, magnitude"):
        spec.only(["random"])


OWN = """
from studies.design.spec import StudySpec, TaskSpec
SPEC = StudySpec("mine", [TaskSpec("lenet5", "digits")], ["random"], ["4KB"], [0], final_epochs=2, trial_epochs=1)
"""


def test_studies_are_found(tmp_path: Path):
    path = tmp_path / "my.py"
    path.write_text(OWN)
    spec, folder = find_study(str(path))
    assert (spec.name, folder) == ("mine", tmp_path / "results" / "mine")
    assert find_study(str(path), smoke=True)[1] == tmp_path / "results" / "mine-smoke"
    assert find_study("digits-smoke", results=tmp_path)[1] == tmp_path / "digits-smoke"
    assert find_study("digits-smoke")[0] == find_study("digits", smoke=True)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPEC = 3", "must set SPEC to a StudySpec; it is int"),
        ("", "must set SPEC to a StudySpec; it is NoneType"),
        ("a = 1\nb = 1 / 0", "fails at line 2: ZeroDivisionError"),
        ("a = 1\ndef b(:\n", "fails at line 2: SyntaxError"),
        ("a = 1\n\nraise SystemExit(3)", "fails at line 3: SystemExit: 3"),
        (OWN.replace("[0]", "[-1]"), "study mine: seeds -1 must be"),
    ],
)
def test_a_file_that_makes_no_study_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "my.py"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        find_study(str(path))


def test_unknown_studies_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match=r"'digit' is not one of .* did you mean digits"):
        find_study("digit")
    with pytest.raises(InvalidInputError, match="there is no file"):
        find_study(str(tmp_path / "none.py"))

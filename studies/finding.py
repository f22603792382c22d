"""The studies that there are, by name, and a user's own by the path of a file."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import InvalidInputError
from studies import specs
from studies.design.spec import StudySpec

if TYPE_CHECKING:
    from pandas import DataFrame

RESULTS = Path(__file__).parent / "results"
SMOKE = "-smoke"


def own_specs() -> dict[str, StudySpec]:
    """Returns the studies of `studies/specs` by name."""
    modules = [
        importlib.import_module(f"{specs.__name__}.{each.name}") for each in pkgutil.iter_modules(specs.__path__)
    ]
    found = [module.SPEC for module in modules]
    return {spec.name: spec for spec in sorted(found, key=lambda spec: spec.name)}


def find_study(name: str, *, smoke: bool = False, results: Path | None = None) -> tuple[StudySpec, Path]:
    """Returns (a study, the folder of its results).

    Args:
        name: of one of `own_specs`, with or without "-smoke" at its end, or the path of a Python file with a `SPEC`.
        smoke: the study's smoke variant.
        results: where the folders of results are; default: `studies/results`, or `results` beside the user's file.

    Raises:
        InvalidInputError: there is no such study, or its file does not make one.
    """
    path = Path(name)
    if path.suffix == ".py":
        spec = _load(path)
        results = results or path.absolute().parent / "results"
    else:
        known = own_specs()
        if name not in known and name.endswith(SMOKE):
            name, smoke = name.removesuffix(SMOKE), True
        if name not in known:
            close = get_close_matches(name, known, 2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InvalidInputError(
                f"study {name!r} is not one of {', '.join(known)}, nor the path of a Python file{hint}"
            )
        spec = known[name]
    spec = spec.smoke_variant() if smoke else spec
    return spec, (results or RESULTS) / spec.name


def load_study(name: str, *, smoke: bool = False, results: Path | None = None) -> DataFrame:
    """Returns the records of a study as `studies.report.frame` has them, a row for each cell that it asks for.

    Raises:
        InvalidInputError: there is no such study, or a record is damaged.
    """
    from studies.design.cell import cells_of
    from studies.records.store import records_of
    from studies.report.frame import frame_of

    spec, folder = find_study(name, smoke=smoke, results=results)
    cells = cells_of(spec)
    return frame_of(records_of(cells, folder), [cell.key for cell in cells])


def _load(path: Path) -> StudySpec:
    """Returns the `SPEC` of a Python file; modules beside it can be imported by it, and later by the cells."""
    if not path.is_file():
        raise InvalidInputError(f"there is no file {str(path)!r}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found.loader.exec_module(module)
    except InvalidInputError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything, and end the process
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else last.lineno
        raise InvalidInputError(f"{str(path)!r} fails at line {line}: {type(error).__name__}: {error}") from error
    spec = getattr(module, "SPEC", None)
    if not isinstance(spec, StudySpec):
        raise InvalidInputError(f"{str(path)!r} must set SPEC to a StudySpec; it is {type(spec).__name__}")
    return spec

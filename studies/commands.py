"""The commands: from their options to what they print."""

from __future__ import annotations

from argparse import Namespace

from autocompress.errors import InvalidInputError
from studies.design.cell import cells_of
from studies.design.spec import StudySpec
from studies.finding import RESULTS, find_study, load_study, own_specs
from studies.records.store import Store, records_of
from studies.running.status import states_of, status


def list_command(options: Namespace) -> str:
    """Returns the studies, one line each."""
    rows = []
    for spec in own_specs().values():
        cells = cells_of(spec)
        records = Store((options.results or RESULTS) / spec.name).read()
        finished = list(states_of(cells, records, set()).values()).count("finished")
        rows.append((spec.name, f"{finished} of {len(cells)} cells", spec.description.partition("\n")[0]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {count:>{widths[1]}}  {what}" for name, count, what in rows)


def run_command(options: Namespace) -> str:
    """Runs what is open of a study and returns its status; see `running.command`."""
    # Imported here: a report needs no torch.
    from studies.running.command import run_study

    return run_study(options)


def status_command(options: Namespace) -> str:
    """Returns how far a study has come."""
    spec, folder = find_study(options.study, smoke=options.smoke, results=options.results)
    return status(cells_of(spec), folder)


def records_command(options: Namespace) -> str:
    """Returns the records of a study as a table: CSV, or what there is of it in a few words."""
    from studies.report.frame import flat

    table = load_study(options.study, smoke=options.smoke, results=options.results)
    if options.csv:
        return str(flat(table).to_csv(index=False, lineterminator="\n")).rstrip("\n")
    columns = ["task", "target", "method", "seed", "state", "test_accuracy", "file_bytes"]
    return str(flat(table)[columns].to_string(index=False))


def report_command(options: Namespace) -> str:
    """Writes tables, figures and page of studies and returns the tables; of all with records, if none is named."""
    from studies.report.write import report_command as write_report

    names = options.study or [name for name in own_specs() if Store((options.results or RESULTS) / name).digests()]
    if not names:
        raise InvalidInputError("no study has a record yet; `python -m studies run NAME` makes some")
    answers = []
    for name in names:
        spec, folder = find_study(name, smoke=options.smoke, results=options.results)
        cells = cells_of(spec)
        out = options.out / spec.name if options.out and len(names) > 1 else options.out or folder
        try:
            answers.append(
                write_report(
                    spec.name,
                    records_of(cells, folder),
                    [cell.key for cell in cells],
                    out,
                    partial=options.partial,
                    mixed=options.mixed,
                    description=describe(spec),
                )
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"study {spec.name}: {error}") from error
    return "\n".join(answers)


def compare_command(options: Namespace) -> str:
    """Returns the table of the cells that two studies share."""
    from studies.report.side_by_side import compare_command as write_comparison

    both = [find_study(name, results=options.results) for name in (options.a, options.b)]
    (name_a, a), (name_b, b) = ((spec.name, records_of(cells_of(spec), folder)) for spec, folder in both)
    return write_comparison(name_a, a, name_b, b, partial=options.partial)


def describe(spec: StudySpec) -> str:
    """Returns what a study compares, in lines of plain text."""
    searches = {cell.name: cell for cell in cells_of(spec) if cell.trials}
    lines = [spec.description] if spec.description else []
    lines.append(f"final training: {spec.final_epochs} epochs, as many as the compressor has in all")
    own = {variant.name: variant.budget for variant in spec.variants if variant.budget is not None}
    for name, cell in searches.items():
        budget = spec.budgets.get(name, own.get(name, spec.budget))
        most = f"at most {cell.trials} trials of {cell.trial_epochs} epochs"
        lines.append(f"{name}: {most}, {budget:g} times the compressor's steps; space {cell.space}")
    return "\n".join(lines)

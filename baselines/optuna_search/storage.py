"""Where Optuna keeps a search: its storage, and the study in it with what the search was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autocompress.errors import InvalidInputError
from baselines.interface import SearchSettings

logger = logging.getLogger(__name__)
JOURNAL = "journal:"
EXAMPLES = f"`sqlite:///search.db`, `postgresql://user@host/name` or `{JOURNAL}search.log`"
# Attribute of a study: what was searched (`identity`) and how long it was meant to be (`trials`).
SEARCH = "search"
LOCK_SECONDS = 60.0
TABLE_ATTEMPTS = 3
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "mssql": 1433, "oracle": 1521}


def database_url(path: Path) -> str:
    """Returns the URL of an SQLite file; in a name, `?` and `%` are to be taken as they are."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def open_storage(url: str | None, connect_seconds: float) -> BaseStorage:
    """Returns the storage of this URL, made where it does not exist; None = one in memory.

    Raises:
        InvalidInputError: there is no such storage, or it does not answer within `connect_seconds`.
    """
    if url is None:
        return optuna.storages.InMemoryStorage()
    try:
        if url.startswith(JOURNAL):
            return _journal(Path(url.removeprefix(JOURNAL)))
        _reach(url, connect_seconds)
        return optuna.storages._CachedStorage(_database(url))
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, InvalidInputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInputError(f"storage {url!r} cannot be used ({reason}); give a URL such as {EXAMPLES}") from error


def check_storage(url: str | None, connect_seconds: float) -> None:
    """Returns if the storage can be used; makes no file.

    Raises:
        InvalidInputError: otherwise.
    """
    path = None if url is None else _file(url)
    if path is None or path.exists():
        close_storage(open_storage(url, connect_seconds))
    elif not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(f"storage {url!r} cannot be used: no file can be made in {str(path.parent)!r}")


def _file(url: str) -> Path | None:
    """Returns the file that a storage is, or None if it is something else."""
    if url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL))
    try:
        parts = make_url(url)
    except ArgumentError:
        return None
    if parts.get_backend_name() != "sqlite" or parts.database is None or parts.database.startswith((":", "file:")):
        return None
    return Path(parts.database)


def _database(url: str) -> RDBStorage:
    """Returns the storage in a database; of SQLite one that does not wait for the disk at each of its writes.

    A trial writes some fifteen times. With a write-ahead log nothing is lost when this process is killed, and only the
    last writes when the machine is.
    """
    # Several processes write: SQLite lets one wait for the other, for 5 seconds unless told otherwise.
    patience = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {}
    storage = _made(lambda: RDBStorage(url, engine_kwargs=patience))
    if storage.engine.dialect.name == "sqlite" and storage.engine.url.database:
        event.listen(storage.engine, "connect", _write_ahead)
        event.listen(storage.engine, "begin", _begin_as_writer)
        storage.engine.dispose()
    return storage


def _made(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Returns the storage; where another process makes the same tables in the same moment, one of the two fails."""
    for attempt in range(TABLE_ATTEMPTS):
        try:
            return make()
        except (SQLAlchemyError, StorageInternalError):
            if attempt == TABLE_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


def _write_ahead(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.isolation_level = None  # transactions are begun below


def _begin_as_writer(connection: Any) -> None:
    """Begins a transaction that no other process can write into.

    As Python does it, two processes may both read that a trial waits, and both take it: SQLite has no row locks.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def close_storage(storage: BaseStorage) -> None:
    """Closes the connections to a database, so that all of it is in its file."""
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, RDBStorage):
        backend.remove_session()
        backend.engine.dispose()


def _journal(path: Path) -> BaseStorage:
    """Returns the storage in a journal file, which may lie on a file system that several machines share."""
    return JournalStorage(JournalFileBackend(str(path)))


def _reach(url: str, connect_seconds: float) -> None:
    """Returns if the server of `url` takes connections; a driver's own time-out can be minutes."""
    parts = make_url(url)
    port = parts.port or PORTS.get(parts.get_backend_name())
    if not parts.host or port is None or parts.host.startswith("/"):
        return
    try:
        socket.create_connection((parts.host, port), timeout=connect_seconds).close()
    except OSError as error:
        raise InvalidInputError(
            f"storage {url!r}: {parts.host}:{port} does not answer within {connect_seconds:g} seconds "
            f"({error}); start the server, or give another storage"
        ) from error


def open_study(
    settings: SearchSettings, identity: Mapping[str, Any], *, directions: list[Literal["maximize", "minimize"]]
) -> tuple[BaseStorage, Study, int]:
    """Returns (the storage, the study of this search in it, the trials that it was first meant to have).

    Several processes may open the same one at the same time, each to resume it.

    Raises:
        InvalidInputError: the storage cannot be used; it holds the search, and `settings.resume` is not set; or it is
            set, and the storage holds other searches only.
    """
    storage = open_storage(settings.storage, settings.connect_seconds)
    identity = json.loads(json.dumps(identity))
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    # The name decides the brackets of Hyperband: it must be the same in every process.
    name = f"{identity['method']}-seed{identity['seed']}-{digest}"
    others = {study.study_name: study.user_attrs.get(SEARCH) for study in storage.get_all_studies()}
    if name in others and not settings.resume:
        raise InvalidInputError(
            f"storage {settings.storage!r} already holds this search ({name}); resume it, or give another storage"
        )
    if name not in others and settings.resume:
        _refuse_others(settings.storage, identity, [search["identity"] for search in others.values() if search])
        logger.warning("there is no search in %s to be resumed; a new one begins", settings.storage)
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    # A process may have been killed after it made the study and before it said what it is.
    if SEARCH not in study.user_attrs:
        study.set_user_attr(SEARCH, {"identity": identity, "trials": settings.trials})
        study.set_metric_names(["score (minus the validation loss)", "size"][: len(directions)])
    return storage, study, int(study.user_attrs[SEARCH]["trials"])


def _refuse_others(storage: str | None, identity: Mapping[str, Any], others: list[Mapping[str, Any]]) -> None:
    """Raises InvalidInputError if there are other searches, naming how the one most like ours differs."""
    if not others:
        return
    differences = [
        [key for key in sorted({*other, *identity}) if other.get(key) != identity.get(key)] for other in others
    ]
    differing, other = min(zip(differences, others, strict=True), key=lambda pair: len(pair[0]))
    closest = [f"{key} is {other.get(key)!r} there, {identity.get(key)!r} here" for key in differing]
    raise InvalidInputError(
        f"storage {storage!r} holds another search, which this one cannot resume: "
        f"{', '.join(closest)}; give the same command, or another storage"
    )

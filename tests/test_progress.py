"""Nobody is left in the dark: a line now and then where there is no bar, through the log or on stderr."""

import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading

import pytest
import small_task

import autocompress as ac
from autocompress.training import progress
from autocompress.training.progress import Progress, duration, say, stage

pytestmark = pytest.mark.any_file


def run(monkeypatch, shown=True, recipe=None, **more):
    """Compresses a small network, with a line wherever there may be one."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_EPOCHS", 0.0)
    task, model = small_task.make_task(), small_task.make_shallow_model()
    settings = {"train": task.train, "target": "900B", "epochs": 1, "recipe": recipe or ac.Recipe(), "progress": shown}
    return ac.compress(model, **settings, **more)


def test_without_a_terminal_and_a_log_what_is_done_is_told_on_stderr(monkeypatch, capsys):
    run(monkeypatch)
    told = capsys.readouterr().err.splitlines()
    assert all(line.startswith("autocompress: ") for line in told), told
    assert told[0].startswith("autocompress: looking for a learning rate: step 1 of 100")
    assert any(line.startswith("autocompress: epoch 1/1: step 1 of 10, loss ") for line in told)
    assert any(line.startswith("autocompress: epoch 1/1: loss ") for line in told)


def test_where_logging_is_set_up_the_lines_go_there_alone(monkeypatch, capsys, caplog):
    rates = []

    class Look(ac.Callback):
        def on_step(self, trainer):
            rates.append(trainer.scalars["learning_rate"])

    recipe = ac.Recipe("sgd", learning_rate=0.02, warmup_fraction=0.0)
    with caplog.at_level(logging.INFO, logger="autocompress"):
        run(monkeypatch, recipe=recipe, callbacks=[Look()])
    assert capsys.readouterr().err == ""
    told = [record.message for record in caplog.records if record.name == "autocompress.training.progress"]
    assert len(told) == 11  # ten steps and the epoch
    assert rates[0] == 0.02
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("kept_out", [False, True])
def test_nothing_is_said_where_that_is_asked_for(monkeypatch, capsys, kept_out):
    log = logging.getLogger("autocompress")
    if kept_out:
        monkeypatch.setattr(log, "level", logging.WARNING)
    with Progress(3, "steps", shown=kept_out) as bar:
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        bar.update()
    with stage("something", shown=False):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars(monkeypatch):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    seen = []

    def read():
        while part := os.read(master, 65536):
            seen.append(part)
            if b"the end" in part:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with Progress(3, "epoch 1/1") as bar:
            for _ in range(3):
                bar.update("loss 0.5")
            bar.end_epoch("epoch 1/1: loss 0.5")
        print("the end", file=stderr, flush=True)
        reader.join(60)
    os.close(master)
    text = b"".join(seen).decode()
    assert "epoch 1/1: 100%" in text
    assert "3/3" in text
    assert "loss 0.5" in text
    assert "autocompress:" not in text


def test_what_lasts_is_said(monkeypatch, capsys):
    monkeypatch.setattr(progress, "STAGE_SECONDS", 0.0)
    told = threading.Event()
    monkeypatch.setattr(progress, "say", lambda *given: (say(*given), told.set()))
    with stage("waiting for something"):
        assert told.wait(60)
    assert capsys.readouterr().err == "autocompress: waiting for something ...\n"


def test_steps_of_an_earlier_process_say_nothing_of_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Progress(1000, "training", done=900, shown=False)
    now[0] = 50.0
    bar.update()
    assert bar.time_left() == duration(50.0 * 99)

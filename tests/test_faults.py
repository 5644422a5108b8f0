import errno
import os
import signal
import threading

import pytest

from fl_sim.errors import FlSimError
from fl_sim.faults import LONGEST, blaming, cause, first_line


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("momentum"), "Round 2: it failed: KeyError: 'momentum'."),
        (SystemExit(3), "Round 2: it failed: SystemExit: 3."),
        (KeyboardInterrupt(), "Round 2: it failed: KeyboardInterrupt."),
        (FlSimError("The disk is full."), "Round 2: it: The disk is full."),
        (ValueError("one.\ntwo"), "Round 2: it failed: ValueError: one."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_raised_is_told_by_name(error, sentence):
    with pytest.raises(FlSimError) as caught, blaming("Round 2: it"):
        raise error
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is error


def test_a_full_disk_is_nobodys_fault():
    with pytest.raises(OSError, match="full") as caught, blaming("it"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FlSimError, match="it failed"), blaming("it"):
        raise PermissionError(errno.EACCES, "no")


class WriteError(FlSimError, OSError):
    pass


def test_a_file_that_cannot_be_written_has_its_own_sentence():
    error = WriteError("The file x cannot be written: permission is denied.")
    with pytest.raises(WriteError) as caught, blaming("it"):
        raise error
    assert caught.value is error


def test_a_signal_passes():
    def stop(number, frame):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit), blaming("it"):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_no_signal_arrives():
    said = []

    def work():
        try:
            with blaming("it"):
                raise SystemExit(1)
        except FlSimError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["it failed: SystemExit: 1."]


def test_a_line_is_short_and_printable():
    assert first_line("\n  one \ntwo") == "one"
    assert first_line("\x1b]0;title\x07") == r"\x1b]0;title\x07"
    assert first_line("é ü 病") == "é ü 病"
    assert first_line("\ud800") == r"\ud800"
    assert first_line("x" * 10**6) == "x" * LONGEST + "..."
    assert first_line("xyz", 2) == "xy..."
    assert cause(ValueError()) == "ValueError"

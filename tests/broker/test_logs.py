"""Log events: as lines, as records for the stream, and not at all below the level."""

from __future__ import annotations

import gc
import io
import json
import sys
import threading
from typing import Any

import pytest

from broker.logs import DEBUG, ERROR, INFO, WARNING, Record, StreamSink, configure, emit, get_logger, render_text
from broker.protocol.effects import Log


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines written so far."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def written() -> io.StringIO:
    """Where this process' events go, from INFO on."""
    stream = io.StringIO()
    configure(level=INFO, stream=stream)
    return stream


def test_an_event_is_one_json_line_in_reading_order(written: io.StringIO) -> None:
    """Time, level and name come first, then what is bound, then the event's own fields."""
    get_logger("agent", device="pi").bind(plan="ab").info("plan_loaded", ops=2)
    (line,) = lines(written)
    assert list(line) == ["timestamp", "level", "event", "component", "device", "plan", "ops"]
    assert (line["level"], line["event"], line["component"]) == ("info", "plan_loaded", "agent")
    assert line["timestamp"].endswith("Z")
    assert len(line["timestamp"]) == len("2026-01-01T00:00:00.000000Z")


def test_events_below_the_level_are_not_written(written: io.StringIO) -> None:
    """The level holds for each way to log."""
    log = get_logger("broker")
    log.debug("hop")
    log.log(DEBUG, "hop")
    emit(log, Log(level=DEBUG, event="hop"))
    assert lines(written) == []
    log.warning("refused")
    log.error("broken")
    log.log(INFO, "begun")
    emit(log, Log(level=WARNING, event="lost", fields={"device": "pi"}))
    assert [line["event"] for line in lines(written)] == ["refused", "broken", "begun", "lost"]
    assert lines(written)[3]["device"] == "pi"


def test_a_library_writes_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody has configured anything, a user's program is not filled with our events."""
    log = get_logger("session")
    log.info("session_opened")
    log.warning("encryption_missing")
    assert json.loads(capsys.readouterr().err)["event"] == "encryption_missing"


def test_the_stream_and_the_lines_have_levels_of_their_own(written: io.StringIO) -> None:
    """A follower at DEBUG does not fill the local log, and none at all costs nothing."""
    followed: list[Record] = []
    sink = StreamSink(followed.append)
    log = get_logger("agent", sink=sink)
    log.debug("before")
    assert log.level == INFO
    sink.level = DEBUG
    assert log.level == DEBUG
    log.debug("hop", id="00")
    log.info("begun")
    sink.level = WARNING
    assert log.level == INFO
    log.info("only local")
    sink.level = 0
    log.error("also only local")
    assert [record["event"] for record in followed] == ["hop", "begun"]
    assert [line["event"] for line in lines(written)] == ["begun", "only local", "also only local"]
    assert followed[0]["level"] == "debug"


def test_each_logger_has_its_own_sink(written: io.StringIO) -> None:
    """Virtual devices share a process, and each streams its own events; what is bound to one is on no other."""
    first: list[Record] = []
    second: list[Record] = []
    one = get_logger("agent", sink=StreamSink(first.append, INFO), device="one")
    two = get_logger("agent", sink=StreamSink(second.append, INFO), device="two")
    one.info("a")
    two.bind(extra=1).info("b")
    two.info("c")
    assert [(record["device"], record["event"]) for record in first] == [("one", "a")]
    assert [record.get("extra") for record in second] == [1, None]
    assert len(lines(written)) == 3


def test_a_record_holds_plain_values_alone(written: io.StringIO) -> None:
    """Bytes become hex, so that every reader of the stream can take it; no field overrides what the record is."""
    log = get_logger("broker")
    emit(log, Log(level=INFO, event="x", fields={"id": b"\x01\xff", "level": 7, "event": "y"}))  # type: ignore[dict-item]
    (line,) = lines(written)
    assert (line["id"], line["level"], line["event"]) == ("01ff", "info", "x")
    assert (line["level_"], line["event_"]) == (7, "y")


def test_an_exception_comes_with_its_traceback(written: io.StringIO) -> None:
    """In a field of its own, so that the line stays one line."""
    log = get_logger("worker")
    try:
        raise ValueError("no such tensor")
    except ValueError:
        log.exception("plan_failed", op=3)
    (line,) = lines(written)
    assert (line["level"], line["op"]) == ("error", 3)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: no such tensor")


def test_people_at_a_terminal_get_coloured_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text where a person looks, JSON elsewhere, unless told otherwise; NO_COLOR is heeded."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    configure(stream=terminal)
    get_logger("broker").info("device_joined", device="pi")
    assert "\x1b[" in terminal.getvalue()
    assert "device_joined" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    configure(stream=plain)
    get_logger("broker").info("device_joined", device="pi")
    assert "\x1b[" not in plain.getvalue()
    assert plain.getvalue().endswith("component=broker device=pi\n")
    told = Terminal()
    configure(stream=told, json=True)
    get_logger("broker").info("device_joined", device="pi")
    assert lines(told)[0]["device"] == "pi"


def test_text_can_be_had_of_a_record_that_came_by_the_stream() -> None:
    """An operator's program shows what other machines logged."""
    record: Record = {
        "timestamp": "T",
        "level": "warning",
        "event": "device_lost",
        "component": "broker",
        "device": "pi",
    }
    assert " ".join(render_text(record, colours=False).split()) == "T [warning ] device_lost component=broker device=pi"


def test_whoever_reads_the_log_may_go() -> None:
    """A closed stream or a full disk ends no fleet."""
    stream = io.StringIO()
    configure(stream=stream)
    stream.close()
    get_logger("broker").error("unheard")


def test_lines_of_several_threads_stay_whole(written: io.StringIO) -> None:
    """A driver, a blob thread and a worker thread log side by side."""

    def log_much(name: str) -> None:
        log = get_logger(name)
        for k in range(200):
            log.info("step", k=k)

    threads = [threading.Thread(target=log_much, args=(f"t{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(lines(written)) == 800


def test_a_call_below_the_level_does_nothing(written: io.StringIO) -> None:
    """The fast path logs each hop of each invocation: that call is all that it costs while nobody wants to know."""
    log = get_logger("broker", sink=StreamSink(lambda _record: None))
    called: list[str] = []
    gc.disable()  # a collection calls back whoever measures collections, which is no call of ours
    sys.setprofile(lambda frame, event, _called: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        log.debug("hop", n=1)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert len(called) <= 2, called  # the call, and its look at the level
    assert written.getvalue() == ""


def test_level_names_are_those_of_their_numbers(written: io.StringIO) -> None:
    """The stream's topics use the numbers."""
    configure(level=DEBUG, stream=written)
    log = get_logger("broker")
    for level in (DEBUG, INFO, WARNING, ERROR):
        log.log(level, "x")
    assert [line["level"] for line in lines(written)] == ["debug", "info", "warning", "error"]

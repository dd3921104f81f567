"""What the log says of an error that nobody foresaw: places, and never a message."""

import logging
import re

import pytest

from rapt.service.answers.batching import told
from rapt.service.traces import DEBUG_WARNING, describe_trace, log_unforeseen, switch_tracebacks

SECRET = "the patient said that it hurts"


def deeply():
    raise KeyError(SECRET)


PLACE = f"service/test_traces.py:{deeply.__code__.co_firstlineno + 1}"


def caught(cause=True):
    try:
        try:
            deeply()
        except KeyError as error:
            if cause:
                raise ValueError(SECRET) from error
            raise ValueError(SECRET) from None
    except ValueError as error:
        return error


@pytest.mark.parametrize("cause", [True, False])
def test_a_trace_has_every_class_and_place_from_inside_out_also_of_causes_that_were_hidden(cause):
    trace = describe_trace(caught(cause))
    assert SECRET not in trace
    outer, inner = trace.split(", because of ")
    assert re.match(r"ValueError at (\S+/)?service/test_traces\.py:", outer)
    assert re.match(rf"KeyError at (\S+/)?{PLACE} < (\S+/)?service/test_traces\.py:", inner)


def test_code_of_ours_is_named_by_its_path_in_the_package():
    with pytest.raises(AttributeError) as caught:
        describe_trace(None)
    assert "service/traces.py:" in describe_trace(caught.value)


def test_an_endless_chain_and_a_deep_stack_are_one_line():
    def dig(depth):
        if depth:
            dig(depth - 1)
        raise KeyError(SECRET)

    with pytest.raises(KeyError) as caught:
        dig(200)
    caught.value.__cause__ = caught.value
    trace = describe_trace(caught.value)
    assert len(trace) < 1000
    assert trace.endswith("...")


def test_every_error_of_a_group_is_named():
    assert describe_trace(ExceptionGroup(SECRET, [KeyError(), OSError()])).count(", because of ") == 2


def test_what_a_caller_of_a_pass_is_given_still_leads_to_its_cause_in_the_log():
    seen = told(caught())
    assert SECRET not in str(seen)
    assert re.search(rf"KeyError at (\S+/)?{PLACE}", describe_trace(seen))


@pytest.fixture
def quiet():
    yield
    switch_tracebacks(logging.getLogger("rapt"), on=False)


def test_only_the_debug_switch_prints_messages_and_it_says_so(caplog, quiet):
    log = logging.getLogger("rapt.test")
    caplog.set_level(logging.DEBUG)
    switch_tracebacks(log, on=False)
    log_unforeseen(log, "req_1", caught())
    assert "req_1 failed: ValueError at" in caplog.text
    assert SECRET not in caplog.text
    assert DEBUG_WARNING not in caplog.text
    switch_tracebacks(log, on=True)
    assert DEBUG_WARNING in caplog.text
    log_unforeseen(log, "req_2", caught())
    assert SECRET in caplog.text

import logging

import pytest

import kernels
from kernels import _select
from kernels._select import Candidate, choose_backend, default_backend

FAST = Candidate(name="fast", why_not=None)
SLOW = Candidate(name="slow", why_not=None)
BROKEN = Candidate(name="broken", why_not="it is not built.")


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(_select, "_announced", set())


def test_the_first_backend_that_can_run_is_chosen():
    assert choose_backend("op", [BROKEN, FAST, SLOW], None) == "fast"


def test_a_backend_asked_for_is_taken_even_if_slower():
    assert choose_backend("op", [FAST, SLOW], "slow") == "slow"


def test_an_unavailable_backend_says_why_and_what_else_there_is():
    expected = r"op: backend 'broken' cannot run this call: it is not built.*\['fast', 'slow'\]"
    with pytest.raises(kernels.BackendUnavailable, match=expected):
        choose_backend("op", [BROKEN, FAST, SLOW], "broken")


def test_an_unknown_backend_is_answered_with_the_names():
    expected = r"op: backend must be None or one of \['fast', 'slow'\]; got 'quick'"
    with pytest.raises(ValueError, match=expected):
        choose_backend("op", [FAST, SLOW], "quick")


def test_no_backend_at_all_lists_every_reason():
    with pytest.raises(kernels.BackendUnavailable, match=r"no backend.*broken: it is not built"):
        choose_backend("op", [BROKEN], None)


def test_the_choice_is_logged_once_with_the_reason(caplog):
    with caplog.at_level(logging.INFO, logger="kernels"):
        choose_backend("op", [BROKEN, FAST], None)
        choose_backend("op", [BROKEN, FAST], None)
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert messages == [("WARNING", "op runs on backend 'fast'; not broken: it is not built.")]


def test_a_backend_of_another_device_is_no_warning(caplog):
    elsewhere = Candidate(name="gpu", why_not="the tensors are on cpu, not on a GPU.")
    with caplog.at_level(logging.INFO, logger="kernels"):
        choose_backend("op", [elsewhere, FAST], None)
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert messages == [("INFO", "op runs on backend 'fast'")]


def test_a_default_backend_holds_within_its_context_only():
    candidates = [FAST, SLOW]
    with default_backend("slow"):
        assert choose_backend("op", candidates, None) == "slow"
        assert choose_backend("op", candidates, "fast") == "fast"
    assert choose_backend("op", candidates, None) == "fast"

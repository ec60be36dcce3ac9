"""No query reads more pages, or tests more entries, than it did: a check of speed that needs no clock.

Promises (Right answers):

- no query reads more pages or tests more entries than it did, on any machine; after a change that is meant to,
  `python tests/support/page_accesses.py` writes the expectations anew:
  test_queries_cost_what_they_did.
"""

import pytest
from support import page_accesses

TOLERANCE = 0.02
AGAIN = "if that is meant, run `python tests/support/page_accesses.py` and commit what it writes"


def differences(figures: page_accesses.Figures, expected: page_accesses.Figures) -> list[str]:
    """Says what costs more, or less, than expected. Results must be the same."""
    found = []
    for query, costs in expected.items():
        for what, before in costs.items():
            now = figures[query][what]
            if what == "results" and now != before:
                found.append(f"{query}: {now} results, expected {before}")
            elif abs(now - before) > TOLERANCE * before:
                found.append(f"{query}: {now} {what}, {'worse' if now > before else 'better'} than {before}; {AGAIN}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", page_accesses.WORKLOADS)
def test_queries_cost_what_they_did(name):
    figures, expected = page_accesses.measure(name), page_accesses.expected()[name]
    assert figures.keys() == expected.keys()
    assert not differences(figures, expected)


def test_the_expectations_are_of_the_workloads_there_are():
    assert list(page_accesses.expected()) == list(page_accesses.WORKLOADS)


def test_a_change_of_more_than_two_percent_is_told_either_way():
    before = {"points": {"results": 5, "pages": 100, "blocks": 1000, "entries": 0}}
    assert not differences({"points": {"results": 5, "pages": 102, "blocks": 980, "entries": 0}}, before)
    worse = differences({"points": {"results": 5, "pages": 103, "blocks": 1000, "entries": 1}}, before)
    assert ["103 pages, worse than 100" in worse[0], "1 entries, worse than 0" in worse[1]] == [True, True]
    assert "better than 1000; if that is meant" in differences(
        {"points": {"results": 5, "pages": 100, "blocks": 900, "entries": 0}}, before)[0]
    assert "4 results, expected 5" in differences(
        {"points": {"results": 4, "pages": 100, "blocks": 1000, "entries": 0}}, before)[0]

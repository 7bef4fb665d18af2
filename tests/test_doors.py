"""Wrong values at the outer doors: an error that names the argument; of those that are valid a result, never NaN."""

import itertools

import calls
import doors


def test_wrong_values_are_named(tmp_path, monkeypatch):
    """A seventh of the zoo for each argument, and some pairs of them; ``python tests/doors.py`` tries all."""
    monkeypatch.chdir(tmp_path)
    failed, count = [], 0
    made = calls.doors(tmp_path)
    some = (case for i, case in enumerate(doors.singles(made)) if (i // len(doors.ZOO) + i) % 7 == 0)
    for case in itertools.chain(some, doors.pairs(made, 1000)):
        verdict, count = doors.tried(case), count + 1
        if verdict.kind in ("accepted", "silent", "unclear"):
            failed.append(f"{case.name}: {verdict.kind}, {verdict.told[:200]}")
    assert not failed, "\n".join(failed)
    assert count > 3500

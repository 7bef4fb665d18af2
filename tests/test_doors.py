"""Wrong values at the outer doors: a result, or an error that names the argument; never another error, never NaN."""

from doors import ZOO, cases, tried


def test_wrong_values_are_named(tmp_path, monkeypatch):
    """A fifth of the zoo for each argument, another fifth for the next; ``python tests/doors.py`` tries all of it."""
    monkeypatch.chdir(tmp_path)
    failed, count = [], 0
    for i, (name, door, argument, wrong) in enumerate(cases(tmp_path)):
        if (i // len(ZOO) + i) % 5:
            continue
        verdict, count = tried(door, argument, wrong.value), count + 1
        if verdict.kind in ("silent", "unclear"):
            failed.append(f"{name}({argument}={wrong.name}): {verdict.kind}, {verdict.told[:200]}")
    assert not failed, "\n".join(failed)
    assert count > 2000

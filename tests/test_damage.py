"""Damaged files of every kind that is read: what the whole file gives, or an error that names the file; little memory."""

import tracemalloc

import damage
import pytest


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    return damage.formats(tmp_path_factory.mktemp("made"))


def test_damaged_files_are_named(formats, tmp_path):
    """Some bytes of each; ``python tests/doors.py files`` tries more."""
    failed, count = [], 0
    for i, form in enumerate(formats):
        folder = tmp_path / str(i)
        want = damage.whole(form, folder)
        for harm in damage.damages(form, 6):
            (kind, text), count = damage.tried(form, folder, harm, want), count + 1
            if kind in ("silent", "unclear"):
                failed.append(f"{form.name}, {harm.name}: {kind}, {text[:200]}")
    assert not failed, "\n".join(failed)
    assert count > 1500


def test_what_a_file_says_of_its_size_costs_no_memory(formats, tmp_path):
    """Sizes that lie and bombs: what is read is bounded by what is wanted and what is there."""
    for i, form in enumerate(formats):
        folder = tmp_path / str(i)
        want = damage.whole(form, folder)
        for name, content in form.lies.items():
            tracemalloc.start()
            try:
                damage.tried(form, folder, damage.Damage(name, content), want)
                assert tracemalloc.get_traced_memory()[1] < 80e6, f"{form.name}, {name}"
            finally:
                tracemalloc.stop()

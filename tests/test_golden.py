"""What runs in users' hands depend on is what it was; see `tests/golden/__init__.py`."""

import pytest

from tests.golden.groups import GROUPS
from tests.golden.store import FOLDER, Group

MOST_BYTES = 150_000
LEAST_ERRORS = 60
CASES = []
for _group in GROUPS.values():
    CASES += [pytest.param(_group, name, id=f"{_group.name}-{name}") for name in _group.functions]


@pytest.mark.parametrize(("group", "name"), CASES)
def test_the_value_is_the_committed_one(group: Group, name: str):
    assert group.compute(name) == group.read()[name]


@pytest.mark.parametrize("group", GROUPS.values(), ids=list(GROUPS))
def test_every_committed_value_has_a_function(group: Group):
    assert set(group.read()) == set(group.functions)


def test_every_file_belongs_to_a_subject_and_they_are_small():
    files = list(FOLDER.glob("*.json"))
    assert {path.stem for path in files} == set(GROUPS)
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_error_lines_are_many_and_one_line_each():
    errors = [group.read() for name, group in GROUPS.items() if name.startswith("errors_")]
    refusals = [refusal for values in errors for refusal in values.values()]
    assert len(refusals) >= LEAST_ERRORS
    assert {code for code, _ in refusals} <= {2, 3, 4, 5}
    assert all(line.startswith("error: ") and "\n" not in line for _, line in refusals)

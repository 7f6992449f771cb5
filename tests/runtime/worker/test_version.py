from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from wool.runtime.worker.version import is_version_compatible, parse_version

versions = st.builds(
    "{}.{}.{}{}".format,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["", "a1", "rc2", ".dev3", ".post4", "+local"]),
)


@pytest.mark.parametrize("text", ["1.2.3", "1.2rc1", "1!2.0", "v1.0", " 1.0 ", "1.0+local.7"])
def test_parse_version_valid(text: str) -> None:
    assert parse_version(text) == Version(text)


@pytest.mark.parametrize("text", ["", "unknown", "1.2.x", "1..2", "one"])
def test_parse_version_invalid(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2.4", True),
        ("1.2.3", "1.10.0", True),
        ("1.2.3", "1.2.2", False),
        ("1.2.3", "2.0.0", False),
        ("2.0.0", "1.9.9", False),
        ("1.2rc1", "1.2", True),
        ("1.2", "1.2rc1", False),
    ],
)
def test_is_version_compatible_worker_not_older(client: str, server: str, expected: bool) -> None:
    assert is_version_compatible(parse_version(client), parse_version(server)) is expected


def test_is_version_compatible_unparsable() -> None:
    assert not is_version_compatible(None, Version("1.0"))
    assert not is_version_compatible(Version("1.0"), None)
    assert not is_version_compatible(None, None)


@given(versions, versions)
def test_is_version_compatible_both_ways_only_if_equal(left: str, right: str) -> None:
    a, b = parse_version(left), parse_version(right)
    both = is_version_compatible(a, b) and is_version_compatible(b, a)
    assert both is (a == b)
    either = is_version_compatible(a, b) or is_version_compatible(b, a)
    assert either is (Version(left).major == Version(right).major)

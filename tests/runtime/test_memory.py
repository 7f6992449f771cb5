from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wool.runtime import memory
from wool.runtime.memory import HUGE, Buffer, Form, Landing

KINDS = {Form.BYTES: bytes, Form.BYTEARRAY: bytearray, Form.VIEW: memoryview}


def fill(landing: Landing, data: bytes, step: int) -> Buffer:
    done = 0
    while landing.left:
        with landing.room(step) as room:
            room[:] = data[done : done + len(room)]
            done += len(room)
    return landing.take()


@given(st.sampled_from(Form), st.binary(max_size=100), st.integers(1, 120))
def test_landing_filled_in_steps(form: Form, data: bytes, step: int) -> None:
    buffer = fill(Landing(form, len(data)), data, step)

    assert type(buffer) is KINDS[form]
    assert buffer == data
    assert Form.of(buffer) is form


@pytest.mark.parametrize("form", Form)
def test_landing_in_huge_pages(form: Form) -> None:
    data = bytes(range(256)) * (HUGE // 256) + b"end"

    assert fill(Landing(form, len(data)), data, 1024 * 1024) == data


def test_landing_of_a_form_unknown_here_can_be_written_to() -> None:
    buffer = fill(Landing(7, 3), b"abc", 3)

    assert Form.of(buffer) is Form.VIEW


def test_landing_bytes_are_not_copied_when_taken() -> None:
    landing = Landing(Form.BYTES, 100)
    fill(landing, bytes(range(100)), 10)

    assert landing.take() is landing.take()


@pytest.mark.parametrize("size", [100, HUGE])
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("taken", [False, True])
def test_garbage_collector_has_nothing_to_complain_of(size: int, form: Form, taken: bool) -> None:
    """Before 3.13 Python only does in its development mode."""
    program = f"""
import gc
from wool.runtime.memory import Landing

landing = Landing({form.value}, {size})
cycle = [landing.take() if {taken} else landing]
cycle.append(cycle)
del landing, cycle
gc.collect()
"""
    command = [sys.executable, "-X", "dev", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("size", [0, 10, HUGE])
@pytest.mark.parametrize("kind", [bytearray, lambda size: memoryview(bytearray(size))])
def test_copy_is_private(size: int, kind: type) -> None:
    original = kind(size)

    copied = memory.copy(memoryview(original))
    original[:] = b"x" * size

    assert bytes(copied) == bytes(size)
    assert Form.of(copied) is not Form.BYTES

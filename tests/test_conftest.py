from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent

CONFTEST = """
import tests.conftest

pytest_plugins = ["tests.conftest"]
tests.conftest.SETTLE = 0.3
"""

LEAKS = """
import asyncio, os, socket, subprocess, sys, threading
from pathlib import Path
import pytest

kept = []

def test_thread():
    threading.Thread(target=threading.Event().wait, name="strayed", daemon=True).start()

def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_zombie():
    kept.append(subprocess.Popen([sys.executable, "-c", ""]))

def test_descriptor():
    kept.append(socket.socket())

def test_socket_file(runtime_directory):
    (runtime_directory / "wool").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime_directory / "wool" / "strayed.sock"))

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(3600), name="strayed"))

@pytest.mark.leaky("to show that it may")
async def test_excused():
    kept.append(socket.socket())
    kept.append(asyncio.create_task(asyncio.sleep(3600)))
"""

TIDY = """
import asyncio, os, socket, subprocess, sys, threading
from pathlib import Path
import grpc.aio

def test_what_ends_in_time(runtime_directory):
    threading.Timer(0.05, lambda: None).start()
    subprocess.run([sys.executable, "-c", ""], check=True)
    socket.socket().close()
    assert os.environ["XDG_RUNTIME_DIR"] == str(runtime_directory)
    assert runtime_directory.stat().st_mode & 0o777 == 0o700

async def test_tasks_that_end_in_time():
    asyncio.create_task(asyncio.sleep(0.05))
    await asyncio.to_thread(int)

async def test_grpc(runtime_directory):
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{runtime_directory}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{runtime_directory}/s") as channel:
        await channel.channel_ready()
    await server.stop(0)
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with this one's settings and fixtures, and little patience for leaks."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text())
    return pytester


def test_leak_check_leaky_tests(session: pytest.Pytester) -> None:
    result = session.runpytest_subprocess(session.makepyfile(LEAKS))

    result.assert_outcomes(passed=7, errors=6)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_thread*",
            "E*Failed: leaked thread strayed *",
            "*ERROR at teardown of test_process*",
            "E*Failed: leaked descriptor pipe, process *",
            "*ERROR at teardown of test_zombie*",
            "E*Failed: leaked process *",
            "*ERROR at teardown of test_descriptor*",
            "E*Failed: leaked descriptor socket",
            "*ERROR at teardown of test_socket_file*",
            "E*Failed: leaked file */wool/strayed.sock",
            "*ERROR at teardown of test_task*",
            "E*Failed: leaked <Task pending name='strayed' *",
        ]
    )


def test_leak_check_tidy_tests(session: pytest.Pytester) -> None:
    result = session.runpytest_subprocess(session.makepyfile(TIDY))

    result.assert_outcomes(passed=3)

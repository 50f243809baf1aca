"""Runs the real command line in a fresh process without paying for the start of Python and torch each time.

This process imports everything, runs no torch operation and keeps one thread, so it may fork (``docs/architecture.md``).
For each request, one JSON line on stdin, it forks a child that enters the folder, takes the environment, sends its
output to a file and calls ``main``. It answers with the child's pid, then with its exit status. The child is an
ordinary process: SIGKILL hits it, not this one.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable


def serve() -> None:
    from perturblab.cli import main

    for module in sys.argv[1:]:
        importlib.import_module(module)
    assert threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1, "a thread: no fork is safe"
    gc.freeze()
    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(request)
            run(main, request["words"])
        answer(pid=pid)
        answer(status=os.waitpid(pid, 0)[1])


def become(request: dict) -> None:
    """What a shell would do for the child, and the hook of a test, if there is one."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["user"]:
        os.setgid(request["user"])
        os.setuid(request["user"])
    for module, function, arguments in request["hooks"]:
        getattr(importlib.import_module(module), function)(*arguments)


def run(main: Callable[[list[str]], None], words: list[str]) -> None:
    """Call ``main`` and leave at once with its exit code: taking torch's modules apart would cost a second."""
    code = 1
    try:
        main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(code)


def answer(**content: object) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve()

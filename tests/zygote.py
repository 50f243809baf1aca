"""Runs the real command line in a process of its own, without paying for the start of Python and torch each time.

This process imports everything, runs no torch operation and keeps one thread, so it may fork. For each request, one
JSON line on stdin, it forks a child that enters the folder, takes the environment, sends its output to a file and
calls ``main``. It answers with the child's pid, then with its exit status. The child is an ordinary process: a
signal that is sent to its pid hits it, and nothing of it survives SIGKILL but its files.
"""

import gc
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


def serve(modules: list[str]) -> None:
    from perturblab.cli import main

    for module in modules:
        importlib.import_module(module)
    threads = (threading.active_count(), len(os.listdir("/proc/self/task")))
    assert threads == (1, 1), f"{threads} threads: a fork is not safe"
    gc.freeze()  # spares the children copying what they only read
    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(main, request)
        answer(pid=pid)
        answer(status=os.waitpid(pid, 0)[1])


def run(main: Callable[[list[str]], None], request: dict[str, Any]) -> None:
    """Become the child and leave with main's exit code, at once: taking torch's modules apart costs a second."""
    code = 1
    try:
        become(request)
        main(request["words"])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(request: dict[str, Any]) -> None:
    """What a shell would do for a command, and the hooks that a test asks for."""
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(handle, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["user"]:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    for module, function, *arguments in request["hooks"]:
        getattr(importlib.import_module(module), function)(*arguments)


def answer(**content: object) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
    os._exit(0)

"""Imported first by the server from which runs are forked: it leaves the terminal's group of processes, so that a Ctrl-C
reaches the launcher alone, which passes it on; a run that is just starting would answer with a traceback. Until then
Ctrl-C is blocked, by the launcher that starts the server."""

from __future__ import annotations

import os
import signal
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

"""Where the program starts. Ctrl-C in the half second before the command line is imported is no traceback either."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from perturblab.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("stopped: interrupted; nothing had begun\n")
        sys.exit(130)
    command_line()


if __name__ == "__main__":  # a server of processes imports the main module under another name
    main()

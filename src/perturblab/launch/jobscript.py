"""The text of an array job's script, which Grid Engine, Slurm and plain bash run unchanged.

Headers for both schedulers, the user's environment, the command of a run, and ``BODY``, which finds the line of
parameters that this task is to run. What it says of the schedulers was seen on real ones (``tests/test_slurm.py``, ``test_grid_engine.py``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from perturblab.settings import Settings, documented_flag
from perturblab.terminal import UserError, counted

LOGS = Path("logs")  # in the folder of submission
WARNING_S = 120  # between Slurm's signal and the time limit; a step and a checkpoint take seconds


def about(command: str, n: int, script: Path, lines: Path) -> list[str]:
    """What the script is and how it is started, as comments."""
    quoted = shlex.quote(str(script))
    return [
        f"# {counted(n, 'run')} of {command}, one per line of {lines}. To start it, from the folder where it was written:",
        f"#   qsub {quoted}      Grid Engine",
        f"#   sbatch {quoted}    Slurm",
        f"#   bash {quoted}      here, one after another; with a number at the end only that line",
        "# A run that is done ends at once, its exported files in place; one that was stopped goes on.",
    ]


def headers(job_name: str, n: int, mem: str, time: str, gpu: int, at_once: int) -> list[str]:
    """Both schedulers' headers; either is a comment for the other. ``at_once``: tasks that run together, 0 for any."""
    sge = [
        f"-N {job_name}",
        f"-t 1-{n}",
        *([f"-tc {at_once}"] if at_once else []),
        f"-l tmem={mem}",
        f"-l h_rt={time}",
        *(["-l gpu=true"] if gpu else []),
        "-R y",
        "-S /bin/bash",
        "-cwd",
        "-j y",
        f"-o {LOGS}/",
        "-notify",  # SIGUSR2 before SIGKILL: the run saves and asks to be started again (exit code 99)
        "-r y",
    ]
    slurm = [
        f"--job-name={job_name}",
        f"--array=1-{n}" + (f"%{at_once}" if at_once else ""),
        f"--mem={mem}",
        f"--time={time}",
        *([f"--gres=gpu:{gpu}"] if gpu else []),
        f"--output={LOGS}/%x_%A_%a.out",
        "--open-mode=append",  # a run that comes back goes on in its log
        f"--signal=B:USR1@{WARNING_S}",  # B: to the script, which passes it on
        "--requeue",
    ]
    return [*(f"#$ {words}" for words in sge), *(f"#SBATCH {words}" for words in slurm)]


def environment(file: str) -> str:
    """The user's lines; they come before ``set -u``, which conda's activation and some modules do not bear."""
    if not file:
        return ENVIRONMENT
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\n") + "\n"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"cannot read --environment {file}: {reason}") from None


def run(prefix: str, settings: Settings, parameters: Sequence[str]) -> str:
    """The function ``run``, which becomes the program: ``exec python -m perturblab ... --arch "${1}" --seed "${2}"``.

    Hence ``exec``: bash would act on a signal only after its foreground command had ended. Without ``parameters`` a
    line holds all arguments of a run, quoted for a shell.
    """
    become = f"exec env {prefix}" if re.match(r"\s*[A-Za-z_]\w*=", prefix) else f"exec {prefix}"
    if not parameters:
        return f"""\
run() {{
  eval "set -- $1"
  {become} "$@"
}}
{START_WHOLE}"""
    fields = type(settings).model_fields
    placed = [f'{documented_flag(name, fields[name])} "${{{n}}}"' for n, name in enumerate(parameters, 1)]
    command = " ".join([shlex.join(settings.arguments(omit=parameters)), *placed])
    return f"""\
parameters=({" ".join(parameters)})

run() {{
  {become} {command}
}}
{START}"""


ENVIRONMENT = """\
# Lines that prepare a run; --environment FILE puts yours here, such as:
#   module load cuda
#   source ~/venvs/perturblab/bin/activate
#   export LD_LIBRARY_PATH="$HOME/cuda/lib64:${LD_LIBRARY_PATH:-}"
"""

START = r"""
start() { # start N: become the run of line N
  read -r -a words <<< "$(awk -v n="$1" 'NF && ++line == n' < "$jobs")"
  if [ "${#words[@]}" -ne "${#parameters[@]}" ]; then
    echo "error: $jobs has no line $1 of the form: ${parameters[*]}" >&2
    exit 2
  fi
  run "${words[@]}"
}
"""

START_WHOLE = r"""
start() { # start N: become the run of line N
  line=$(awk -v n="$1" 'NF && ++line == n' < "$jobs")
  if [ -z "$line" ]; then
    echo "error: $jobs has no line $1" >&2
    exit 2
  fi
  run "$line"
}
"""

ONE_LINE = r"""
# Slurm starts again by itself only what it had to kill, not a run that has saved and ended in the time given to it.
start_in_slurm() {
  start "$1" &
  child=$!
  for name in TERM USR1 USR2; do
    # shellcheck disable=SC2064
    trap "told=yes; kill -s $name $child || true" "$name"
  done
  told=yes
  while [ -n "$told" ]; do # a signal ends the wait, not the run
    told="" code=0
    wait "$child" || code=$?
  done
  # 75: stopped, its state saved. 69: another start of it is at work, maybe on a node that Slurm has lost: look again later.
  # RUNNING: it was not cancelled, and Slurm is not starting it again anyway. Here: this is no such lost start itself.
  if [[ $code = 75 || $code = 69 ]] \
    && [ "$(squeue -h -o '%T %B' -j "$SLURM_JOB_ID")" = "RUNNING ${SLURMD_NODENAME:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID" || true
  fi
  exit "$code"
}

if [ ! -r "$jobs" ]; then
  echo "error: no $jobs in $PWD; start this script from the folder where it was written" >&2
  exit 2
fi
export MPLCONFIGDIR="${TMPDIR:-/tmp}/matplotlib-$UID" # a home may be full, slow or read-only

# Grid Engine says "undefined" outside arrays.
task=${1:-${SLURM_ARRAY_TASK_ID:-${SGE_TASK_ID:-undefined}}}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  start_in_slurm "$task"
elif [ "$task" != undefined ]; then
  start "$task"
fi
"""

# For a script that does one run after another.
COUNTING = r"""
failed=0 held=0

ended() { # ended CODE: count how a run ended; if it was stopped from outside, its state saved, stop as well
  case $1 in
    0) ;;
    69) held=$((held + 1)) ;;
    75 | 99 | 130) exit "$1" ;;
    *) failed=$((failed + 1)) ;;
  esac
}

all_ended() { # all_ended COUNT: say what is left to do, also by the exit code
  if [ "$held" -gt 0 ]; then
    echo "runs that another process is at work on: $held of $1; they were left to it" >&2
  fi
  if [ "$failed" -gt 0 ]; then
    echo "runs that failed: $failed of $1; the same command runs only what is missing" >&2
    exit 1
  fi
  if [ "$held" -gt 0 ]; then exit 69; fi
}
"""

BODY = (
    ONE_LINE
    + COUNTING
    + r"""
count=$(awk 'NF' < "$jobs" | wc -l)
for ((n = 1; n <= count; n++)); do
  code=0
  (start "$n") || code=$?
  ended "$code"
done
all_ended "$count"
"""
)

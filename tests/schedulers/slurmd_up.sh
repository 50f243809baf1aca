#!/bin/bash
# One node of the Slurm that slurm_up.sh started. usage: slurmd_up.sh DIR NODE
# It knows nothing of what ran on it before, like a machine that was started anew.
set -euo pipefail
D=${1:?usage: slurmd_up.sh DIR NODE}; NODE=${2:?usage: slurmd_up.sh DIR NODE}
rm -rf "$D/spool-$NODE"; mkdir -p "$D/spool-$NODE"
SLURM_CONF=$D/slurm.conf slurmd -N "$NODE"

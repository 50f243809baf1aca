#!/bin/bash
# Installs what the scheduler tests need from Debian's archive: Slurm, Grid Engine, GNU parallel. At once done where they
# are there. Nothing is left running: the tests start schedulers of their own.
set -euo pipefail
PACKAGES="slurm-wlm munge gridengine-master gridengine-exec gridengine-client iproute2 parallel"
PROGRAMS="sbatch slurmctld slurmd munged qsub sge_qmaster sge_execd ip parallel"
POLICY=/usr/sbin/policy-rc.d
PATH=$PATH:/usr/sbin:/sbin

missing() {
  local found=1
  for program in $PROGRAMS; do command -v "$program" > /dev/null || { echo "no $program"; found=0; }; done
  return $found
}

missing > /dev/null || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "error: $(missing | paste -sd,): the scheduler tests need root, and from Debian: $PACKAGES" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
if [ ! -e $POLICY ]; then # services are not started where there is no systemd, nor needed
  printf '#!/bin/sh\nexit 101\n' > $POLICY && chmod +x $POLICY
  trap 'rm -f $POLICY' EXIT
fi
for attempt in 1 2 3; do
  if apt-get -q update && apt-get -q install -y --no-install-recommends -o DPkg::Lock::Timeout=300 $PACKAGES; then break; fi
  echo "attempt $attempt failed" >&2
  sleep $((5 * attempt))
done
! missing >&2

#!/bin/bash
# Real Grid Engine (Debian gridengine 8.1.9) on one host: no systemd, runs as root, fresh cell each time in $D.
# Daemons bind 0.0.0.0, so they live in a private network namespace "sgetest" that has only lo.
# Clients: . $D/env; ip netns exec sgetest qsub job.sh
set -eu
D=${1:?usage: sge_up.sh DIR [SLOTS]}; SLOTS=${2:-$(nproc)}; NS=sgetest; H=$(hostname)
rm -rf "$D"; mkdir -p "$D"/{cell/common,qmaster,execd,spooldb}; chmod -R 755 "$D"
ln -sfn "$D/cell" /var/lib/gridengine/testcell
cat > "$D/env" <<E
export SGE_ROOT=/var/lib/gridengine SGE_CELL=testcell SGE_QMASTER_PORT=16444 SGE_EXECD_PORT=16445
E
. "$D/env"
mkdir -p /etc/netns/$NS; echo "127.0.0.1 $H localhost" > /etc/netns/$NS/hosts   # ip netns exec binds this over /etc/hosts
ip netns list | grep -qw $NS || ip netns add $NS; ip -n $NS link set lo up; X="ip netns exec $NS"
cat > "$D/cell/common/bootstrap" <<E
admin_user              none
default_domain          none
ignore_fqdn             false
spooling_method         berkeleydb
spooling_lib            libspoolb
spooling_params         $D/spooldb
binary_path             /usr/sbin
qmaster_spool_dir       $D/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
E
echo $H > "$D/cell/common/act_qmaster"
# root may run jobs (default min_uid 1000); spool under $D; with reports each second a job that ended with 99 is back
# in 4 s, not in 23 to 93 (default 40 s)
sed "s/^load_report_time .*/load_report_time 00:00:01/; s#^execd_spool_dir .*#execd_spool_dir $D/execd#; s/^min_uid .*/min_uid 0/; s/^min_gid .*/min_gid 0/; s/^shell_start_mode .*/shell_start_mode unix_behavior/" /usr/share/gridengine/default-configuration > "$D/conf"
L=/usr/lib/gridengine
$X $L/spoolinit berkeleydb libspoolb "$D/spooldb" init
$X $L/spooldefaults configuration "$D/conf"
$X $L/spooldefaults complexes /usr/share/gridengine/util/resources/centry
$X $L/spooldefaults usersets /usr/share/gridengine/util/resources/usersets
$X $L/spooldefaults managers root
$X sge_qmaster
for i in $(seq 50); do $X qconf -sh >/dev/null 2>&1 && break; sleep 0.1; done
$X qconf -ah $H >/dev/null 2>&1 || true; $X qconf -as $H >/dev/null
# resources of the documented scripts, which a fresh Grid Engine does not know
{ $X qconf -sc; echo "tmem tmem MEMORY <= YES NO 0 0"; echo "gpu gpu BOOL == YES NO FALSE 0"; } > "$D/complexes"
$X qconf -Mc "$D/complexes" >/dev/null
cat > "$D/smp" <<'PE'
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
PE
$X qconf -Ap "$D/smp" >/dev/null
cat > "$D/queue" <<Q1
qname                 all.q
hostlist              $H
seq_no                0
load_thresholds       NONE
suspend_thresholds    NONE
nsuspend              1
suspend_interval      00:05:00
priority              0
min_cpu_interval      00:05:00
processors            UNDEFINED
qtype                 BATCH INTERACTIVE
ckpt_list             NONE
pe_list               smp
rerun                 TRUE
slots                 $SLOTS
tmpdir                $D
shell                 /bin/bash
prolog                NONE
epilog                NONE
shell_start_mode      unix_behavior
starter_method        NONE
suspend_method        NONE
resume_method         NONE
terminate_method      NONE
notify                00:00:05
owner_list            NONE
user_lists            NONE
xuser_lists           NONE
subordinate_list      NONE
complex_values        tmem=64G,gpu=true
projects              NONE
xprojects             NONE
calendar              NONE
initial_state         default
s_rt                  INFINITY
h_rt                  INFINITY
s_cpu                 INFINITY
h_cpu                 INFINITY
s_fsize               INFINITY
h_fsize               INFINITY
s_data                INFINITY
h_data                INFINITY
s_stack               INFINITY
h_stack               INFINITY
s_core                INFINITY
h_core                INFINITY
s_rss                 INFINITY
h_rss                 INFINITY
s_vmem                INFINITY
h_vmem                INFINITY
Q1
$X qconf -Aq "$D/queue" >/dev/null
# schedule each second (default 15 s), and at once on submit/finish
$X qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:1/; s/^flush_submit_sec .*/flush_submit_sec 1/; s/^flush_finish_sec .*/flush_finish_sec 1/' > "$D/sched"; $X qconf -Msconf "$D/sched" >/dev/null
$X sge_execd
for i in $(seq 80); do $X qstat -f | grep -q 'lx-amd64 *$' && break; sleep 0.1; done
$X qstat -f

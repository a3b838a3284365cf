#!/usr/bin/env bash
# A real, throw-away SLURM cluster on this machine's loopback.
#
#   slurm_cluster.sh start  [-d DIR] [--nodes N] [--cpus N] [--mem MB] [--fake-gpus N]
#                       [--port BASE] [--no-install]
#   slurm_cluster.sh stop   [-d DIR]     end the daemons (and the jobs) this script started
#   slurm_cluster.sh status [-d DIR]     exit 0: all up; 3: not running; 4: partly
#   slurm_cluster.sh env    [-d DIR]     prints `export SLURM_CONF=...`
#
# Needs root and Debian/Ubuntu packages (installed if missing). No systemd, no cgroups.
# --nodes N     N slurmd on this host (node1..nodeN); default 1
# --fake-gpus N every node claims N devices of gres/gpu (plain files: scheduling only)
set -euo pipefail
umask 022
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Started from inside a SLURM job, the outer job's variables would steer our clients.
for v in $(compgen -e | grep -E '^(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SCANCEL|SQUEUE|SINFO)_' || true); do unset "$v"; done

CMD=${1:-}; [ $# -gt 0 ] && shift
DIR=${UNIME_SLURM_DIR:-/tmp/slurm_cluster}
NODES=1 CPUS=2 MEM= GPUS=0 PORT=16817 INSTALL=1
while [ $# -gt 0 ]; do case $1 in
  -d|--dir) DIR=$2; shift 2;;       --nodes) NODES=$2; shift 2;;
  --cpus) CPUS=$2; shift 2;;        --mem) MEM=$2; shift 2;;
  --fake-gpus) GPUS=$2; shift 2;;
  --port) PORT=$2; shift 2;;        --no-install) INSTALL=0; shift;;
  *) echo "slurm_cluster: unknown argument $1" >&2; exit 2;; esac; done
case $DIR in /*) ;; *) DIR=$PWD/$DIR;; esac
CONF=$DIR/etc/slurm.conf; RUN=$DIR/run; LOG=$DIR/log; SYSCONF=/etc/slurm/slurm.conf
HOST=$(hostname -s); MARK="# slurm_cluster"
export SLURM_CONF=$CONF
say() { printf 'slurm_cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- processes: a pid file holds "pid starttime", so a recycled pid is never signalled
starttime() { # field 22 of /proc/PID/stat; the comm field may hold blanks
  local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  s=${s##*) }; set -- $s; [ "$1" != Z ] || return 1; echo "${20}"; }
alive() { local p t; [ -s "$RUN/$1.pid" ] || return 1; read -r p t <"$RUN/$1.pid"
  [ "$(starttime "$p" || true)" = "$t" ]; }
spawn() { # spawn NAME CMD...   (own session, no inherited lock, log in $LOG/NAME.out)
  local n=$1 p; shift
  setsid "$@" >>"$LOG/$n.out" 2>&1 </dev/null 9>&- &
  p=$!; echo "$p $(starttime "$p")" >"$RUN/$n.pid"; disown "$p"; }
halt() { # halt NAME [SECONDS]   TERM, wait, then KILL; only ever the recorded process
  local p t i; alive "$1" || { rm -f "$RUN/$1.pid"; return 0; }
  read -r p t <"$RUN/$1.pid"; kill -TERM "$p" 2>/dev/null || true
  for ((i=0; i<${2:-15}*5; i++)); do alive "$1" || break; sleep .2; done
  if alive "$1"; then say "$1 ($p) ignored TERM, killing it"; kill -KILL "$p" 2>/dev/null || true; sleep .3; fi
  rm -f "$RUN/$1.pid"; }
wait_for() { # wait_for SECONDS WHAT CMD...
  local end=$((SECONDS+$1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || die "timed out: $what (logs: $LOG)"; sleep .3; done; }
node_names() { if [ "$NODES" = 1 ]; then echo "$HOST"; else seq -f 'node%g' 1 "$NODES"; fi; }
daemons() { cat "$RUN/daemons" 2>/dev/null || true; }

install_packages() {
  local want="munge slurmctld slurmd slurm-client" miss= p made=0 rc=0
  for p in $want; do [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || miss="$miss $p"; done
  [ -n "$miss" ] || return 0
  [ "$INSTALL" = 1 ] || die "missing packages:$miss"
  say "installing$miss"
  # The packages' own services must not start: they would use the machine's ports.
  if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; made=1; fi
  { apt_install $miss || { apt-get -qq update && apt_install $miss; }; } >>"$LOG/apt.log" 2>&1 || rc=$?
  [ $made = 0 ] || rm -f /usr/sbin/policy-rc.d
  [ $rc = 0 ] || die "apt-get failed, see $LOG/apt.log"; }
apt_install() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=60 install -y --no-install-recommends "$@"; }

hosts_del() { if grep -q "$MARK" /etc/hosts; then local t; t=$(grep -v "$MARK" /etc/hosts); printf '%s\n' "$t" >/etc/hosts; fi; }
hosts_add() { # daemons and srun bind to the address of gethostname(): it has to be loopback
  local n add=
  for n in "$HOST" $(node_names); do case "$(getent ahostsv4 "$n" | awk 'NR==1{print $1}')" in 127.*) ;; *) add="$add $n";; esac; done
  if [ -n "$add" ]; then hosts_del   # first match wins: our line goes on top
    local t; t=$(cat /etc/hosts); printf '127.0.0.1%s %s\n%s\n' "$(printf ' %s' $(printf '%s\n' $add | sort -u))" "$MARK" "$t" >/etc/hosts; fi; }

write_config() {
  local i=0 n p
  [ -n "$MEM" ] || MEM=$(awk '/MemTotal/{print int($2/1024*0.8)}' /proc/meminfo)
  { cat <<C
ClusterName=onenode
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
CredType=cred/munge
# Loopback only: bind to gethostname()'s address, not to 0.0.0.0 (slurmd, srun / slurmctld).
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile=$RUN/slurmctld.own.pid
SlurmdPidFile=$RUN/slurmd-%n.own.pid
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
SlurmdParameters=config_overrides
# No cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill,UsePss
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
MaxArraySize=1001
# A job's end state stays visible to squeue this long; Snakemake's status command needs
# more than its longest polling interval (180 s), and never ends if it misses the state.
MinJobAge=86400
JobCompType=jobcomp/filetxt
JobCompLoc=$LOG/jobcomp.log
C
    echo AccountingStorageType=accounting_storage/none
    [ "$GPUS" = 0 ] || echo "GresTypes=gpu"
    for n in $(node_names); do i=$((i+1)); p=$((PORT+i))
      echo "NodeName=$n NodeHostname=$n NodeAddr=127.0.0.1 Port=$p CPUs=$CPUS RealMemory=$MEM$([ "$GPUS" = 0 ] || echo " Gres=gpu:$GPUS") State=UNKNOWN"; done
    echo "PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=512 State=UP OverSubscribe=NO"
    [ "$GPUS" = 0 ] || echo "PartitionName=gpu Nodes=ALL MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=512 State=UP"
  } >"$CONF"
  # Never let the cgroup plugin probe the machine.
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n' >"$DIR/etc/cgroup.conf"
  rm -f "$DIR/etc/gres.conf"
  if [ "$GPUS" != 0 ]; then mkdir -p "$DIR/dev"; for ((i=0; i<GPUS; i++)); do : >"$DIR/dev/fakegpu$i"; done
    echo "Name=gpu File=$DIR/dev/fakegpu[0-$((GPUS-1))]" >"$DIR/etc/gres.conf"
    [ "$GPUS" != 1 ] || echo "Name=gpu File=$DIR/dev/fakegpu0" >"$DIR/etc/gres.conf"; fi; }

nodes_up() { local s; s=$(sinfo -h -N -o '%T') && [ "$(grep -cE '^(idle|mixed|allocated|completing)$' <<<"$s")" -ge "$NODES" ]; }

start() {
  [ "$(id -u)" = 0 ] || die "needs root"
  mkdir -p "$DIR"/{etc,run,log,state,spool}; chmod 755 "$DIR" "$RUN"; chmod 700 "$DIR/state"
  exec 9>"$DIR/lock"; flock -w 60 9 || die "another start/stop is under way"
  local opts="$NODES $CPUS ${MEM:-auto} $GPUS $PORT" n t0=$SECONDS
  if status_quiet; then [ "$(cat "$RUN/opts" 2>/dev/null)" = "$opts" ] || die "already running with other options ($(cat "$RUN/opts")); stop it first"
    say "already running"; show; return 0; fi
  install_packages
  if [ -e "$SYSCONF" ] || [ -L "$SYSCONF" ]; then   # a dangling link, or ours: replace; a real file: refuse
    if [ -L "$SYSCONF" ] && { [ "$(readlink "$SYSCONF")" = "$CONF" ] || [ ! -e "$SYSCONF" ]; }; then rm -f "$SYSCONF"
    else die "$SYSCONF exists and is not this cluster's: $(ls -l "$SYSCONF")"; fi; fi
  [ -s "$DIR/etc/munge.key" ] || (umask 077; dd if=/dev/urandom of="$DIR/etc/munge.key" bs=1024 count=1 status=none)
  write_config; hosts_add; echo "$opts" >"$RUN/opts"
  # Snakemake's slurm-jobstep plugin drops SLURM_CONF before its nested srun, so the
  # configuration has to be found at the compiled-in place as well.
  mkdir -p /etc/slurm; ln -s "$CONF" "$SYSCONF"
  { echo munged; echo slurmctld; for n in $(node_names); do echo "slurmd-$n"; done; } >"$RUN/daemons"
  alive munged || { rm -f "$RUN"/munge.socket*; spawn munged munged --foreground --key-file="$DIR/etc/munge.key" --socket="$RUN/munge.socket" \
    --pid-file="$RUN/munged.own.pid" --log-file="$LOG/munged.log" --seed-file="$DIR/etc/munge.seed" --num-threads=2; }
  wait_for 10 munged munge -n -S "$RUN/munge.socket"
  alive slurmctld || spawn slurmctld slurmctld -D -f "$CONF"
  for n in $(node_names); do mkdir -p "$DIR/spool/$n"; alive "slurmd-$n" || spawn "slurmd-$n" slurmd -D -f "$CONF" -N "$n"; done
  wait_for 40 "nodes idle" nodes_up
  local bad; bad=$(foreign_listeners); [ -z "$bad" ] || { say "listening outside loopback: $bad"; stop_all; exit 1; }
  say "up in $((SECONDS-t0)) s"; show; }

foreign_listeners() { # sockets of our daemons on anything but 127/8 or ::1
  local d p t out=; command -v ss >/dev/null || return 0
  for d in $(daemons); do alive "$d" || continue; read -r p t <"$RUN/$d.pid"
    out="$out$(ss -Hltunp 2>/dev/null | grep "pid=$p," | awk '{print $5}' | grep -vE '^(127\.|\[::1\])' || true)"; done; printf '%s' "$out"; }

status_quiet() { local d n=0; for d in $(daemons); do alive "$d" || return 1; n=1; done; [ $n = 1 ]; }
show() { printf 'export SLURM_CONF=%s\n' "$CONF"; local d p t
  for d in $(daemons); do if alive "$d"; then read -r p t <"$RUN/$d.pid"; say "$d pid $p"; else say "$d DOWN"; fi; done
  sinfo -N -o '%N %P %T cpus=%C mem=%m gres=%G' >&2 || true; }

stop_all() {
  if alive slurmctld && alive munged; then   # our own jobs first, so that no step outlives its slurmd
    scancel --me -q 2>/dev/null || scancel -u root 2>/dev/null || true
    local end=$((SECONDS+15)); while [ $SECONDS -lt $end ] && [ -n "$(squeue -h -t PD,R,CG,S 2>/dev/null)" ]; do sleep .5; done
    [ -z "$(squeue -h -t R,CG 2>/dev/null)" ] || say "jobs still ending: $(squeue -h -t R,CG -o %i | xargs)"; fi
  local d; for d in $(daemons | tac); do halt "$d"; done
  [ ! -L "$SYSCONF" ] || [ "$(readlink "$SYSCONF")" != "$CONF" ] || rm -f "$SYSCONF"
  hosts_del; rm -f "$RUN/daemons" "$RUN/opts"; }

case $CMD in
  start) start;;
  stop) [ -d "$DIR" ] || { say "not running"; exit 0; }; exec 9>"$DIR/lock"; flock -w 60 9 || die "another start/stop is under way"
        [ -n "$(daemons)" ] || { say "not running"; exit 0; }; stop_all; say "stopped (state kept in $DIR)";;
  status) [ -n "$(daemons)" ] || { say "not running"; exit 3; }; NODES=$(cut -d' ' -f1 "$RUN/opts")
        show; b=$(foreign_listeners); say "listeners outside loopback: ${b:-none}"; status_quiet || exit 4;;
  env) echo "export SLURM_CONF=$CONF";;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2;;
esac

#!/usr/bin/env bash
# A real Slurm of several nodes on one Debian machine, to try jobs on: controller, accounting database and one
# slurmd for each node, all in a folder of their own. It needs no systemd and no control groups.
set -euo pipefail

DIR=${SLURM_LOCAL_DIR:-/var/tmp/slurm-local}
PORT=${SLURM_LOCAL_PORT:-17800} # controller; +1 is the accounting's, +2 and on are the nodes'
PACKAGES=(slurm-wlm slurmdbd munge mariadb-server)
MARK="# slurm_local.sh"
export SLURM_CONF=$DIR/etc/slurm.conf
nodes=2 cpus=2 memory=8192

usage() {
  cat <<END
Usage: launch/slurm_local.sh start [--nodes N] [--cpus N] [--memory MIB]
       launch/slurm_local.sh status
       launch/slurm_local.sh stop

start   installs what is missing of Debian's ${PACKAGES[*]},
        then starts munged, mariadbd, slurmdbd, slurmctld and a slurmd for each node. Once it runs, does nothing.
status  says what runs; exit status 0 if all of it does, else 3.
stop    cancels the jobs, ends the daemons, removes the folder and the names of the nodes in /etc/hosts.
        Packages stay; it says how to remove those that start installed.

--nodes N     number of nodes, slurm-local-1 and on (default: $nodes)
--cpus N      CPUs that each node says it has, whatever the machine has (default: $cpus)
--memory MIB  memory that each node says it has (default: $memory)

All need root. Everything is kept in $DIR (SLURM_LOCAL_DIR), ports are $PORT and on (SLURM_LOCAL_PORT).
Then: export SLURM_CONF=$SLURM_CONF; sinfo; torchx run -s slurm launch/components.py:train -j ${nodes}x1 -- ...
END
}

say() { echo "slurm_local: $*"; }

die() {
  echo "slurm_local: $*" >&2
  exit 1
}

# Whether the process of a PID file lives and is the program that wrote it.
alive() {
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [[ -n $pid ]] && grep -q "$2" "/proc/$pid/comm" 2>/dev/null
}

# The daemons as NAME:PROGRAM in the order of their start; the nodes as the configuration has them.
daemons() {
  echo munged:munged mariadbd:mariadbd slurmdbd:slurmdbd slurmctld:slurmctld
  sed -n 's/^NodeName=\([^ ]*\).*/\1:slurmd/p' "$SLURM_CONF" 2>/dev/null || true
}

all_alive() {
  local daemon
  [[ -f $SLURM_CONF ]] || return 1
  for daemon in $(daemons); do alive "${daemon%:*}" "${daemon#*:}" || return 1; done
}

# wait_for SECONDS WHAT LOG COMMAND...: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 log=$3
  shift 3
  for ((SECONDS = 0; SECONDS < seconds; )); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.2
  done
  [[ -f $DIR/log/$log ]] && tail -n 15 "$DIR/log/$log" >&2
  die "$what after $seconds seconds; its last lines are above, the folder is $DIR (remove all: $0 stop)"
}

install_packages() {
  local missing=() policy=/usr/sbin/policy-rc.d own=
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "apt-get is not here: this needs Debian (tried on Debian 12)"
  say "installing ${missing[*]} (log: $DIR/log/apt.log)"
  if [[ ! -e $policy ]]; then # or the packages would start daemons of their own
    own=$policy
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  local before failed=
  before=$(dpkg-query -W -f '${Package} ${Status}\n' | awk '$NF == "installed" {print $1}' | sort)
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    "${missing[@]}"; } >"$DIR/log/apt.log" 2>&1 </dev/null || failed=yes
  [[ -n $own ]] && rm -f "$own"
  if [[ -n $failed ]]; then
    tail -n 15 "$DIR/log/apt.log" >&2
    die "apt-get could not install ${missing[*]}"
  fi
  comm -13 <(echo "$before") <(dpkg-query -W -f '${Package} ${Status}\n' |
    awk '$NF == "installed" {print $1}' | sort) >"$DIR/packages"
}

# Daemons of other users must reach their files, and munged insists on it.
check_access() {
  local folder=$DIR
  while [[ $folder != / ]]; do
    (($(stat -L -c %a "$folder") % 2)) ||
      die "$folder: other users may not enter it (chmod o+x), so the daemons cannot work in $DIR"
    folder=$(dirname "$folder")
  done
}

configure() {
  local host node
  host=$(hostname -s)
  for part in etc run log state munge mysql; do mkdir -p "$DIR/$part"; done
  cat >"$SLURM_CONF" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# The nodes share one machine, so what they say of themselves is not what slurmd finds.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$DIR/munge/socket
END
  for ((node = 1; node <= nodes; node++)); do
    echo "NodeName=slurm-local-$node NodeAddr=127.0.0.1 NodeHostname=$host Port=$((PORT + 1 + node))" \
      "CPUs=$cpus RealMemory=$memory State=UNKNOWN"
  done >>"$SLURM_CONF"
  echo "PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
  echo "# control groups are not used" >"$DIR/etc/cgroup.conf"
  cat >"$DIR/etc/slurmdbd.conf" <<END
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
PidFile=$DIR/run/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
END
  chmod 600 "$DIR/etc/slurmdbd.conf"
}

start() {
  local node
  if all_alive; then
    say "runs already"
    status
    return
  fi
  [[ -e $DIR ]] && stop quietly
  mkdir -p "$DIR/log"
  check_access
  install_packages
  configure

  (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
  munged --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/run/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"

  # The database listens on a socket only, and knows root by the system's word.
  chown mysql: "$DIR/mysql"
  mariadb-install-db --no-defaults --user=mysql --datadir="$DIR/mysql" --skip-test-db \
    --auth-root-authentication-method=socket >"$DIR/log/mariadb-install.log" 2>&1 ||
    die "the accounting database could not be made: see $DIR/log/mariadb-install.log"
  touch "$DIR/log/mariadbd.log"
  chown mysql: "$DIR/log/mariadbd.log"
  setsid mariadbd --no-defaults --user=mysql --datadir="$DIR/mysql" --socket="$DIR/mysql/socket" --skip-networking \
    --pid-file="$DIR/mysql/pid" --log-error="$DIR/log/mariadbd.log" --innodb-lock-wait-timeout=900 \
    >/dev/null 2>&1 </dev/null &
  echo $! >"$DIR/run/mariadbd.pid"
  wait_for 60 "mariadbd does not answer" mariadbd.log mariadb-admin --no-defaults \
    --socket="$DIR/mysql/socket" ping

  MYSQL_UNIX_PORT=$DIR/mysql/socket slurmdbd
  wait_for 60 "slurmdbd does not answer" slurmdbd.log timeout 5 sacctmgr -n list cluster
  sacctmgr -iQ add cluster local >/dev/null
  slurmctld
  for ((node = 1; node <= nodes; node++)); do
    getent hosts "slurm-local-$node" >/dev/null || echo "127.0.0.1 slurm-local-$node $MARK" >>/etc/hosts
    slurmd -N "slurm-local-$node"
  done
  wait_for 60 "not all nodes are idle" slurmctld.log all_idle
  status
  say "for other commands: export SLURM_CONF=$SLURM_CONF"
}

all_idle() { [[ $(timeout 5 sinfo -h -N -t idle -o %N | wc -l) == "$nodes" ]]; }

status() {
  local daemon down=
  if [[ ! -f $SLURM_CONF ]]; then
    say "is not started ($DIR is not there)"
    return 3
  fi
  for daemon in $(daemons); do
    if alive "${daemon%:*}" "${daemon#*:}"; then
      printf '%-14s runs, process %s\n' "${daemon%:*}" "$(cat "$DIR/run/${daemon%:*}.pid")"
    else
      printf '%-14s does not run\n' "${daemon%:*}"
      down=yes
    fi
  done
  [[ -z $down ]] || return 3
  sinfo
  squeue
}

stop() {
  local daemon pid running
  if [[ ! -e $DIR ]]; then
    say "is not started ($DIR is not there)"
    return
  fi
  running=$(daemons | tr ' ' '\n' | tac)
  if alive slurmctld slurmctld; then # a slurmd leaves its jobs running when it ends
    timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel -f 2>/dev/null || true
    for ((tenth = 0; tenth < 200; tenth++)); do
      [[ -n $(timeout 10 squeue -h 2>/dev/null) ]] || break
      sleep 0.1
    done
  fi
  for daemon in $running; do
    alive "${daemon%:*}" "${daemon#*:}" || continue
    pid=$(cat "$DIR/run/${daemon%:*}.pid")
    kill "$pid" 2>/dev/null || true
    for ((tenth = 0; tenth < 150; tenth++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  if grep -q "$MARK\$" /etc/hosts; then # written in place: in a container the file is a mount
    local others
    others=$(grep -v "$MARK\$" /etc/hosts)
    echo "$others" >/etc/hosts
  fi
  if [[ -s $DIR/packages ]]; then
    say "packages that start installed stay; to remove them: apt-get purge $(tr '\n' ' ' <"$DIR/packages")"
  fi
  rm -rf "$DIR"
  [[ ${1:-} == quietly ]] || say "stopped; $DIR is removed"
}

command=${1:-}
[[ $# -gt 0 ]] && shift
case $command in
  start | stop | status) ;;
  -h | --help | help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
while (($#)); do
  case $1 in
    --nodes | --cpus | --memory)
      [[ $command == start && ${2:-} =~ ^[1-9][0-9]*$ ]] || die "$1: a flag of start, with a number above 0"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) die "unknown argument '$1' (see $0 --help)" ;;
  esac
done
((EUID == 0)) || die "needs root: sudo $0 $command"
[[ $DIR == /?* && $DIR != *[[:space:]]* ]] || die "SLURM_LOCAL_DIR: must be a whole path without blanks, not '$DIR'"
"$command"

#!/usr/bin/env bash
# Starts a SLURM cluster of this machine alone, to try the .sbatch files of this folder. Needs root and Debian's packages
# slurm-wlm and munge. Usage: local-slurm.sh FOLDER; then `export SLURM_CONF=FOLDER/slurm.conf`.
# `scontrol shutdown` ends it.

set -euo pipefail

folder=$(realpath "${1:?"usage: local-slurm.sh FOLDER"}")
mkdir -p "$folder/state" "$folder/spool"
host=$(hostname -s)

cat >"$folder/slurm.conf" <<CONFIG
ClusterName=local
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
# The node may have fewer processors than this: the processes of a test share them.
SlurmdParameters=config_overrides
NodeName=$host NodeHostName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONFIG

mkdir -p /run/munge
chown munge:munge /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- munged
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c
slurmd -c

for _ in $(seq 100); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -qx idle; then
        sinfo
        exit 0
    fi
    sleep 0.1
done
echo "the node does not become idle: see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1

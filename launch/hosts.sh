#!/usr/bin/env bash
# One rank of a pipeline over HOSTS hosts; two-hosts.sh and three-hosts.sh call it, docs/hosts.md explains the steps.
set -euo pipefail
[ $# -ge 4 ] || {
  echo "usage: $0 HOSTS NODE_RANK FIRST_ADDRESS INTERFACE [--model MODEL] [--listen HOST:PORT] [option of the rank …]" >&2
  exit 2
}
hosts=$1 node_rank=$2 first=$3 interface=$4
shift 4

# Between the ranks goes everything over this interface, which must be the private one: the collectives know no
# authentication. The leading `=` makes NCCL take the name exactly; without it, eth1 would stand for eth10 as well.
export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME="=$interface"

# A rank that hears nothing from another for so long gives up, while joining, loading or working. It must be more than
# the slowest host takes to load its layers; an idle pipeline beats every 2 s and never comes near it. A peer whose
# connection breaks is noticed at once, whatever this says.
export QUBIC_LAB_GROUP_TIMEOUT_S=${QUBIC_LAB_GROUP_TIMEOUT_S:-300}

# Static rendezvous, the one that heeds --node-rank: host 0 serves, and each host has the rank whose files it holds.
# (With --rdzv-backend=c10d ranks fall as they come: good where every host holds the whole model.)
# timeout: seconds within which the agents of all hosts must be started.
# No restarts: a group that has lost a rank ends as a whole, and a fresh one is started on every host.
exec torchrun --nnodes="$hosts" --nproc-per-node=1 --max-restarts=0 \
  --node-rank="$node_rank" --master-addr="$first" --master-port="${MASTER_PORT:-7701}" --rdzv-conf=timeout=600 \
  -m qubic_lab.pipeline.rank --listen="$first:7700" --model=smollm2 "$@"

#!/usr/bin/env bash
# A pipeline of several ranks on this host that clients of this host connect to:
#
#   launch/one-host.sh 2 --model smollm2      then, elsewhere:  Pipeline.connect("127.0.0.1:7700")
#
# What follows RANKS goes to `python -m qubic_lab.pipeline.rank`; see its --help. Ctrl-C ends all of it.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 RANKS [--model MODEL] [--listen HOST:PORT] [option of the rank …]" >&2; exit 2; }
ranks=$1
shift

folder=$(mktemp -d "${TMPDIR:-/tmp}/qubic-lab.XXXXXX")
trap 'rm -rf "$folder"' EXIT
export TMPDIR=$folder # what ranks leave behind goes with it

# Collectives know no authentication: they stay on loopback. The leading `=` makes NCCL take the name exactly.
export NCCL_SOCKET_IFNAME='=lo'

# No restarts: a group that has lost a rank ends as a whole, and a fresh one is started.
python -m qubic_lab.pipeline.launcher --run-dir="$folder" --ranks="$ranks" \
  --listen=127.0.0.1:7700 --model=smollm2 "$@"

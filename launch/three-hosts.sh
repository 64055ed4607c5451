#!/usr/bin/env bash
# This host's part of a pipeline over three hosts. With the first host's private address, on each host its own line:
#
#   launch/three-hosts.sh 0 10.0.0.2 eth1 --model smollm2
#   launch/three-hosts.sh 1 10.0.0.2 eth1 --model smollm2
#   launch/three-hosts.sh 2 10.0.0.2 eth1 --model smollm2
#
# What follows the interface goes to `python -m qubic_lab.pipeline.rank` and must be the same on all hosts.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 NODE_RANK FIRST_ADDRESS INTERFACE [option of the rank …]" >&2; exit 2; }
exec "$(dirname "$0")/hosts.sh" 3 "$@"

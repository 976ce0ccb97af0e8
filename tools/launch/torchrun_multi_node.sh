#!/usr/bin/env bash
# Trains on several machines: start it once on each, with the same arguments; the ranks meet at ENDPOINT.
#   RDZV_ENDPOINT=HOST[:PORT] RUN_ID=NAME tools/launch/torchrun_multi_node.sh NODES N RECIPE [--option=value ...]
# NODES: how many machines, or MIN:MAX to go on with fewer when some are gone. N: processes on each.
# The run folder (run = DIR in the recipe) must be one that every machine sees.
# Environment:
#   RDZV_ENDPOINT        one of the machines, which hosts the meeting (port 29400 when none is given); same everywhere
#   RUN_ID=NAME          names this run at the endpoint; same everywhere
#   MAX_RESTARTS=N       how often all ranks are started again, from the newest checkpoint, after one failed (default 3)
#   LIMBECK, TORCHRUN    as in torchrun.sh
# A signal to each torchrun (scancel, kill -USR1) reaches every rank, which save and end. torchrun kills what is left
# 30 s after the signal and has no option for that, so a save must fit into 30 s; else checkpoint more often.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
if (( $# < 3 )) || [[ $1 == -* ]]; then
  sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [[ -z ${RDZV_ENDPOINT:-} || -z ${RUN_ID:-} ]]; then
  echo "$0: wanted RDZV_ENDPOINT=HOST[:PORT] (one of the machines) and RUN_ID=NAME, the same on all machines" >&2
  exit 2
fi

source "$here/tools/launch/find_programs"  # torchrun, limbeck

nodes=$1 processes=$2 recipe=$3
shift 3
exec "$torchrun" --no-python --nnodes="$nodes" --nproc-per-node="$processes" \
  --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="$RUN_ID" \
  --max-restarts="${MAX_RESTARTS:-3}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -- "$limbeck" train "$recipe" --resume=auto "$@"

#!/usr/bin/env bash
# Trains on one machine with N processes, one a GPU (or N on the CPU), and goes on from the newest checkpoint.
#   tools/launch/torchrun.sh N RECIPE [--option=value ...]
# Every option after the recipe is limbeck's. N: a number, or gpu for as many as there are GPUs.
# Environment:
#   LIMBECK=FILE         the program (default: build/release/bin/limbeck here, else limbeck on PATH)
#   TORCHRUN=FILE        torchrun (default: .venv/bin/torchrun here, else the one on PATH)
#   MAX_RESTARTS=N       how often torchrun starts all of them again after one failed (default 0)
# A signal reaches every rank, which save and end; torchrun kills what is left 30 s after it.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
if (( $# < 2 )) || [[ $1 == -* ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi

source "$here/tools/launch/find_programs"  # torchrun, limbeck

processes=$1 recipe=$2
shift 2
# --standalone: a free port of its own, so that two runs on one machine do not meet.
exec "$torchrun" --standalone --no-python --nproc-per-node="$processes" --max-restarts="${MAX_RESTARTS:-0}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -- "$limbeck" train "$recipe" --resume=auto "$@"

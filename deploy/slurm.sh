#!/bin/bash
# Workers on all nodes of a job, and a program that uses them:
#     sbatch deploy/slurm.sh program.py
# The nodes meet at a Redis server that each of them reaches, in WOOL_REDIS.
#SBATCH --job-name=wool
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
set -euo pipefail

place="${WOOL_REDIS:?such as redis://login-node:6379}#job-$SLURM_JOB_ID"
tls=(--ca "$HOME/wool/ca.pem" --key "$HOME/wool/key.pem" --cert "$HOME/wool/cert.pem" --identity farm)

srun wool worker --workers "$SLURM_CPUS_PER_TASK" --discovery "$place" "${tls[@]}" &
workers=$!
trap 'kill "$workers"; wait "$workers" || true' EXIT

wool run --discovery "$place" "${tls[@]}" "$@"

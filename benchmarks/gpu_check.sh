#!/usr/bin/env bash
# Check a machine with one NVIDIA card in at most eight minutes: train, score, compare with the CPU.
#
#   bash benchmarks/gpu_check.sh [FOLDER FOR RESULTS]
#
# Needs anoscan and its dependencies, and no network. Exit status 1 says what went wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-gpu_check}}
mkdir -p "$out"
export ANOSCAN_HOME="$out/home" PYTHONPATH="src:${PYTHONPATH:-}"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/card.csv"
python -m anoscan doctor | tee "$out/doctor.txt"
timeout 460 python -m benchmarks.gpu_check "$out" | tee "$out/result.json"

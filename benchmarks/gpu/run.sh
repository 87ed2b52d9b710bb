#!/bin/sh
# Every GPU figure, in minutes, on a machine with torch, transformers and sentence-transformers.
# Usage: benchmarks/gpu/run.sh [FOLDER]; options of run.py may follow the folder.
set -eu
cd "$(dirname "$0")/../.."
folder="${1:-benchmarks/results/gpu}"
[ $# -gt 0 ] && shift
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1
PYTHONPATH=src exec "${PYTHON:-python3}" -m benchmarks.gpu.run "$folder" "$@"

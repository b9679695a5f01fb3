#!/usr/bin/env bash
# Everything that needs a card, in one command and under 8 minutes: the GPU tests, then the GPU benchmarks.
#
#   bash benchmarks/gpu_check.sh             on a card
#   bash benchmarks/gpu_check.sh --cpu       a dry run at tiny shapes, anywhere
#   bash benchmarks/gpu_check.sh --only llm  the steps whose name contains that
#
# One JSON file in ${OUT:-benchmarks/results} holds every step's status, figures and last words. The package need
# not be installed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
exec "$PYTHON" benchmarks/gpu_check.py "$@"

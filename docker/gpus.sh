#!/bin/sh
# Spark's discovery script: prints the addresses of this host's GPUs. Without an NVIDIA driver it makes STUB_GPUS
# of them up: enough to try everything that schedules by GPUs, on machines that have none.
set -eu
if command -v nvidia-smi >/dev/null; then
    addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader)
else
    addresses=$(seq 0 $((STUB_GPUS - 1)))
fi
quoted=$(printf '%s' "$addresses" | sed 's/.*/"&"/' | paste -s -d , -)
echo "{\"name\": \"gpu\", \"addresses\": [$quoted]}"

#!/bin/sh
# Installs a file of locked packages: install.sh FILE TORCH [OPTION of uv pip install]...
# TORCH is `locked` for the build whose hash FILE has, or a backend that uv knows: cpu, cu130, ...
# Such a build comes without a locked hash, and without the CUDA packages of the locked one.
set -eu

locked=$1
torch=$2
shift 2

if [ "$torch" = locked ]; then
    exec uv pip install --require-hashes --requirement "$locked" "$@"
fi

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
awk '/^[a-z]/ {skip = $0 ~ /^(torch|triton|nvidia-|cuda-)/} !skip' "$locked" > "$scratch/others.txt"
sed -n 's/^\(torch==[^\\]*\).*/\1/p' "$locked" > "$scratch/torch.txt"
uv pip install --require-hashes --requirement "$scratch/others.txt" "$@"
uv pip install --no-deps --torch-backend "$torch" --requirement "$scratch/torch.txt" "$@"

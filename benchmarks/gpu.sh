#!/usr/bin/env bash
# What only a GPU can show, in 15 minutes on one of 80 GB: the CUDA tests, speed and memory beside TRL (7B with 16k tokens
# among them), decoding, and two seeds of the laptop study. Every step has a limit of time, and its own log in OUT. It needs
# what the repo pins, with a CUDA build of torch, and `pip install -e '.[test,gguf]'`: `make test` has made such an environment.
#
#     bash benchmarks/gpu.sh OUT STUDENT TRACES     # STUDENT and TRACES as in benchmarks/laptop.py
#     bash benchmarks/gpu.sh OUT STUDENT TRACES tests train decode     # or in two halves, of 7 and 9 minutes at most
#     bash benchmarks/gpu.sh OUT STUDENT TRACES train-7b laptop
#
# A laptop study that is cut keeps what it has trained in OUT/runs: MIXDISTILL_RUNS=OUT/runs and the same command with
# --stored-only write the tables of it.
#
# DEVICE=cpu tries the script itself, at the smallest sizes, without the laptop study.
set -u
out=$1 student=${2:-} traces=${3:-} device=${DEVICE:-cuda}
steps=" ${*:4} "
mkdir -p "$out"
export MIXDISTILL_RUNS="$out/runs"
small="qwen2.5-0.5b qwen2.5-1.5b" large=qwen2.5-7b decoding="--student qwen2.5-1.5b --rows 256 --new-tokens 128 --rounds 1"
longest=4096 longest_7b=16384 rounds=2
if [ "$device" = cpu ]; then
    small=tiny large=tiny longest=128 longest_7b=256 rounds=1 decoding="--student pocket/xs --rows 8 --new-tokens 8 --rounds 1"
fi

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    [ "$steps" = "  " ] || [[ $steps == *" $name "* ]] || return 0
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    echo "$name: exit $?, $((SECONDS - began)) s: $*" | tee -a "$out/steps.txt"
}

python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' | tee "$out/machine.txt"
step tests 150 python -m pytest -q -rs tests/finetuning/test_attention.py tests/finetuning/test_loss.py tests/finetuning/test_gpus.py
step train 150 python benchmarks/train.py --device "$device" --students $small --longest $longest --rounds $rounds --json
step train-7b 180 python benchmarks/train.py --device "$device" --students $large --longest $longest_7b --steps 2 --rounds 1 --json
step decode 90 python benchmarks/decode.py --device "$device" $decoding
[ "$device" = cpu ] || [ -z "$traces" ] || step laptop 330 python benchmarks/laptop.py --student "$student" --traces "$traces" \
    --out "$out/laptop" --workers 8 --lr 2e-3 --seeds 2 --stages svamp

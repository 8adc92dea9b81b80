#!/usr/bin/env bash
# What only a GPU can show, on one of 80 GB: the CUDA tests, speed and memory beside TRL (7B with 16k tokens among them),
# decoding, and the laptop study with its levels and GSM8K. Every step has a limit of time, and its own log in OUT; what
# a study's stage has trained when it is cut lies in OUT/runs, and is in its tables. It needs what the repo pins, with a
# CUDA build of torch, and `pip install -e '.[test,gguf]'`: `make test` has made such an environment.
#
#     bash benchmarks/gpu.sh OUT STUDENT TRACES     # STUDENT and TRACES as in benchmarks/laptop.py; some 30 minutes
#     bash benchmarks/gpu.sh OUT STUDENT TRACES tests train decode     # or in parts, of 7, 10 and 13 minutes at most
#     bash benchmarks/gpu.sh OUT STUDENT TRACES train-7b svamp
#     bash benchmarks/gpu.sh OUT STUDENT TRACES levels gsm8k
#
# A STUDENT that had to be cut for its way here, into STUDENT.part1 and so on, is joined. DEVICE=cpu tries the script
# itself, at the smallest sizes, without the laptop study.
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
[ -e "$student" ] || [ ! -e "$student.part1" ] || { cat $(ls -v "$student".part*) > "$student.joined" && mv "$student.joined" "$student"; }

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    [ "$steps" = "  " ] || [[ $steps == *" ${name%-tables} "* ]] || return 0
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    echo "$name: exit $code, $((SECONDS - began)) s: $*" | tee -a "$out/steps.txt"
    return $code
}

study() { # STAGE SECONDS SEEDS, and the tables of what is there if it is cut
    local laptop=(python benchmarks/laptop.py --student "$student" --traces "$traces" --out "$out/laptop" --families long large)
    laptop+=(--workers 8 --lr 2e-3 --seeds "$3" --stages "$1")
    [ "$device" = cpu ] || [ -z "$traces" ] || step "$1" "$2" "${laptop[@]}" || step "$1-tables" 60 "${laptop[@]}" --stored-only
}

python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' | tee "$out/machine.txt"
step tests 150 python -m pytest -q -rs tests/finetuning/test_attention.py tests/finetuning/test_loss.py tests/finetuning/test_gpus.py
step train 150 python benchmarks/train.py --device "$device" --students $small --longest $longest --rounds $rounds --json
step train-7b 180 python benchmarks/train.py --device "$device" --students $large --longest $longest_7b --steps 2 --rounds 1 --json
step decode 90 python benchmarks/decode.py --device "$device" $decoding
study svamp 330 3
study levels 330 3
study gsm8k 330 3

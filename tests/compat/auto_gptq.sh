#!/usr/bin/env bash
# Does auto-gptq read what step 7 writes? Quantizes tiny Llama and Qwen2 students to 8 and 4 bits and compares the logits
# that auto-gptq computes with ours: the verdict's, and those of the whole vocabulary with the embeddings as output layer.
#   bash tests/compat/auto_gptq.sh | tee tests/compat/auto_gptq.txt
# Not part of the test suite: auto-gptq 0.7.1, the last release, knows neither transformers 5 nor our environment, so
# one of its own is made (about 1.2 GB, a minute) and removed. auto-gptq cannot quantize without CUDA; it can compute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${VENV_DIR:-$PWD/.venv}/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==4.57.6 peft==0.17.1 accelerate datasets \
  sentencepiece rouge gekko pandas 'numpy<2.3' >"$work/pip.log" 2>&1 || { cat "$work/pip.log" >&2 && exit 1; }
# Without its dependencies: it would have an older torch. There is a wheel; from source it needs BUILD_CUDA_EXT=0.
BUILD_CUDA_EXT=0 "$work/venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation auto-gptq==0.7.1 \
  >"$work/pip.log" 2>&1 || { cat "$work/pip.log" >&2 && exit 1; }

for family in llama qwen2; do
  for bits in 8 4; do
    PYTHONPATH=$PWD "$python" tests/compat/write_quantized.py "$work/$family-$bits" "$family" "$bits" 2>"$work/ours.log" >&2 ||
      { cat "$work/ours.log" >&2 && exit 1; }
    (cd "$work" && venv/bin/python "$OLDPWD/tests/compat/read_with_auto_gptq.py" "$work/$family-$bits" 2>"$work/theirs.log") ||
      { cat "$work/theirs.log" >&2 && exit 1; }
  done
done

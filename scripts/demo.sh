#!/usr/bin/env bash
# What `make demo` runs: steps 1 to 9 with PROFILE=tiny, on the sample or on votes of your own (TRAIN=, TEST=, LABELS=).
# Ends in sub/demo_final_ensemble.csv and model_save/demo/report.html. RUN=name keeps several demos apart.
set -euo pipefail
export PROFILE=tiny RUN=${RUN:-demo} TEST_CSV=$DEMO_TEST LABELS_CSV=$DEMO_LABELS
if [ "$DEMO_TRAIN" != data/sample/train.csv ]; then # the profile's extra votes belong to its own data
  export TRAIN_CSV=$DEMO_TRAIN EXTRA_DATA=${EXTRA_DATA:-none}
fi
cpu=$(cat /proc/cpuinfo 2>/dev/null || true)
# 16 bits save time with AMX, and with AMD's AVX512_BF16 (see arena_distill/models/instructions.py); else they cost time.
if [[ $cpu != *amx_bf16* && ($cpu != *avx512_bf16* || $cpu == *GenuineIntel*) ]]; then
  export POSTPRE_BF16=${POSTPRE_BF16:-0} TEACHER_BF16=${TEACHER_BF16:-0} STUDENT_BF16=${STUDENT_BF16:-0}
fi
bash "$(dirname "${BASH_SOURCE[0]}")/../pipeline.sh" "$@"
echo "the page to look at: model_save/$RUN/report.html"

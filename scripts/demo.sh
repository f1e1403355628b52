#!/usr/bin/env bash
# What `make demo` runs: steps 1 to 9 with PROFILE=tiny, on the sample or on votes of your own (TRAIN=, TEST=, LABELS=).
# Ends in sub/demo_final_ensemble.csv and model_save/demo/report.html. RUN=name keeps several demos apart.
set -euo pipefail
export PROFILE=tiny RUN=${RUN:-demo} TEST_CSV=$DEMO_TEST LABELS_CSV=$DEMO_LABELS
if [ "$DEMO_TRAIN" != data/sample/train.csv ]; then # the profile's extra votes belong to its own data
  export TRAIN_CSV=$DEMO_TRAIN EXTRA_DATA=${EXTRA_DATA:-none}
fi
if ! grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then # else 16 bits take up to nine times as long
  export POSTPRE_BF16=${POSTPRE_BF16:-0} TEACHER_BF16=${TEACHER_BF16:-0} STUDENT_BF16=${STUDENT_BF16:-0}
fi
bash "$(dirname "${BASH_SOURCE[0]}")/../pipeline.sh" "$@"
echo "the page to look at: model_save/$RUN/report.html"

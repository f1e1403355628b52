#!/usr/bin/env bash
# What `make quick` runs: job.sh on the sample (or TRAIN=, TEST=, LABELS= of your own), with a model small enough for
# two CPU cores. Without STUDENT_MODEL a tiny BERT with random weights is made; it has only the votes to learn from.
# shellcheck source=scripts/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

export STUDENT_SWAP_AUGMENT=${STUDENT_SWAP_AUGMENT:-1} # few votes: seeing each pair from both sides doubles them
if [ "$TRAIN_CSV" = data/sample/train.csv ]; then
  export STUDENT_EXTRA_CSVS=${STUDENT_EXTRA_CSVS:-data/sample/ultrafeedback.csv}
fi
if [ -z "${STUDENT_MODEL:-}" ]; then
  python scripts/make_tiny_models.py --texts "$TRAIN_CSV" --out-dir "$DEMO_BACKBONE" --families bert
  export STUDENT_MODEL=$DEMO_BACKBONE/bert
  export STUDENT_LEARNING_RATE=${STUDENT_LEARNING_RATE:-1e-3} # random weights need more than a fine-tune's 5e-5
  export STUDENT_TRAIN_BATCH_SIZE=${STUDENT_TRAIN_BATCH_SIZE:-32}
  export STUDENT_MAX_LENGTH=${STUDENT_MAX_LENGTH:-256} # tokens; nine sample rows in ten fit whole
fi
bash job.sh

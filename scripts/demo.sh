#!/usr/bin/env bash
# What `make demo` runs: steps 1 to 9 with PROFILE=tiny, on the sample or on votes of your own (TRAIN=, TEST=, LABELS=).
# Ends in sub/demo_final_ensemble.csv and model_save/demo/report.html. RUN=name keeps several demos apart.
# shellcheck source=scripts/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

export PROFILE=tiny RUN=${RUN:-demo} TEST_CSV=$DEMO_TEST LABELS_CSV=$DEMO_LABELS
if [ "$DEMO_TRAIN" != data/sample/train.csv ]; then # the profile's extra votes belong to its own data
  export TRAIN_CSV=$DEMO_TRAIN EXTRA_DATA=${EXTRA_DATA:-none}
fi

folds=5
cores=$(nproc)
workers=$((cores < folds ? cores : folds))

# side_by_side STEP VARIABLE: its folds shared out over the cores, as the tasks of an array job are over a cluster.
side_by_side() {
  local pids=() worker
  for ((worker = 0; worker < workers; worker++)); do
    env OMP_NUM_THREADS=$((cores / workers)) "$2=$(seq -s , "$worker" "$workers" $((folds - 1)))" bash "$1" &
    pids+=($!)
  done
  for worker in "${pids[@]}"; do wait "$worker"; done
}

bash step1_post_pretrain.sh
bash step2_make_folds.sh
side_by_side step3_train_teachers.sh TEACHER_FOLDS
side_by_side step4_infer_teacher_logits.sh INFER_FOLDS
side_by_side step5_distill_student.sh STUDENT_FOLDS
bash step6_lora_ensemble.sh
bash step7_quantize_gptq.sh
bash step8_infer_tta.sh
bash step9_eval.sh

log "the page to look at: model_save/$RUN/report.html"

#!/usr/bin/env bash
# Does a student learn more from teachers than from votes? Three seeds each of: votes alone, out-of-fold labels, leaked
# labels; then all five folds of one seed. Generated votes with known true probabilities; about 25 minutes on two cores.
#   bash bench/distillation.sh        → bench/results/distillation.txt
# shellcheck source=scripts/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/stage.sh"
export PROFILE=bench/distillation.env
large=data/sample_large teachers=model_save/distillation

python scripts/make_sample_data.py --out-dir $large --train-rows 6000 --test-rows 1500 --extra-rows 9000
python scripts/make_tiny_models.py --texts $large/train.csv --out-dir $teachers/large --families bert
python scripts/make_tiny_models.py --texts $large/train.csv --out-dir $teachers/small --families bert:64
bash step2_make_folds.sh
bash step3_train_teachers.sh
bash step4_infer_teacher_logits.sh
python bench/leaked_labels.py --out-dir $teachers/leaked

student() { # RUN FOLD SEED
  RUN=$1 CV_FOLD_IDX=$2 STUDENT_SEED=$3 python main.py --mode student-distill-train
  RUN=$1 CV_FOLD_IDX=$2 STUDENT_SEED=$3 python main.py --mode student-calibrate
}
export DISTILL_TEACHERS="$teachers/teacher_logits/*_fold_*/teacher_logits_fold_*.npy"
for seed in 1 2 3; do
  DISTILL_ALPHA=0 student "votes$seed" 0 $seed
  student "distilled$seed" 0 $seed
  DISTILL_TEACHERS="$teachers/leaked/*/*.npy" student "leaked$seed" 0 $seed
done
for fold in 1 2 3 4; do student distilled1 $fold 1; done

compare() {
  python scripts/compare_runs.py "$@" --test-csv $large/test.csv --labels-csv $large/test_labels.csv \
    --truth-parquet $large/truth.parquet 2>/dev/null
}
{
  compare votes=votes1,votes2,votes3 distilled=distilled1,distilled2,distilled3 leaked=leaked1,leaked2,leaked3 \
    --student student_distilbert_fold_0
  echo
  compare distilled1
} | tee bench/results/distillation.txt

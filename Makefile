# make demo    all nine steps on the sample with models of two layers: a submission, and a report of how good it is
# make quick   one small student instead, without teachers
# make test    the test suite; as root also on a real Slurm of two nodes, which it starts and takes down again
# make slurm-test    all tests on that Slurm, with the faults (minutes each): time limits, requeues, a lost node …
# make bench   speed and memory beside what else one could take (25 minutes); peers go to an environment of their own
# Each sets up what it needs first: a virtual environment with the versions of constraints.txt.

PYTHON ?= python3
VENV   := $(shell test -f conf/cluster.sh && . ./conf/cluster.sh >/dev/null 2>&1; printf %s "$${VENV_DIR:-.venv}")
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
TORCH_PIP_ARGS ?=

# The data; give your own: make demo TRAIN=votes.csv TEST=pairs.csv LABELS=labels.csv; make quick STUDENT_MODEL=dir …
TRAIN  ?= data/sample/train.csv
TEST   ?= data/sample/test.csv
LABELS ?= $(if $(filter data/sample/test.csv,$(TEST)),data/sample/test_labels.csv)
TRUTH  ?= $(if $(filter data/sample/test.csv,$(TEST)),data/sample/truth.parquet)
TINY   := model_save/demo_backbone
STUDENT_MODEL ?=

# The peers of bench/
PEERS := .venv-bench
BENCH ?=

.PHONY: setup demo quick test slurm-test bench lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=24'
	$(PY) -m pip install --quiet $(TORCH_PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PY) -m pip check
	touch $@

demo: $(READY)
	DEMO_TRAIN='$(TRAIN)' DEMO_TEST='$(TEST)' DEMO_LABELS='$(LABELS)' bash scripts/demo.sh

quick: $(READY)
	TRAIN_CSV='$(TRAIN)' TEST_CSV='$(TEST)' LABELS_CSV='$(LABELS)' TRUTH_PARQUET='$(TRUTH)' STUDENT_MODEL='$(STUDENT_MODEL)' \
		DEMO_BACKBONE='$(TINY)' bash scripts/quick.sh

test: $(READY)
	$(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile -m 'not fault'

slurm-test: $(READY)
	$(PY) -m pytest tests/slurm --numprocesses auto --maxprocesses 4 --dist loadfile

bench: $(READY) $(PEERS)/.ready
	$(PY) bench/run.py $(BENCH)

$(PEERS)/.ready: bench/peers.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade 'pip>=24'
	$(PEERS)/bin/python -m pip install --quiet $(TORCH_PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement bench/peers.txt
	$(PEERS)/bin/python -m pip check
	touch $@

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/shellcheck --external-sources $(shell git ls-files '*.sh' .ci/run)

clean:
	rm -rf .venv .venv-bench build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything starts from a bare machine with Python 3.11 or newer, git, make and pip's registry.
# A second run of any target reuses what the first one set up, and needs no network.

# Name one to choose it: make setup PYTHON=/path/to/python
CANDIDATES := $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

BIN := .venv/bin
# The stamp is named by the content it was made from, so that a change sets up anew (a touch does not).
SETUP_FILES := pyproject.toml setup.py constraints.txt $(wildcard kernels/native/*.cpp kernels/native/*.h)
STAMP := .venv/.setup-$(shell cat $(SETUP_FILES) | cksum | tr ' ' '-')

.PHONY: help setup fetch demo bench-quick test test-slow test-aot test-chaos test-hosts test-two-hosts \
  test-exhaustive test-gpu lint format clean

help:
	@echo "make setup      .venv with the package and all it needs"
	@echo "make demo       train four LoRA jobs at once on a 135M model (10 minutes on 2 cores)"
	@echo "make bench-quick  every benchmark, small, on the CPU; fails on wrong results alone (minutes)"
	@echo "make test       the tests that every commit must pass"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-aot   compile every kernel for every GPU it is meant for, without one (minutes)"
	@echo "make test-chaos servers killed at a hundred random instants (minutes)"
	@echo "make test-hosts  two hosts in network namespaces, ssh, Slurm and other tools (minutes)"
	@echo "make test-two-hosts  of those the ones on two hosts: a cut link, a host that dies"
	@echo "make test-gpu   the kernels' numerics on the GPU that is here"
	@echo "make lint       ruff and pyright;  make format  lets ruff mend what it can"
	@echo "make clean      remove .venv, build folders and tool caches"

setup: $(STAMP)

$(STAMP):
	@found=; for python in $(CANDIDATES); do \
	  if "$$python" -c "$(NEW_ENOUGH)" 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if test -z "$$found"; then \
	  echo "Python 3.11 or newer is needed, and none of these is: $(CANDIDATES)."; \
	  echo "Install one, or name it: make setup PYTHON=/path/to/python"; exit 1; \
	fi; \
	echo "Setting up .venv with $$found: some minutes, once"; \
	"$$found" -m venv .venv || { \
	  echo "$$found cannot make a virtual environment (on Debian: apt install python3-venv)."; \
	  exit 1; \
	}
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,demo]'
	@rm -f .venv/.setup-*
	@touch $@

# The base model and datasets, in $$LORAFUSION_HOME (~/.cache/lorafusion). At once when cached.
fetch: setup
	@$(BIN)/lorafusion fetch demo

demo: fetch
	$(BIN)/lorafusion train jobs/examples/demo.yaml --output runs/demo --overwrite --show-generation

# In float32: bfloat16 is imitated on many CPUs, and 50 times as slow.
QUICK := runs/bench-quick
bench-quick: fetch
	$(BIN)/lorafusion bench kernels --cpu --quick --rounds 5 -o $(QUICK)/kernels --overwrite
	for op in shared loss attention elementwise; do \
	  $(BIN)/lorafusion bench kernels --cpu --quick --op $$op --rounds 5 -o $(QUICK)/$$op --overwrite \
	    || exit 1; \
	done
	$(BIN)/lorafusion bench plan tests/planner/cases/two_jobs.json \
	  tests/planner/cases/small_batches.json --baselines -o $(QUICK)/plan
	$(BIN)/lorafusion bench pipeline --stages 4 --rounds 1 -o $(QUICK)/pipeline
	$(BIN)/lorafusion bench train jobs/examples/demo.yaml --dtype float32 --dropout 0 --steps 1 \
	  --rounds 1 -o $(QUICK)/train --overwrite

# A process a core, each with whole files: what a file shares is made once. One thread each: two that
# share a core wait for one another.
PARALLEL := -n auto --dist loadfile

test: fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --durations=10 \
	  -m "not slow and not gpu and not aot and not chaos and not hosts and not exhaustive"

# Next to each other these take as long as the longest few: each test goes to whoever is free.
test-slow: fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=10 \
	  -m "slow and not gpu and not aot"

test-aot: setup
	$(BIN)/python -m pytest -m aot --durations=10

# An hour or more: the kernels with every combination of type, rank, job count, dropout, rows and tiles.
test-exhaustive: setup
	$(BIN)/python -m pytest -m exhaustive --durations=10

test-chaos: setup
	$(BIN)/python -m pytest -m chaos --durations=10

# Hosts need root; what a tool needs that is not installed is skipped, with the reason.
test-hosts: setup
	$(BIN)/python -m pytest -m hosts -rs --durations=10

# Of those the ones that need no tool but `ip`: a link that is cut, hosts that die.
test-two-hosts: setup
	$(BIN)/python -m pytest tests/launch/test_hosts.py -m hosts -rs --durations=10

test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

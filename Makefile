# `make demo` and `make test` work in a fresh clone: they need make, sh and a Python >= 3.11 with venv, nothing else.
# Stamps in .venv say what is installed; a changed pyproject.toml installs again. Another Python: make demo PYTHON=...

.POSIX:
.NOTPARALLEL:
.PHONY: demo test trust lint venv clean python

PYTHON = python3.13 python3.12 python3.11 python3
SAY = echo "cloze: installing into .venv: 1-3 minutes, about 1.5 GB (more if pip picks a CUDA build of torch)"
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

demo: python .venv/.demo-stamp
	@.venv/bin/cloze pretrain demo --resume --out runs/demo
	@echo "cloze: the report is runs/demo/report.html"

test: python .venv/.test-stamp
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

# Everything of docs/reliability.md, about an hour.
trust: python .venv/.test-stamp
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "slow and not gpu" -n 2
	@.venv/bin/python benchmarks/fuzz.py --cases 100000 --seed 0
	@.venv/bin/python benchmarks/fuzz.py --guided 600 --seed 0
	@.venv/bin/python benchmarks/chaos.py --kills 40 --seed 0
	@.venv/bin/python benchmarks/resumes.py --resumes 1000

lint: python .venv/.dev-stamp
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/python -m mypy

venv: python .venv/.dev-stamp

clean:
	rm -rf .venv build dist

# A .venv that works is kept; a missing, half-made or outdated one is made anew (which removes its stamps).
python:
	@fits='import sys; sys.exit(sys.version_info < (3, 11))'; why="no Python >= 3.11 found (tried: $(PYTHON))"; \
	.venv/bin/python -c "import pip; $$fits" 2>/dev/null && exit; \
	for p in $(PYTHON); do \
	  "$$p" -c "$$fits" 2>/dev/null || continue; \
	  "$$p" -c 'import venv, ensurepip' 2>/dev/null && exec "$$p" -m venv --clear .venv; \
	  why="$$p has no venv module (on Debian and Ubuntu: apt install python3-venv)"; \
	done; \
	echo "cloze: $$why" >&2; exit 1

.venv/.demo-stamp: pyproject.toml
	@$(SAY); $(PIP) -e . && touch $@

.venv/.test-stamp: pyproject.toml
	@$(SAY); $(PIP) -e '.[test]' && touch .venv/.demo-stamp $@

.venv/.dev-stamp: pyproject.toml
	@$(SAY); $(PIP) -e '.[test,dev]' && touch .venv/.demo-stamp .venv/.test-stamp $@

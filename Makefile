# make demo | test | slow | notebooks | clean
PYTHON ?= python3
BIN := .venv/bin
# Compiled modules are kept: tests start many processes, and each would compile them again.
unexport PYTHONDONTWRITEBYTECODE

demo: .venv/installed
	@$(BIN)/lab run rand_hie
	@echo "go on    source $(BIN)/activate, then lab --help"

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow"

slow: .venv/tested
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev,ray,postgres]'
	@touch $@

notebooks: .venv/tested
	cd notebooks && for book in *.py; do \
	  ../$(BIN)/jupytext -q --to ipynb $$book && \
	  LAB_RUNS=$${LAB_RUNS:-../runs} ../$(BIN)/jupyter-execute --inplace $${book%.py}.ipynb; done

clean:
	rm -rf .venv

.PHONY: demo test slow notebooks clean

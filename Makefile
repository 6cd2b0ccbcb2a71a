# The two commands: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
TORCHREC := torchrec==1.8.0

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/dlrrec run --config configs/demo.yaml --run-dir runs/demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torchrec requires fbgemm-gpu (CUDA), which would overwrite the CPU build: it is installed without dependencies.
.venv/installed: setup.cfg constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it or run 'make PYTHON=/path/to/python3.11'"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[cpu,test]'
	$(BIN)/pip install -q --no-deps $(TORCHREC)
	$(BIN)/dlrrec doctor
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info .hypothesis .ruff_cache

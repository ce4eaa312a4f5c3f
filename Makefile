# Each verb sets up all it needs on a machine with python3 and make.
.PHONY: install demo readme test test-slow test-server test-all soak check bench gpu

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv from the system if there is one, else from pip; both install the same versions.
UV := $(shell command -v uv 2>/dev/null || echo $(VENV)/tool/bin/uv)

install: $(READY)

$(VENV)/tool/bin/uv:
	python3 -m venv $(VENV)/tool
	$(VENV)/tool/bin/python -m pip install --quiet --disable-pip-version-check uv

$(READY): pyproject.toml constraints.txt $(filter $(VENV)/%,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --allow-existing --python "$$(command -v python3)" $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode \
		--constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/sim2real demo

readme: demo
	$(BIN)/python docs/make_readme.py runs/demo/report

# In the order of names: by numbers of tests, files of few long tests would come last, on one core.
# Three processes, also on two cores: many tests wait for processes that they started.
test: install
	$(BIN)/python -m pytest -m "not slow and not soak and not server" -n 3 --dist loadfile \
		--no-loadscope-reorder

# A process for each file: many of these tests fork, which threads of another file's tests forbid.
test-slow: install
	grep -l "mark[.]slow" tests/test_*.py | xargs -P 2 -n 1 $(BIN)/python -m pytest -m slow

test-server: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "server and not soak"

soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -n 2 --dist load

test-all: test test-slow test-server soak

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/cyclegan_step.py
	$(BIN)/python benchmarks/translators_step.py
	$(BIN)/python benchmarks/segmentation_step.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/doctor.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/translators.py
	$(BIN)/python benchmarks/translate.py
	$(BIN)/python benchmarks/predict.py --recipe small --size 512x256 --width 256

# On a machine with a GPU; what is installed there will do, and what is not is left out.
gpu:
	$(if $(wildcard $(READY)),$(BIN)/python,python3) benchmarks/gpu.py

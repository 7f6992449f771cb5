# Each target makes the virtual environments it needs; none has to be activated.
PYTHON ?= python3

PYTHONS := python3.12 python3.13

PROJECT := pyproject.toml src/wool/_version.py
PIP := bin/python -m pip install --quiet --disable-pip-version-check
# What does not depend on their versions, or needs what does not install beside them.
FLOORLESS := tests/benchmarks tests/cli tests/test_deploy.py tests/test_docs.py tests/test_docs_commands.py
FLOORS := cloudpickle==3.0.0 grpcio==1.80.0 protobuf==6.31.1
# Newer generators write code that protobuf 6 refuses to load.
GENERATOR := grpcio-tools==1.80.1
# The mapped path gives the descriptor a name that no other package's wire.proto has.
PROTOC := .venv-proto/bin/python -m grpc_tools.protoc --proto_path=wool/protocol=protos \
	wool/protocol/wire.proto
GENERATED := wool/protocol/wire_pb2.py wool/protocol/wire_pb2.pyi

.PHONY: quickstart test lint format types proto proto-check docs floors pythons torture bench clean
.DELETE_ON_ERROR:

quickstart: .venv/.installed
	.venv/bin/python examples/quickstart.py

test: lint types proto-check
	rm -f .coverage .coverage.*
	.venv/bin/coverage run -m pytest
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

lint: .venv/.installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check

format: .venv/.installed-dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

types: .venv/.installed-dev
	.venv/bin/mypy

proto: .venv-proto/.installed
	$(PROTOC) --python_out=src --pyi_out=src

proto-check: .venv-proto/.installed
	@stale=; fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh" && \
	for file in $(GENERATED); do diff -q "src/$$file" "$$fresh/$$file" || stale=1; done && \
	if [ "$$stale" ]; then \
		echo "src/wool/protocol is not what protos/wire.proto says: run 'make proto'" >&2; exit 1; \
	fi

# The site, in build/site. Whatever is wrong with it is an error, as it is in the tests.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

# The lowest versions of the dependencies that pyproject.toml declares.
floors: .venv-floors/.installed
	.venv-floors/bin/python -m pytest -m "not slow" $(FLOORLESS:%=--ignore=%)

# The interpreters that pyproject.toml names besides the lowest.
pythons: $(PYTHONS:%=.venv-%/.installed-dev)
	set -e; for python in $(PYTHONS); do \
		.venv-$$python/bin/python -m pytest -m "not slow" $(FLOORLESS:%=--ignore=%); \
	done

# Breaks things under load, for five minutes or so. For example: make torture ARGS="--only kill --seconds 60"
torture: .venv/.installed-dev
	.venv/bin/python -m tests.torture $(ARGS)

# For example: make bench ARGS="--only latency,burst --quick --check"
# Compiled, as an installed package is, whatever PYTHONDONTWRITEBYTECODE says.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m compileall -q src benchmarks
	.venv-bench/bin/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-proto .venv-docs .venv-floors .venv-bench .venv-python* benchmarks/.venv-wool build dist .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: $(PROJECT)
	$(PYTHON) -m venv .venv
	.venv/$(PIP) --editable .
	touch $@

.venv/.installed-dev: $(PROJECT)
	$(PYTHON) -m venv .venv
	.venv/$(PIP) --editable '.[dev]'
	touch $@

.venv-python%/.installed-dev: $(PROJECT)
	python$* -m venv .venv-python$*
	.venv-python$*/$(PIP) --editable '.[dev]'
	touch $@

.venv-bench/.installed: $(PROJECT)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/$(PIP) --editable '.[bench]'
	touch $@

.venv-docs/.installed: $(PROJECT)
	$(PYTHON) -m venv .venv-docs
	.venv-docs/$(PIP) --editable '.[docs]'
	touch $@

.venv-floors/.installed: $(PROJECT) Makefile
	$(PYTHON) -m venv .venv-floors
	.venv-floors/$(PIP) --editable '.[dev]' $(FLOORS)
	touch $@

.venv-proto/.installed: Makefile
	$(PYTHON) -m venv .venv-proto
	.venv-proto/$(PIP) $(GENERATOR)
	touch $@

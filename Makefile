# `make help` lists the targets. The only tools needed are make, git and Python: 3.11 or 3.12, or, with
# a network, any other that can fetch 3.12.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.fl-sim-ready
CODE := fl_sim strategies clients experiments tests

# Which Python makes the virtual environment; empty: the first suitable one found.
PYTHON ?=
# -n 2: two worker processes; loadfile: the tests of one file stay in one process, one after another;
# files in the order of tests/conftest.py, not of how many tests they have.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
# UV_TORCH_BACKEND=cpu in the environment takes the CPU builds of torch, where they can be reached
# (the default builds, with CUDA, take several GB).
export UV_HTTP_TIMEOUT ?= 300

# Nothing here phones home.
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

# Makes .venv with a Python that uv fetches: the uv on the PATH, or one that the Python that is there
# installs for a moment.
define fetch
	if ! uv=$$(command -v uv); then
		moment=$$(mktemp -d)
		trap 'rm -rf "$$moment"' EXIT
		python3 -m venv "$$moment" && "$$moment/bin/python" -m pip install "$$(grep '^uv==' constraints.txt)"
		uv=$$moment/bin/uv
	fi
	"$$uv" venv --clear --managed-python --python 3.12 $(VENV)
endef

# Some machines forbid Python to keep what it compiled; then every process of the tests would compile
# torch's thousands of files anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=

# MkDocs 1 is pinned; a note of its theme's makers on every build says nothing new.
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: help setup demo test check format tables notebooks docs wheel oldest constraints clean distclean

help: ## List the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do
		printf '  make %-12s %s\n' "$$name" "$$text"
	done

demo: setup ## Run the demo (sets up .venv first)
	@$(BIN)/fl-sim demo

test: setup ## Run the tests (sets up .venv first); PYTEST_ARGS="-k words" chooses
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## Lint, formatting, types and the arrows of imports, changing nothing
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache --no-logo

format: setup ## Format the code and mend what lint can mend
	@$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

tables: setup ## Write the tables of all pages anew, and compare numbers in prose with their rows
	@$(BIN)/fl-sim study tables

notebooks: setup ## Run the notebooks on the real images of FL_SIM_DATA, and keep what came out
	@PYTHONPATH=. $(BIN)/python -m experiments.notebooks

# Not --quiet, which hides from --strict what it fails on.
docs: setup ## Build the documentation site into site/, without a network
	@PYTHONPATH=. $(BIN)/mkdocs build --strict
	echo "The site is in site/; for the search, too: $(BIN)/python -m http.server --directory site"

wheel: setup ## Install the wheel outside the checkout, and run the demo there
	@place=$$(mktemp -d)
	trap 'rm -rf "$$place"' EXIT
	$(BIN)/uv build --quiet --wheel --out-dir "$$place" .
	$(BIN)/uv venv --quiet --python $(BIN)/python "$$place/venv"
	$(BIN)/uv pip install --quiet --python "$$place/venv/bin/python" --constraint constraints.txt "$$place"/*.whl
	cd "$$place"
	env -u PYTHONPATH venv/bin/fl-sim --version
	env -u PYTHONPATH venv/bin/fl-sim demo

oldest: setup ## Run the fast tests with the oldest packages that pyproject.toml allows
	@place=$$(mktemp -d)
	trap 'rm -rf "$$place"' EXIT
	$(BIN)/uv venv --quiet --python $(BIN)/python "$$place"
	$(BIN)/uv pip install --quiet --python "$$place/bin/python" --resolution lowest-direct --editable '.[dev,notebooks]'
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$$place/bin/python" -m pytest -p no:cacheprovider -m "not slow" $(PYTEST_ARGS)

setup: $(STAMP) ## Make .venv at the versions of constraints.txt; PYTHON=... chooses the Python of a new one

# uv, not pip, installs: a pip that is configured with local wheels takes torch from there and
# torchvision from the registry, and the two do not fit. The stamp is written last, so that an
# interrupted setup is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	suitable='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
	if ! $(BIN)/python -c "$$suitable" 2>/dev/null; then
		python=
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3 python); do
			"$$candidate" -c "$$suitable" 2>/dev/null || continue
			python=$${python:-$$candidate}
			# One that brings pip along goes before one that does not (Debian's without python3-venv).
			if "$$candidate" -c 'import ensurepip' 2>/dev/null; then python=$$candidate; break; fi
		done
		if [ -n "$$python" ]; then
			echo "Making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"
			rm -rf $(VENV)
			"$$python" -m venv --without-pip $(VENV) || { echo "fl-sim: $$python cannot make a virtual environment; on Debian run: apt-get install python3-venv" >&2; exit 1; }
		elif [ -n "$(PYTHON)" ]; then
			echo "fl-sim: '$(PYTHON)' is not Python 3.11 or 3.12; name one: make setup PYTHON=/path/to/python3.12" >&2
			exit 1
		else
			echo "Making $(VENV) with Python 3.12, which uv keeps or fetches, because the PATH holds neither 3.11 nor 3.12"
			( $(fetch) ) >/dev/null 2>&1 || { echo "fl-sim: Python 3.12 cannot be fetched here, perhaps for want of a network; install Python 3.11 or 3.12 and name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
		fi
	fi
	uv=$$(grep '^uv==' constraints.txt)
	if ! [ "$$($(BIN)/uv --version 2>/dev/null | cut -d' ' -f2)" = "$${uv#uv==}" ]; then
		echo "Installing $$uv"
		python=$$($(BIN)/python -c 'import sys; print(sys._base_executable)')
		quiet_pip="-m pip install --quiet --disable-pip-version-check"
		wheels=$(VENV)/debian
		if $(BIN)/python -m ensurepip >/dev/null 2>&1 && $(BIN)/python $$quiet_pip "$$uv"; then :
		elif "$$python" -m pip --version >/dev/null 2>&1 \
			&& "$$python" $${quiet_pip/pip/pip --python $(BIN)/python} "$$uv"; then :
		elif uv pip install --quiet --python $(BIN)/python "$$uv" 2>/dev/null; then :
		# Debian's Python alone has neither pip nor ensurepip; its package of pip can be read unprivileged.
		elif mkdir -p $$wheels && (cd $$wheels && apt-get download python3-pip-whl && dpkg-deb -x *.deb .) >/dev/null 2>&1 \
			&& PYTHONPATH=$$(echo $$wheels/usr/share/python-wheels/pip-*.whl) $(BIN)/python $$quiet_pip "$$uv"; then :
		else
			rm -rf $$wheels
			echo "fl-sim: $$python has no pip that can install $$uv; on Debian run: apt-get install python3-venv" >&2
			exit 1
		fi
		rm -rf $$wheels
	fi
	echo "Installing the versions of constraints.txt"
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev,docs,notebooks]'
	touch $@

constraints: ## Bring constraints.txt up to date with pyproject.toml (UPGRADE=--upgrade for newer versions)
	@compile() {
		printf '%s\n' hatchling editables uv | $(BIN)/uv pip compile --quiet --no-annotate --only-binary :all: \
			--python-platform x86_64-manylinux_2_34 --extra dev --extra docs --extra notebooks --custom-compile-command 'make constraints' \
			"$$@" pyproject.toml -
	}
	compile --python-version 3.11 $(UPGRADE) --output-file constraints.txt >/dev/null
	# The same versions have to serve 3.12, which may do without a backport but must need nothing else.
	missing=$$(compile --python-version 3.12 --constraint constraints.txt | sort | comm -13 <(sort constraints.txt) -)
	if [ -n "$$missing" ]; then echo "Python 3.12 also needs: $$missing" >&2; exit 1; fi

clean: ## Remove caches and build output
	@rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	@rm -rf $(VENV)

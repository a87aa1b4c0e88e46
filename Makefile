# make leaderboard: the quickstart suite, from nothing to ranked tables and a page.   make test, make check: for developers.
# make shell: a shell in which `siegebench` and `python` are those of the environment.
# Use an environment of your own with VENV=path (its packages are left as they are if they satisfy pyproject.toml).
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.siegebench-installed
RECHECK_SECONDS ?= 120
SALT ?=

.PHONY: setup leaderboard board recheck axe shell test slow gpu check types format docs site submission-check submission-comment clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[all]' -c constraints.txt
	touch $@

leaderboard: setup
	$(BIN)/siegebench run quickstart

# The page and the picture of the rows in leaderboard/rows; the picture needs Chromium. `siegebench run SUITE --store
# leaderboard` measures them.
board: setup
	$(BIN)/siegebench report --store leaderboard --format html --out docs/leaderboard.html
	$(BIN)/siegebench report --store leaderboard --format png --out docs/board.png

# a random sample of those rows, computed again
recheck: setup
	$(BIN)/siegebench recheck --store leaderboard --seconds $(RECHECK_SECONDS) --salt "$(SALT)"

# axe-core, with which a test looks for barriers on the page; without npm the test says that it is missing
axe:
	! command -v npm >/dev/null || npm install --silent --no-save --no-package-lock --prefix . axe-core@4

shell: setup
	@echo "siegebench and python are those of $(VENV) here; leave with exit"
	@VIRTUAL_ENV="$(abspath $(VENV))" PATH="$(abspath $(BIN)):$$PATH" "$${SHELL:-/bin/sh}"

# A test that hangs fails after `timeout` of pyproject.toml. Where that does not end it (it waits for threads that hang, or hangs in
# C), its process ends after 700 s with the stack of all threads, and it fails by name.
test: setup
	$(BIN)/python -m pytest -n 2 -o faulthandler_timeout=700 -o faulthandler_exit_on_timeout=true -m 'not slow and not gpu and not network'

slow: setup
	$(BIN)/python -m pytest -m 'slow and not gpu and not network'

# on a machine with CUDA
gpu: setup
	$(BIN)/python -m pytest -m gpu

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python -m siegebench.catalogue

site: docs
	$(BIN)/mkdocs build --strict --quiet
	@echo "the documentation is in site/index.html"

# The submissions that differ from BASE, as the job of a pull request checks them; the report goes to out/.
BASE ?= origin/main
RERUN ?= 0
PY ?= $(BIN)/python
submission-check: setup
	$(PY) -m siegebench submit check --since "$(BASE)" --rerun $(RERUN) --salt "$(SALT)" --out out/submissions.json

# The comment for the pull request, from that report; needs no torch and none of the contribution.
submission-comment:
	$(PY) -m siegebench submit comment out/submissions.json

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache

# Everything here runs in .venv, which the first target to need it sets up.
#   make demo TORCH=torch          another build of torch than the one pinned below
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quality style clean

demo: $(VENV)/installed
	rm -rf outputs/digits
	$(BIN)/hf-mixer train --recipe digits --output_dir outputs/digits
	$(BIN)/python scripts/digits_demo.py outputs/digits

test: $(VENV)/developed
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

quality: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mlinter hf_mixer --no-cache

style: $(VENV)/developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[train]"
	touch $@

$(VENV)/developed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@

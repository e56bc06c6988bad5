# The front door. `make help` lists the targets; the work is done by the `labs` command (shared/cli.py).
# Options are variables: make check-lab-1 TASK=1.2 TARGET=solution ENGINE=portable SEED=7

PYTHON ?= python3
RUN = @.venv/bin/python -m shared.cli

export PORT TASK TARGET DOMAIN ENGINE ENGINE_ENV ENGINE_PORT ENGINE_IDLE SEED JSON LAB MODEL FRESH \
	JOBS REVIEWER SUBMISSIONS OUT LABS ROSTER LEARNER SANDBOX CLUSTER AUTHOR ALLOW_DIRTY

.DEFAULT_GOAL := help
.PHONY: help setup setup-engine doctor progress engine-up engine-status engine-down ui review grade starters \
	proof notebooks test lint lock bench release release-check clean

help: ## list the targets
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/\1|\2/p' Makefile | sed 's/%/N/' | \
		while IFS='|' read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done

setup: ## build the labs' environment and fetch the small models (done by every target that needs it)
	@$(PYTHON) shared/setup/bootstrap.py labs

setup-engine: setup ## build the environment of the vLLM server (done by the first lab that needs it)
	@.venv/bin/python shared/setup/bootstrap.py engine

doctor: ## what is there, what is missing, and what that costs you
	@$(PYTHON) shared/setup/doctor.py

check-lab-%: setup ## grade lab N: TASK=N.M TARGET=starter|solution|PATH DOMAIN= ENGINE= SEED= JSON=PATH
	$(RUN) check $*

watch-lab-%: setup ## grade lab N again at each save
	$(RUN) watch $*

hint-lab-%: setup ## one more hint for the first open task of lab N, or TASK=N.M
	$(RUN) hint $*

reset-lab-%: setup ## put lab N's starter back; keeps a dated copy of your files
	$(RUN) reset $*

progress: setup ## how far you are
	$(RUN) progress

engine-up: setup ## start the model server, or find it running: ENGINE=vllm|portable
	$(RUN) engine up

engine-status: setup ## which model servers run, and the end of their logs
	$(RUN) engine status

engine-down: setup ## stop the model servers
	$(RUN) engine down

ui: setup ## open the MLflow pages on your own runs
	$(RUN) ui

review: setup ## open Lab 4's reviewer's page on a demo world: TARGET= DOMAIN= REVIEWER= PORT=
	$(RUN) review

grade: setup ## grade a class in a sandbox: SUBMISSIONS= OUT= LABS=1,3 ROSTER= LEARNER= DOMAIN= SEED= JOBS=
	$(RUN) grade

starters: setup ## derive the starters from the solutions (for authors)
	$(RUN) starters

proof: setup ## prove the graders with solutions and with right and wrong variants: LAB=N TASK=N.M JOBS=N
	$(RUN) proof

notebooks: setup ## run the notebooks and keep their plots: LAB=N
	$(RUN) notebooks

test: setup ## prove the project
	@.venv/bin/python shared/setup/bootstrap.py compress
	@.venv/bin/python -m pytest

lint: setup ## ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

lock: setup ## resolve requirements/*.in anew (for authors)
	$(RUN) lock

bench: setup ## measure what the project promises: LAB=N
	$(RUN) bench

release: setup ## make the learner's edition, a git repository without solutions: OUT=FOLDER ALLOW_DIRTY=1 AUTHOR=
	$(RUN) release

release-check: setup ## prove that a learner's edition gives nothing away, its history included: OUT=FOLDER
	$(RUN) release-check

clean: ## remove what can be made again; keeps your work, results and backups
	@$(PYTHON) shared/setup/clean.py

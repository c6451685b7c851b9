# make repro: environment and the main job. make test: environment and all tests.
# Both need Python 3.11 and a package index; nothing else is downloaded.
PYTHON ?= python3.11
BIN := .venv/bin
# the kernels and tools that papermill and DVC start are those of the environment
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# one at a time in this folder; what a kill has left is healed, and nothing outlives what started it
ALONE := python nbs/pipeline/alone.py

.DEFAULT_GOAL := help
.PHONY: help env repro ablations namr photos cars grocery dry paper bench test assault site run nbs lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /	/' | expand -t 12

env: .venv/.done ## the environment of requirements.lock, in .venv

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

repro: env ## every table and figure, from the data to results/report.html: dvc repro, with stages side by side
	$(ALONE) python nbs/pipeline/repro.py
	@cat results/table.txt
	@echo "The report: $(CURDIR)/results/report.html"

ablations: env ## the ablations (an hour and a half), then the report with them; a killed one goes on
	$(ALONE) dvc repro pipelines/ablations/dvc.yaml
	python -c 'from plm.ablation import publish; publish()'
	$(ALONE) dvc repro report
	@echo "The report: $(CURDIR)/results/report.html"

namr: env ## NAMR on four metric losses and in the indexes (an hour and a half), then the report; a killed one goes on
	@python -c 'import sys; from plm.comparison import begin_comparison; begin_comparison(*sys.argv[1:])' \
	  grocery '' pipelines/comparison/frozen.yaml runs/frozen
	$(ALONE) dvc repro pipelines/namr/dvc.yaml
	cp runs/namr/namr.csv runs/index/index.csv results/
	$(ALONE) dvc repro report
	@echo "The report: $(CURDIR)/results/report.html"

photos: env ## FOLDER=/my/photos [AT=/my/album]: make them searchable (plm index), and a map of them
	plm index "$$FOLDER" --at "$${AT:-~/.plm}"
	plm map --at "$${AT:-~/.plm}"
	@echo "Search: $(CURDIR)/$(BIN)/plm serve --at $${AT:-~/.plm}"

cars: env ## FOLDER=/my/cars [WAY=full]: all methods behind a frozen backbone, or whole; a subfolder is a class
	$(comparison)

grocery: env ## [WAY=full]: the same on the Grocery Store data set
	$(comparison)

WAY ?= frozen
define comparison
@python -c 'import sys; from plm.comparison import begin_comparison; begin_comparison(*sys.argv[1:])' \
  $@ "$$FOLDER" pipelines/comparison/$(WAY).yaml runs/$(WAY)
$(ALONE) dvc repro pipelines/comparison/dvc.yaml:compare@$(WAY)-$@
@mkdir -p results/$(WAY) && cp runs/$(WAY)/$@/results/* results/$(WAY)/
@cat results/$(WAY)/$@.txt
endef

dry: env ## PRESET=cub200-512: what a cell of the paper's table would need here (files, disk, time); starts nothing
	@python -c 'from plm.paper import begin_dry; begin_dry("$(PRESET)", "$(SET)")'

paper: dry ## PRESET=cub200-512 [SET="seeds=[0]"]: a cell of the paper's table (GPU); a killed one goes on
	@set -ef; settings=$$(python -c 'from plm.paper import arguments; print(*arguments("$(PRESET)", "$(SET)"))'); \
	  $(ALONE) dvc exp run $$settings
	@python -c 'from plm.paper import publish; print(publish("$(PRESET)"))'

bench: env ## what things cost beside their opponents (20 minutes): results/bench.csv, explained in docs/performance.md
	python benchmarks/bench.py

test: env ## everything that must hold: exported modules, notebooks, tests, the pipeline at toy size
	rm -rf .venv/before && cp -r plm .venv/before && nbdev_export
	@diff -r -x __pycache__ .venv/before plm || { rm -rf plm; cp -r .venv/before plm; \
	  echo "plm/ is not what the notebooks export (< is plm/, > is the export)."; \
	  echo "Run make nbs to export, or move your edit into its notebook."; exit 1; }
	OMP_NUM_THREADS=1 MPLBACKEND=agg nbdev_test --n_workers 2 --do_print
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

assault: env ## MINUTES=10 [SEED=0]: kill what writes and break what is read; a table of what came out
	OMP_NUM_THREADS=1 python tests/assault.py $(or $(MINUTES),10) $(SEED)

site: env ## notebooks, docs and API as pages with a search, to be opened from the disk: _site/html/index.html
	python docs/site/make_site.py
	@echo "The site: $(CURDIR)/_site/html/index.html"

run: env ## [NB="manifold 07_losses"]: run the notebooks in nbs/ and store their outputs, all or those named
	OMP_NUM_THREADS=1 python nbs/pipeline/run.py $(NB)

nbs: env ## before a commit: nbdev_export, nbdev_clean, and what stages depend on in dvc.yaml
	nbdev_export && nbdev_clean && python nbs/pipeline/deps.py

lock: env ## requirements.in -> requirements.lock
	$(BIN)/python -m pip install -q pip-tools
	pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host -o requirements.lock requirements.in

clean: ## remove what runs have left, finished ablations too (not the environment, not the cache)
	rm -rf runs scratch _site results/report.html results/namr.html results/map.html

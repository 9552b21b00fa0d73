# Vikhr: an English LLM taught another language, stage by stage. `make help` lists targets and variables.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
.SECONDEXPANSION:
.NOTPARALLEL: # stages own all cores or the accelerator

PROFILE ?= demo##     which configs/<profile>/ to run: demo, test, vikhr-7b, llama2-7b, llama3-8b, nemo-12b
# Waiting threads sleep: on a busy machine, spinning ones made a training step six times slower.
export OMP_WAIT_POLICY ?= passive
VENV ?= .venv##        the virtual environment that is set up and used
PYTHON ?= #      an interpreter with all requirements installed (the image's); no virtual environment then

CONF := configs/$(PROFILE)
$(if $(wildcard $(CONF)/profile.mk),,$(error no profile '$(PROFILE)'; there are: $(patsubst configs/%/profile.mk,%,$(wildcard configs/*/profile.mk))))
include $(CONF)/profile.mk
STEPS ?= 40##        steps of training for each method of `make init-bench`
ANNOTATE ?= #     yes: train the filter on annotations of a language model (OPENAI_BASE_URL, _MODEL, _API_KEY), not on weak labels
TEXT ?= #         more text in the target language for `make bench-tokenizer` and `bench-dedup`: files, with commas between
VERSIONS ?= #     for `make mihash-bench`: documents with a `group`, those of one are revisions of each other (JSON Lines)
HEADLINES ?= #    for `make mihash-bench`: labelled pairs of texts (JSON Lines)
GPUS ?= 0##        accelerators to train on, from the profile if not given; 0 is the CPU

D := data/$(PROFILE)
C := checkpoints/$(PROFILE)
RAW := data/raw
MODELS := checkpoints/models
KEYS := data/.keys
K := $(KEYS)/$(PROFILE)
CHECKPOINTS := base init cpt sft
MIHASH_CORPUS := manpages-dev-en manpages-ru libreoffice-help-en libreoffice-help-ru
# Of `make init-bench`: methods of init_embeddings.py, with -norms for --match_norms; the first is what others are compared with.
INIT_METHODS := mean mean-norms mean_weighted first_last focus omp random

PY := $(or $(strip $(PYTHON)),$(VENV)/bin/python)
ifeq ($(strip $(PYTHON)),)
  READY := $(VENV)/.base
  READY_TO_TEST := $(VENV)/.dev
endif

# What a profile needs of the machine is checked before anything else, the virtual environment included.
QUIET_GOALS := help plan test test-peers lint clean
ifneq ($(strip $(NEEDS)),)
ifneq ($(filter-out $(QUIET_GOALS),$(MAKECMDGOALS)),)
# Not in a dry run: MAKEFLAGS begins with the single-letter flags, if there are any.
ifeq ($(findstring n,$(filter-out --%,$(firstword $(MAKEFLAGS)))),)
  $(if $(shell python3 scripts/preflight.py --profile=$(PROFILE) $(NEEDS) >&2 || echo missing),$(error profile $(PROFILE) can't run here))
endif
endif
endif

comma := ,
empty :=
list = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
conf = $(or $(CONF-$(1)),$(wildcard $(CONF)/$(1).yaml))
run = $(PY) scripts/$(1).py $(addprefix --config=,$(call conf,$(2)))
several := $(filter-out 0 1,$(GPUS))
train = $(PY) $(if $(several),-m torch.distributed.run --standalone --nproc_per_node=$(several)) scripts/$(1).py $(addprefix --config=,$(call conf,$(1)))
manifests = $(addsuffix /manifest.json,$(1))

# The code whose change makes a stage's output another one (tests/test_makefile.py holds the lists to the imports).
lib-fetch := conversion documents extraction instructions languages models roff sources spm vocabulary
lib-dedup := distributed documents duplicates kernels learned mihash minhash models paragraphs planning rebuilding
lib-annotate := annotation api corruption documents languages paragraphs sampling
lib-filter := corruption distributed documents duplicates encoder judging kernels languages learning masking minhash paragraphs quality rules scoring sieve targets
lib-tokenizer := bpe documents fertility languages models spm vocabulary
lib-init := documents embeddings models vocabulary
lib-pack := documents models packing losses
lib-training := documents losses machine metrics models objective packing training
lib-cpt := $(lib-training) audit vocabulary
lib-sft := $(lib-training) dialogues
lib-eval := documents fertility generation harness metrics models vocabulary
lib-report := documents languages page plots receipts scores
lib-init-bench := documents metrics models
lib-init-bench-init := $(lib-init)
lib-init-bench-cpt := $(lib-cpt)
lib-vocab-sweep-tokenizer := $(lib-tokenizer)
lib-vocab-sweep := languages models plots scores
script-tokenizer := train_spm
script-init := init_embeddings
script-init-bench := init_bench
script-init-bench-init := init_embeddings
script-init-bench-cpt := cpt
script-vocab-sweep-tokenizer := train_spm
script-vocab-sweep := vocab_sweep
templates-report := report.html.j2 model_card.md.j2
code = scripts/$(or $(script-$(1)),$(1)).py $(lib-$(1):%=scripts/lib/%.py) $(templates-$(1):%=scripts/lib/%)

languages-filter := $(wildcard configs/languages/*.yaml configs/languages/*.blocked.txt)
languages-tokenizer := $(wildcard configs/languages/*.yaml)
languages-vocab-sweep := $(languages-tokenizer)
languages-vocab-sweep-tokenizer := $(languages-tokenizer)

# What the Makefile itself decides about a stage.
facts-dedup := $(SOURCES)
facts-filter := $(ENCODER) $(ANNOTATE)
facts-tokenizer := $(BASE) $(TOKENIZERS)
facts-init := $(BASE)
facts-sft := $(INSTRUCT)
facts-eval := $(BASE)
CONF-init-bench-init := $(call conf,init)
CONF-init-bench-cpt := $(call conf,cpt)
CONF-vocab-sweep-tokenizer := $(call conf,tokenizer)
facts-init-bench := $(BASE) $(INIT_METHODS)
facts-init-bench-init := $(BASE)
facts-init-bench-cpt := $(STEPS)
facts-vocab-sweep-tokenizer := $(BASE)
facts-vocab-sweep := $(BASE) $(SWEEP)
facts-report := $(SOURCES) $(INSTRUCT) $(BASE) $(ENCODER) $(TOKENIZERS) $(ANNOTATE)

##@ The pipeline
.PHONY: all demo fetch dedup annotate filter tokenizer init pack cpt sft eval report
all: report ## everything, up to the report
	@echo "the report: $(D)/report/report.html"
demo: ## the whole pipeline on the embedded default, from nothing
	@$(MAKE) PROFILE=demo all
fetch: $(call manifests,$(addprefix $(RAW)/,$(SOURCES) $(INSTRUCT)) $(addprefix $(MODELS)/,$(BASE) $(ENCODER) $(TOKENIZERS))) ## corpora, models, tokenizers
dedup: $(D)/dedup/manifest.json ## corpus without duplicate paragraphs
annotate: $(D)/annotations/manifest.json ## sampled documents scored by a language model (if ANNOTATE, part of filter)
filter: $(D)/filter/manifest.json ## corpus without poor documents; the trained filter
tokenizer: $(C)/tokenizer/manifest.json ## the new tokenizer
init: $(C)/init/manifest.json ## the base model with the new vocabulary
pack: $(D)/pack/manifest.json ## training sequences, held-out documents
cpt: $(C)/cpt/manifest.json ## continued pre-training, CE + KL
sft: $(C)/sft/manifest.json ## instruction tuning
eval: $(call manifests,$(CHECKPOINTS:%=$(D)/eval/%)) ## scores of base, init, cpt and sft
report: $(D)/report/manifest.json ## one HTML page about it all

$(RAW)/%/manifest.json: $(KEYS)/sources/% | $(READY)
	$(PY) scripts/fetch.py --config=configs/sources/$*.yaml --cache=$(RAW)/.cache --out=$(@D)

$(MODELS)/%/manifest.json: $(KEYS)/sources/% | $(READY)
	$(PY) scripts/fetch.py --config=configs/sources/$*.yaml --cache=$(RAW)/.cache --out=$(@D)

$(D)/dedup/manifest.json: $(K)/dedup $(call manifests,$(SOURCES:%=$(RAW)/%)) | $(READY)
	$(call run,dedup,dedup) --corpus=$(call list,$(SOURCES:%=$(RAW)/%/documents)) --out=$(@D)

$(D)/annotations/manifest.json: $(K)/annotate $(D)/dedup/manifest.json | $(READY)
	$(call run,annotate,annotate) --documents=$(D)/dedup/documents --out=$(@D)

$(D)/filter/manifest.json: $(K)/filter $(D)/dedup/manifest.json $(MODELS)/$(ENCODER)/manifest.json $(if $(strip $(ANNOTATE)),$(D)/annotations/manifest.json) | $(READY)
	$(call run,filter,filter) --documents=$(D)/dedup/documents --encoder=$(MODELS)/$(ENCODER) $(if $(strip $(ANNOTATE)),--annotations=$(D)/annotations/documents) --out=$(@D)

$(C)/tokenizer/manifest.json: $(K)/tokenizer $(D)/filter/manifest.json $(call manifests,$(addprefix $(MODELS)/,$(BASE) $(TOKENIZERS))) | $(READY)
	$(call run,train_spm,tokenizer) --documents=$(D)/filter --base=$(MODELS)/$(BASE) $(if $(TOKENIZERS),--compare=$(call list,$(TOKENIZERS:%=$(MODELS)/%))) --out=$(@D)

$(call manifests,$(SWEEP:%=$(C)/vocab-sweep/%)): $(C)/vocab-sweep/%/manifest.json: $(K)/vocab-sweep-tokenizer $(D)/filter/manifest.json $(MODELS)/$(BASE)/manifest.json | $(READY)
	$(call run,train_spm,tokenizer) --vocab_size=$* --documents=$(D)/filter --base=$(MODELS)/$(BASE) --out=$(@D)

$(D)/vocab-sweep/manifest.json: $(K)/vocab-sweep $(call manifests,$(SWEEP:%=$(C)/vocab-sweep/%)) | $(READY)
	$(call run,vocab_sweep,vocab-sweep) --tokenizers=$(call list,$(SWEEP:%=$(C)/vocab-sweep/%)) --base=$(MODELS)/$(BASE) --out=$(@D)

$(C)/init/manifest.json: $(K)/init $(C)/tokenizer/manifest.json $(MODELS)/$(BASE)/manifest.json $(D)/filter/manifest.json | $(READY)
	$(call run,init_embeddings,init) --base=$(MODELS)/$(BASE) --tokenizer=$(C)/tokenizer --documents=$(D)/filter --out=$(@D)

$(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/init)): $(C)/init-bench/%/init/manifest.json: $(K)/init-bench-init $(C)/tokenizer/manifest.json $(MODELS)/$(BASE)/manifest.json $(D)/filter/manifest.json | $(READY)
	$(call run,init_embeddings,init) --method=$(*:-norms=) --match_norms=$(if $(filter %-norms,$*),true,false) --base=$(MODELS)/$(BASE) --tokenizer=$(C)/tokenizer --documents=$(D)/filter --out=$(@D)

# Without the KL term, whose reference would be another one for each method.
$(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/cpt)): $(C)/init-bench/%/cpt/manifest.json: $(K)/init-bench-cpt $(C)/init-bench/%/init/manifest.json $(D)/pack/manifest.json | $(READY)
	$(call train,cpt) --reference=none --max_steps=$(STEPS) --model=$(C)/init-bench/$*/init --pack=$(D)/pack --out=$(@D)

$(D)/init-bench/manifest.json: $(K)/init-bench $(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/cpt)) | $(READY)
	$(call run,init_bench,init-bench) --runs=$(call list,$(INIT_METHODS:%=$(C)/init-bench/%)) --base=$(MODELS)/$(BASE) --held_out=$(D)/pack/held_out/documents --out=$(@D)

$(D)/pack/manifest.json: $(K)/pack $(D)/filter/manifest.json $(C)/tokenizer/manifest.json | $(READY)
	$(call run,pack,pack) --documents=$(D)/filter --tokenizer=$(C)/tokenizer --out=$(@D)

$(C)/cpt/manifest.json: $(K)/cpt $(C)/init/manifest.json $(D)/pack/manifest.json | $(READY)
	$(call train,cpt) --model=$(C)/init --pack=$(D)/pack --out=$(@D)

$(C)/sft/manifest.json: $(K)/sft $(C)/cpt/manifest.json $(D)/pack/manifest.json $(call manifests,$(INSTRUCT:%=$(RAW)/%)) | $(READY)
	$(call train,sft) --model=$(C)/cpt --instructions=$(call list,$(INSTRUCT:%=$(RAW)/%)) --held_out=$(D)/pack/held_out --out=$(@D)

model-base := $(MODELS)/$(BASE)
model-init := $(C)/init
model-cpt := $(C)/cpt
model-sft := $(C)/sft
$(D)/eval/%/manifest.json: $(K)/eval $$(model-$$*)/manifest.json $(D)/pack/manifest.json | $(READY)
	$(call run,eval,eval) --model=$(model-$*) --held_out=$(D)/pack/held_out/documents --out=$(@D)

$(D)/report/manifest.json: $(K)/report $(C)/sft/manifest.json $(call manifests,$(CHECKPOINTS:%=$(D)/eval/%)) | $(READY)
	$(call run,report,report) --fetched=$(call list,$(addprefix $(RAW)/,$(SOURCES) $(INSTRUCT)) $(addprefix $(MODELS)/,$(BASE) $(ENCODER) $(TOKENIZERS))) --dedup=$(D)/dedup --filter=$(D)/filter $(if $(strip $(ANNOTATE)),--annotations=$(D)/annotations) --tokenizer=$(C)/tokenizer --init=$(C)/init --pack=$(D)/pack --cpt=$(C)/cpt --sft=$(C)/sft --evaluations=$(call list,$(CHECKPOINTS:%=$(D)/eval/%)) --out=$(@D)

# A key belongs to one rule: a key that a missing target looked at before makes make 4.3 remake the next one that has it.
# A key lists what a stage's settings and code hash to; it is looked at on every run and rewritten only if it changed,
# so neither `git checkout` nor a comment elsewhere trains a model again.
key = mkdir -p $(@D) && { printf '%s\n' $(1); cat $(2) | sha256sum; } > $@.new && if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
$(KEYS)/sources/%: FORCE
	+@$(call key,source,configs/sources/$*.yaml $(call code,fetch))
$(K)/%: FORCE
	+@$(call key,'$(facts-$*)',$(call code,$*) $(call conf,$*) $(languages-$*))
.PHONY: FORCE
FORCE:

##@ Comparisons
.PHONY: bench-dedup bench-filter bench-tokenizer init-bench mihash-bench vocab-sweep
bench-tokenizer: $(D)/filter/manifest.json $(call manifests,$(addprefix $(MODELS)/,$(BASE) $(TOKENIZERS))) ## tokens, time and memory of new tokenizers, beside peers
	$(PY) scripts/bench_tokenizer.py --documents=$(D)/filter --base=$(MODELS)/$(BASE) $(if $(TOKENIZERS),--compare=$(call list,$(TOKENIZERS:%=$(MODELS)/%))) $(if $(strip $(TEXT)),--text=$(strip $(TEXT)))
bench-dedup: $(call manifests,$(SOURCES:%=$(RAW)/%)) ## time, memory and recall of deduplication, beside peers in an environment of theirs
	@$(MAKE) -s PROFILE=test VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python scripts/bench_dedup.py --documents=$(RAW) $(if $(strip $(TEXT)),--text=$(strip $(TEXT)))
bench-filter: $(D)/filter/manifest.json $(D)/dedup/manifest.json ## documents/s of the trained filter, beside the transformers pipeline
	$(PY) scripts/bench_filter.py --model=$(D)/filter/model --documents=$(D)/dedup/documents
mihash-bench: $(call manifests,$(MIHASH_CORPUS:%=$(RAW)/%) $(MODELS)/e5-small) ## MIHash beside MinHash, random hyperplanes and cosines
	$(PY) scripts/mihash_bench.py --corpus=$(call list,$(MIHASH_CORPUS:%=$(RAW)/%)) --encoder=$(MODELS)/e5-small $(if $(strip $(VERSIONS)),--versions=$(strip $(VERSIONS))) $(if $(strip $(HEADLINES)),--headlines=$(strip $(HEADLINES)))
init-bench: $(D)/init-bench/manifest.json ## ways to initialise embeddings, before and after a short training
vocab-sweep: $(D)/vocab-sweep/manifest.json ## vocabularies of the sizes in SWEEP: tokens saved, parameters spent

##@ Everything else
.PHONY: help plan setup test test-peers lint clean
help: ## this page
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables (make VARIABLE=value ...)\n'
	@awk '/^[A-Z]+ \?= / {split($$0, part, /#+ */); split(part[1], name, / \?= */); printf "  %-15s %s (%s)\n", name[1], part[2], name[2] == "" ? "empty" : name[2]}' Makefile
	@printf '\nOne stage by hand: $(PY) scripts/cpt.py --help\n'
plan: ## what `make all` would run now, and nothing else
	@planned=$$($(MAKE) -n all) && { grep -oE '[^ ]*python[^ ]* .*scripts/.*' <<<"$$planned" || echo "nothing to do: everything is up to date"; }
setup: $(READY) ## the virtual environment from pinned requirements
test: $(READY_TO_TEST) ## the tests
	$(PY) -m pytest
test-peers: $(READY_TO_TEST) ## comparisons with mergekit and llama.cpp, in an environment of theirs
	@$(MAKE) -s PROFILE=test VENV=.venv-peers .venv-peers/.peers
	PEERS=.venv-peers $(PY) -m pytest tests/peers
lint: $(READY_TO_TEST) ## style of the code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
clean: ## remove the profile's outputs (not what was fetched)
	rm -rf $(D) $(C) $(K)

$(VENV)/.%: requirements/%.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: python3 is older than 3.11" >&2; exit 1; }
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV) || { rm -rf $(VENV); echo "error: python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 1; }
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

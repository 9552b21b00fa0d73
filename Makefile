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
TARGET ?= ru##     the language that is taught, from the profile if not given: a file of configs/languages/ (docs/NEW_LANGUAGE.md)
ANNOTATE ?= #     yes: train the filter on annotations of a language model (OPENAI_BASE_URL, _MODEL, _API_KEY), not on weak labels
TRANSLATE ?= #    those of INSTRUCT that the same language model translates first (translate.yaml)
MERGE ?= #        yes: instruction tuning starts from init and cpt merged (merge.yaml), not from cpt
EXPORT ?= sft##    the checkpoint that `make export` takes: init, cpt, merge, sft
MODEL ?= #        the checkpoint that `make chat` and `make serve` take; the profile's sft if not given
A ?= #            of `make compare`: what B is compared with: a checkpoint that `make eval` has scored (base, init, cpt, sft), or an evaluation's folder
B ?= #            of `make compare`: another
TO ?= #           of `make push`: an address (s3://bucket/folder) that gets the finished stages, each under its path here
PUSH ?= #         of `make push`: stages (cpt sft); all that are finished if not given
PORT ?= 8000##     that `make serve` listens on, of this machine only
GPUS ?= 0##        accelerators to train on (of each machine), from the profile if not given; 0 is the CPU
GPU ?= A100-80##   of `make estimate`: which ones (A100-40, A100-80, H100, H200, L40S, 4090)
ESTIMATE ?= #     of `make estimate`: more flags of scripts/estimate.py (--utilisation=, --translate=, --input_price=, --output_price=)
NODES ?= 1##       machines to train on; they share this folder, at the same path (README, "More GPUs, more machines")
HOSTFILE ?= #    of NODES: a machine a line, the first this one; the others are reached by ssh without a password
MASTER ?= #      of NODES without ssh: the first machine's name, `:port` if not 29500; the same command on all, with NODE=
NODE ?= 0##        of NODES without ssh: this machine's number, from 0

D := data/$(PROFILE)
C := checkpoints/$(PROFILE)
RAW := data/raw
MODELS := checkpoints/models
KEYS := data/.keys
K := $(KEYS)/$(PROFILE)
# Where each stage writes. A variant of the profile (`make VARIANT=name CHANGED="sft eval" CONF-sft=...`) has folders and keys of its own for
# the stages that it changes, and the profile's for the others.
own = $(if $(filter $(1),$(CHANGED)),variants/$(VARIANT)/)
$(foreach stage,dedup annotations filter pack translated instruct eval leaks report,$(eval at-$(stage) := $(D)/$(call own,$(stage))$(stage)))
$(foreach stage,tokenizer init cpt merge reward sft export,$(eval at-$(stage) := $(C)/$(call own,$(stage))$(stage)))
key-of = $(K)/$(call own,$(1))$(1)
CHECKPOINTS := base init cpt $(if $(strip $(MERGE)),merge) sft
PY := $(or $(strip $(PYTHON)),$(VENV)/bin/python)
ifeq ($(strip $(PYTHON)),)
  READY := $(VENV)/.base
  READY_TO_TEST := $(VENV)/.dev
endif

# What a profile needs of the machine is checked before anything else, the virtual environment included.
QUIET_GOALS := help plan estimate test test-languages test-peers lint hashes audit sbom clean chat serve compare push settings-%
ifneq ($(strip $(NEEDS)),)
ifneq ($(filter-out $(QUIET_GOALS),$(MAKECMDGOALS)),)
# Not in a dry run: MAKEFLAGS begins with the single-letter flags, if there are any.
ifeq ($(findstring n,$(filter-out --%,$(firstword $(MAKEFLAGS)))),)
  $(if $(shell python3 scripts/preflight.py --profile=$(PROFILE) $(NEEDS) >&2 || echo missing),$(error profile $(PROFILE) can't run here))
endif
endif
endif

translated := $(addprefix $(at-translated)/,$(filter $(TRANSLATE),$(INSTRUCT)))
instructions := $(foreach name,$(INSTRUCT),$(if $(filter $(name),$(TRANSLATE)),$(at-translated),$(RAW))/$(name))
reward := $(if $(strip $(PREFERENCES)),$(at-reward))

comma := ,
empty :=
list = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
conf = $(or $(CONF-$(1)),$(wildcard $(CONF)/$(1).yaml))
run = $(PY) scripts/$(1).py $(addprefix --config=,$(call conf,$(2)))
manifests = $(addsuffix /manifest.json,$(1))

# How training starts: a process alone, or torchrun's (scripts/launch.py), one for each GPU, on this machine or on each of several.
several := $(filter-out 0 1,$(GPUS))
nodes := $(filter-out 1,$(NODES))
further := $(filter-out 0,$(NODE))
by-hand := $(if $(nodes),$(if $(strip $(HOSTFILE)),,yes))
$(if $(by-hand),$(if $(strip $(MASTER)),,$(error NODES=$(NODES): say HOSTFILE= (machines reached by ssh) or MASTER= (the first machine; the same command on the others, with NODE=1 and so on))))
# Further machines wait as long as the first one may take to make what training reads: an hour.
meeting = --nnodes=$(NODES) --rdzv_conf=timeout=3600 $(if $(by-hand),--node_rank=$(NODE) --rdzv_endpoint=$(strip $(MASTER))$(if $(findstring :,$(MASTER)),,:29500),--hostfile=$(strip $(HOSTFILE)))
launcher = $(if $(several)$(nodes),scripts/launch.py --nproc_per_node=$(or $(several),1) $(if $(nodes),$(meeting),--standalone))
# All machines have to train the same stage. A further one does nothing else: only the first one's make looks at what training reads.
$(if $(further),$(if $(filter cpt sft,$(MAKECMDGOALS)),$(if $(word 2,$(MAKECMDGOALS)),$(error NODE=$(NODE): one stage a command, cpt or sft)),$(error NODE=$(NODE): say cpt or sft, what the first machine trains)))
asked = $(if $(by-hand),$(if $(filter $(1),$(MAKECMDGOALS)),,$(error $(1) has to be trained first: `make $(1)` on all $(NODES) machines)))
train = $(call asked,$(1))$(PY) $(launcher) scripts/$(1).py $(addprefix --config=,$(call conf,$(1)))
# Where a job system sets them they count machines; in the scripts they count processes, and torchrun sets them.
unexport RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE PET_MASTER_ADDR PET_MASTER_PORT
flags-cpt = --model=$(at-init) --base=$(MODELS)/$(BASE) --pack=$(at-pack) --out=$(at-cpt)
flags-sft = --model=$(pretrained) --instructions=$(at-instruct) --held_out=$(at-pack)/held_out --out=$(at-sft)
# A signal lets the processes finish their step and save: torchrun kills them after this many seconds (30, if its torch is older than that).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT ?= 900

# The code whose change makes a stage's output another one (tests/test_makefile.py holds the lists to the imports).
lib-fetch := conversion documents extraction instructions languages models preferences roff sources spm vocabulary
lib-dedup := distributed documents duplicates kernels learned mihash minhash models paragraphs planning rebuilding
lib-annotate := annotation api corruption documents languages paragraphs sampling
lib-filter := corruption distributed documents duplicates encoder fine_tuning judging kernels languages learning masking minhash paragraphs quality rules scoring sieve targets
lib-tokenizer := bpe documents fertility languages models spm vocabulary
lib-init := documents embeddings models vocabulary
lib-pack := documents models packing losses
lib-training := alignment attention budget documents guard losses machine metrics models objective packing prefixes processes reference schedules training vocabulary
lib-cpt := $(lib-training) audit mixing
lib-merge := embeddings merging models propagation vocabulary
lib-translate := api documents instructions languages phrases placeholders records translation
lib-reward := attention corruption documents encoder fine_tuning instructions languages machine pairwise preferences rewards scoring
lib-instruct := attention contamination corruption curation dialogues documents duplicates encoder fine_tuning harness instructions items kernels languages losses machine metrics minhash paragraphs preferences prefixes rewards scoring
lib-sft := $(lib-training) dialogues
lib-eval := alignment attention dialogues divergence documents fertility flaws generation harness items languages losses metrics models packing paired paragraphs prefixes reference replies rules speed summary unseen vocabulary
lib-report := cards documents flaws languages lineage page paired paragraphs plots receipts rules scores
lib-export := documents generation gguf_model gguf_vocabulary hub models spm vocabulary
lib-leaks := contamination documents harness items languages metrics paired prefixes
script-tokenizer := train_spm
script-init := init_embeddings
templates-report := report.html.j2 answers.html.j2 style.css model_card.md.j2
code = scripts/$(or $(script-$(1)),$(1)).py $(lib-$(1):%=scripts/lib/%.py) $(templates-$(1):%=scripts/lib/%)

# What else a stage reads from the repository.
# The languages' files: of the target, of English and of what the sources say they are in, so that a new language retrains no other.
spoken := $(sort $(TARGET) en $(shell sed -n 's/^language: *//p' $(SOURCES:%=configs/sources/%.yaml)))
reads-languages := $(wildcard $(spoken:%=configs/languages/%.yaml))
reads-filter := $(reads-languages) $(wildcard $(spoken:%=configs/languages/%.blocked.txt))
reads-tokenizer := $(reads-languages)
reads-translate := $(reads-languages) $(wildcard $(spoken:%=configs/languages/translate/%.yaml))
# The tasks, and the project's own items for them.
reads-instruct := $(wildcard configs/eval/*/*.yaml data/builtin/demo/*)
reads-eval := $(reads-instruct) configs/chat.jinja $(reads-languages) $(wildcard $(PROMPTS))

TEXTS := $(SOURCES) $(INSTRUCT) $(PREFERENCES)
FOLDERS := $(BASE) $(sort $(ENCODER) $(REWARD_ENCODER)) $(TOKENIZERS)
fetched := $(TEXTS:%=$(RAW)/%) $(FOLDERS:%=$(MODELS)/%)
# What the Makefile itself decides about a stage.
facts-dedup := $(SOURCES)
facts-filter := $(ENCODER) $(ANNOTATE)
facts-tokenizer := $(BASE) $(TOKENIZERS) $(TARGET)
facts-init := $(BASE)
facts-translate := $(TARGET)
facts-reward := $(PREFERENCES) $(REWARD_ENCODER) $(TARGET)
facts-instruct := $(strip $(INSTRUCT) $(TRANSLATE) $(PREFERENCES))
facts-sft := $(strip $(MERGE))
facts-eval := $(BASE) $(TARGET) $(PROMPTS)
facts-report := $(TEXTS) $(FOLDERS) $(ANNOTATE) $(TRANSLATE) $(MERGE)

trained = $(if $(further),taking-part-in-$(1),$(at-$(1))/manifest.json)

##@ The pipeline
.PHONY: all demo fetch dedup annotate filter tokenizer init pack cpt merge translate reward instruct sft eval leaks report export
all: report ## everything, up to the report
	@echo "the report: $(at-report)/report.html; model cards: $(at-report)/cards"
demo: ## the whole pipeline on the embedded default, from nothing
	@$(MAKE) PROFILE=demo all
fetch: $(call manifests,$(fetched)) ## corpora, instructions, models, tokenizers
dedup: $(at-dedup)/manifest.json ## corpus without duplicate paragraphs
annotate: $(at-annotations)/manifest.json ## sampled documents scored by a language model (if ANNOTATE, part of filter)
filter: $(at-filter)/manifest.json ## corpus without poor documents; the trained filter
tokenizer: $(at-tokenizer)/manifest.json ## the new tokenizer
init: $(at-init)/manifest.json ## the base model with the new vocabulary
pack: $(at-pack)/manifest.json ## training sequences, held-out documents
cpt: $(call trained,cpt) ## continued pre-training, CE + KL
merge: $(at-merge)/manifest.json ## init and cpt interpolated, tensor by tensor (if MERGE, where sft starts)
translate: $(call manifests,$(translated)) ## instructions of TRANSLATE in the target language (part of instruct)
reward: $(at-reward)/manifest.json ## the reward model (if there are PREFERENCES, part of instruct)
instruct: $(at-instruct)/manifest.json ## the instruction set: checked, deduplicated, filtered by the reward model, mixed
sft: $(call trained,sft) ## instruction tuning
eval: $(call manifests,$(CHECKPOINTS:%=$(at-eval)/%)) ## scores of base, init, cpt and sft
leaks: $(at-leaks)/manifest.json ## evaluation items that occur in the training text
report: $(at-report)/manifest.json ## one HTML page about it all, and a model card for each final checkpoint
export: $(at-export)/$(EXPORT)/manifest.json ## EXPORT as a folder for the Hub and a file for llama.cpp (with the report's model card, if there is one)

$(RAW)/%/manifest.json: $(KEYS)/sources/% | $(READY)
	$(PY) scripts/fetch.py --config=configs/sources/$*.yaml --cache=$(RAW)/.cache --out=$(@D)

$(MODELS)/%/manifest.json: $(KEYS)/sources/% | $(READY)
	$(PY) scripts/fetch.py --config=configs/sources/$*.yaml --cache=$(RAW)/.cache --out=$(@D)

$(at-dedup)/manifest.json: $(call key-of,dedup) $(call manifests,$(SOURCES:%=$(RAW)/%)) | $(READY)
	$(call run,dedup,dedup) --corpus=$(call list,$(SOURCES:%=$(RAW)/%/documents)) --out=$(@D)

$(at-annotations)/manifest.json: $(call key-of,annotate) $(at-dedup)/manifest.json | $(READY)
	$(call run,annotate,annotate) --documents=$(at-dedup)/documents --out=$(@D)

$(at-filter)/manifest.json: $(call key-of,filter) $(at-dedup)/manifest.json $(MODELS)/$(ENCODER)/manifest.json $(if $(strip $(ANNOTATE)),$(at-annotations)/manifest.json) | $(READY)
	$(call run,filter,filter) --documents=$(at-dedup)/documents --encoder=$(MODELS)/$(ENCODER) $(if $(strip $(ANNOTATE)),--annotations=$(at-annotations)/documents) --out=$(@D)

$(at-tokenizer)/manifest.json: $(call key-of,tokenizer) $(at-filter)/manifest.json $(call manifests,$(addprefix $(MODELS)/,$(BASE) $(TOKENIZERS))) | $(READY)
	$(call run,train_spm,tokenizer) --language=$(TARGET) --documents=$(at-filter) --base=$(MODELS)/$(BASE) $(if $(TOKENIZERS),--compare=$(call list,$(TOKENIZERS:%=$(MODELS)/%))) --out=$(@D)

$(at-init)/manifest.json: $(call key-of,init) $(at-tokenizer)/manifest.json $(MODELS)/$(BASE)/manifest.json $(at-filter)/manifest.json | $(READY)
	$(call run,init_embeddings,init) --base=$(MODELS)/$(BASE) --tokenizer=$(at-tokenizer) --documents=$(at-filter) --out=$(@D)

$(at-pack)/manifest.json: $(call key-of,pack) $(at-filter)/manifest.json $(at-tokenizer)/manifest.json | $(READY)
	$(call run,pack,pack) --documents=$(at-filter) --tokenizer=$(at-tokenizer) --out=$(@D)

$(at-cpt)/manifest.json: $(call key-of,cpt) $(at-init)/manifest.json $(MODELS)/$(BASE)/manifest.json $(at-pack)/manifest.json | $(READY)
	$(call train,cpt) $(flags-cpt)

$(at-merge)/manifest.json: $(call key-of,merge) $(at-init)/manifest.json $(at-cpt)/manifest.json | $(READY)
	$(call run,merge,merge) --model=$(at-init) --other=$(at-cpt) --out=$(@D)

$(at-translated)/%/manifest.json: $(call key-of,translate) $(RAW)/%/manifest.json | $(READY)
	$(call run,translate,translate) --language=$(TARGET) --items=$(RAW)/$* --out=$(@D)

$(at-reward)/manifest.json: $(call key-of,reward) $(call manifests,$(PREFERENCES:%=$(RAW)/%) $(MODELS)/$(REWARD_ENCODER)) | $(READY)
	$(if $(strip $(PREFERENCES)),,$(error profile $(PROFILE) has no PREFERENCES to learn a reward from))$(call run,reward,reward) --spoken=$(TARGET),en --preferences=$(call list,$(PREFERENCES:%=$(RAW)/%)) --encoder=$(MODELS)/$(REWARD_ENCODER) --out=$(@D)

$(at-instruct)/manifest.json: $(call key-of,instruct) $(call manifests,$(instructions) $(reward)) | $(READY)
	$(call run,instruct,instruct) --instructions=$(call list,$(instructions)) $(addprefix --reward=,$(reward)) --out=$(@D)

pretrained := $(if $(strip $(MERGE)),$(at-merge),$(at-cpt))
$(at-sft)/manifest.json: $(call key-of,sft) $(pretrained)/manifest.json $(at-pack)/manifest.json $(at-instruct)/manifest.json | $(READY)
	$(call train,sft) $(flags-sft)

model-base := $(MODELS)/$(BASE)
model-init := $(at-init)
model-cpt := $(at-cpt)
model-merge := $(at-merge)
model-sft := $(at-sft)
# A variant is scored on the profile's text and dialogues, whatever it has of its own.
$(at-eval)/%/manifest.json: $(call key-of,eval) $$(model-$$*)/manifest.json $(model-base)/manifest.json $(D)/pack/manifest.json $(D)/instruct/manifest.json | $(READY)
	$(call run,eval,eval) --language=$(TARGET) $(addprefix --prompts=,$(PROMPTS)) --model=$(model-$*) --base=$(model-base) --held_out=$(D)/pack/held_out/documents --instructions=$(D)/instruct/held_out.jsonl --out=$(@D)

# Once, whatever is scored: all checkpoints have the items of the base.
$(at-leaks)/manifest.json: $(call key-of,leaks) $(at-eval)/base/manifest.json $(at-filter)/manifest.json | $(READY)
	$(call run,leaks,leaks) --evaluation=$(at-eval)/base --training=$(at-filter)/documents --out=$(@D)

# With what `make ablate-...` has left.
ablations := $(patsubst %/manifest.json,%,$(wildcard $(D)/ablations/*/manifest.json))
$(at-report)/manifest.json: $(call key-of,report) $(at-sft)/manifest.json $(call manifests,$(CHECKPOINTS:%=$(at-eval)/%) $(ablations)) $(at-leaks)/manifest.json | $(READY)
	$(call run,report,report) --fetched=$(call list,$(fetched)) --dedup=$(at-dedup) --filter=$(at-filter) $(if $(strip $(ANNOTATE)),--annotations=$(at-annotations)) --tokenizer=$(at-tokenizer) --init=$(at-init) --pack=$(at-pack) --cpt=$(at-cpt) $(if $(strip $(MERGE)),--merge=$(at-merge)) $(if $(translated),--translated=$(call list,$(translated))) $(addprefix --reward=,$(reward)) --instruct=$(at-instruct) --sft=$(at-sft) --evaluations=$(call list,$(CHECKPOINTS:%=$(at-eval)/%)) --leaks=$(at-leaks) $(if $(ablations),--ablations=$(call list,$(ablations))) --out=$(@D)

$(if $(filter init cpt merge sft,$(EXPORT)),,$(error EXPORT=$(EXPORT): say which checkpoint: init, cpt, merge or sft))
# With the card that the report stage has left; looked for when the rule's turn comes, after a report made by the same command.
card = $(wildcard $(at-report)/cards/$(1)/README.md)
$(at-export)/%/manifest.json: $(call key-of,export) $$(model-$$*)/manifest.json $$(call card,$$*) | $(READY)
	$(call run,export,export) --model=$(model-$*) --name=$(PROFILE)-$* $(addprefix --card=,$(call card,$*)) --out=$(@D)

# A key belongs to one rule: a key that a missing target looked at before makes make 4.3 remake the next one that has it.
# A key lists what a stage's settings and code hash to; it is looked at on every run and rewritten only if it changed,
# so neither `git checkout` nor a comment elsewhere trains a model again.
key = mkdir -p $(@D) && { printf '%s\n' $(1); cat $(2) | sha256sum; } > $@.new && if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
$(KEYS)/sources/%: FORCE
	+@$(call key,source,configs/sources/$*.yaml $(call code,fetch))
$(K)/%: FORCE
	+@$(call key,'$(facts-$(*F))',$(call code,$(*F)) $(call conf,$(*F)) $(reads-$(*F)))
.PHONY: FORCE
FORCE:

# On a further machine nothing is a prerequisite: the first one has made all that training reads.
.PHONY: taking-part-in-cpt taking-part-in-sft
taking-part-in-cpt taking-part-in-sft: taking-part-in-%:
	$(call train,$*) $(flags-$*)

##@ Using a checkpoint
.PHONY: chat serve compare
# What is there already; nothing is trained for it.
model := $(or $(strip $(MODEL)),$(at-sft))
chat: | $(READY) ## talk to MODEL in the terminal
	@$(PY) scripts/chat.py --model=$(model)
evaluation = $(if $(findstring /,$(1)),$(1),$(at-eval)/$(strip $(1)))
compare: | $(READY) ## evaluations A and B side by side: paired differences, flaws, answers
	$(if $(and $(strip $(A)),$(strip $(B))),,$(error say A= and B=: checkpoints that `make eval` has scored, or folders of evaluations))@$(PY) scripts/compare.py --language=$(TARGET) --first=$(call evaluation,$(A)) --second=$(call evaluation,$(B)) --out=$(D)/compare
serve: | $(READY) ## MODEL behind an OpenAI-compatible server (transformers serve; for many users `vllm serve` on the same folder)
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_UPDATE_CHECK=1 $(PY) -m transformers.cli.transformers serve $(model) --port $(PORT)

##@ Beyond this machine
.PHONY: push
stages := $(patsubst at-%,%,$(filter at-%,$(.VARIABLES)))
finished = $(patsubst %/manifest.json,%,$(wildcard $(foreach stage,$(or $(strip $(PUSH)),$(sort $(stages))),$(at-$(stage))/manifest.json $(at-$(stage))/*/manifest.json)))
# Nothing is made for it. Copies are no prerequisites either: Make looks at this machine only.
push: | $(READY) ## finished stages to TO in object storage, each manifest last; a second time sends what is missing
	$(if $(strip $(TO)),,$(error say TO=, an address: make push TO=s3://bucket/folder))$(if $(finished),,$(error nothing of PROFILE=$(PROFILE) is finished: $(or $(strip $(PUSH)),make all)))@for folder in $(sort $(finished)); do $(PY) scripts/push.py --folder=$$folder --to=$(TO)/$$folder; done

include configs/comparisons.mk

##@ Everything else
.PHONY: help plan estimate setup test test-languages test-peers lint hashes audit sbom clean
help: ## this page
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile configs/comparisons.mk
	@printf '\nVariables (make VARIABLE=value ...)\n'
	@awk '/^[A-Z]+ \?= / {split($$0, part, /#+ */); split(part[1], name, / \?= */); printf "  %-15s %s (%s)\n", name[1], part[2], name[2] == "" ? "empty" : name[2]}' Makefile configs/comparisons.mk
	@printf '\nOne stage by hand: $(PY) scripts/cpt.py --help\n'
plan: ## what `make all` would run now, and nothing else
	@planned=$$($(MAKE) -n all) && { grep -oE '[^ ]*python[^ ]* .*scripts/.*' <<<"$$planned" || echo "nothing to do: everything is up to date"; }
# What is there already is counted, the rest assumed.
there = $(if $(wildcard $(2)/manifest.json),--$(1)=$(2))
estimate: | $(READY) ## before anything is rented: tokens, FLOPs, memory by part, hours, disk and API costs of PROFILE on GPUS
	@$(PY) scripts/estimate.py $(addprefix --config=,$(call conf,estimate)) --base=configs/sources/$(BASE).yaml --settings=$(call list,$(foreach stage,tokenizer init pack cpt sft annotate translate,$(call conf,$(stage)))) --gpus=$$(($(GPUS) * $(NODES))) --gpu=$(GPU) $(if $(strip $(ANNOTATE)),--annotate=true) $(call there,model,$(MODELS)/$(BASE)) $(foreach stage,tokenizer pack instruct,$(call there,$(stage),$(at-$(stage)))) $(ESTIMATE) --out=$(D)/estimate
setup: $(READY) ## the virtual environment from pinned requirements
test: $(READY_TO_TEST) ## the tests
	$(PY) -m pytest
test-languages: $(READY) ## the whole test profile in other languages (configs/test-<code>)
	@for profile in $(patsubst configs/%/profile.mk,%,$(wildcard configs/test-*/profile.mk)); do $(MAKE) all PROFILE=$$profile; done
test-peers: $(READY_TO_TEST) ## comparisons with mergekit and llama.cpp, in an environment of theirs
	@$(MAKE) -s PROFILE=test VENV=.venv-peers .venv-peers/.peers
	PEERS=.venv-peers $(PY) -m pytest tests/peers
lint: $(READY_TO_TEST) ## style of the code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
pinned = grep -hoE '^[A-Za-z0-9_.-]+==[^ ;]+' requirements/{audit,base,bench,deepspeed,dev,distributed,gpu,peers,storage}.txt | grep -v '^torch==' | sort -u
# uv asks PyPI unless the environment says otherwise: a mirror may lack files that another machine installs.
hashes: ## requirements/hashes.txt, after a pin has changed (wants uv: pipx install uv)
	{ echo '# SHA-256 of every file of the pinned packages but torch: `make hashes` (requirements/hashed.py says what for).'; \
	$(pinned) | uv pip compile --quiet --no-config --no-deps --generate-hashes --no-header --no-annotate --python-version=3.11 -; } > requirements/hashes.txt.new
	mv requirements/hashes.txt.new requirements/hashes.txt
# By OSV, which fails where it can't be asked: of packages that PyPI's own service does not tell about, pip-audit says that they are sound.
audit: ## known vulnerabilities of the pinned packages (asks osv.dev)
	@$(MAKE) -s PROFILE=test VENV=.venv-audit .venv-audit/.audit
	for file in base gpu deepspeed distributed storage; do .venv-audit/bin/pip-audit --strict --vulnerability-service=osv $(OSV:%=--osv-url=%) --disable-pip --no-deps --progress-spinner=off --requirement=requirements/$$file.txt; done
sbom: | $(READY) ## data/sbom.json: all that is installed, with versions and licences (CycloneDX)
	@$(MAKE) -s PROFILE=test VENV=.venv-audit .venv-audit/.audit
	.venv-audit/bin/cyclonedx-py environment --output-reproducible --output-file=data/sbom.json $(PY)
clean: ## remove the profile's outputs (not what was fetched)
	rm -rf $(D) $(C) $(K)

$(VENV)/.%: requirements/%.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: python3 is older than 3.11" >&2; exit 1; }
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV) || { rm -rf $(VENV); echo "error: python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 1; }
	$(VENV)/bin/python requirements/hashed.py $< > $(VENV)/hashed.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/hashed.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

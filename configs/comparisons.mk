# Comparisons and experiments: what the pipeline is measured against, and what was tried on the way to its defaults (docs/LOG.md).
# Read by the Makefile; keys, lists and idioms are explained there.

STEPS ?= 40##        steps of training for each run of `make init-bench` and `make kl-bench`
TEXT ?= #         more text in the target language for `make bench-tokenizer` and `bench-dedup`: files, with commas between
VERSIONS ?= #     for `make mihash-bench`: documents with a `group`, those of one are revisions of each other (JSON Lines)
TASKS ?= #        of `make bench-eval`: task files, with commas between; the project's own items if not given
ITEMS ?= #        for `make bench-eval`: local files in the place of the tasks' data sets, as eval.py's --data takes them
HEADLINES ?= #    for `make mihash-bench`: labelled pairs of texts (JSON Lines)

MIHASH_CORPUS := manpages-dev-en manpages-ru libreoffice-help-en libreoffice-help-ru
# Of `make init-bench`: methods of init_embeddings.py, with -norms for --match_norms; the first is what others are compared with.
INIT_METHODS := mean mean-norms mean_weighted first_last focus omp random

# Of `make kl-bench`: <mode of train_spm.py>-<reference of cpt.py>; <mode>-none is what the others of a mode are compared with.
KL_RUNS ?= extend-none extend-init extend-first_piece extend-chunk replace-none replace-init replace-first_piece replace-chunk
# More words of a run's name stand for the flags KL_FLAGS-<run> of the profile, which cpt.py gets in place of KL_FLAGS.
KL_FLAGS ?=
# English prose that nothing is trained on.
GENERAL := lee-news-en

lib-init-bench := comparison documents metrics models paired plots prefixes
lib-init-bench-init := $(lib-init)
lib-init-bench-cpt := $(lib-cpt)
lib-vocab-sweep-tokenizer := $(lib-tokenizer)
lib-vocab-sweep := documents flaws languages models paired paragraphs plots rules scores
lib-kl-bench := attention comparison documents fertility forgetting harness items losses machine metrics models packing paired plots prefixes vocabulary
lib-kl-bench-tokenizer := $(lib-tokenizer)
lib-kl-bench-init := $(lib-init)
lib-kl-bench-pack := $(lib-pack)
lib-kl-bench-cpt := $(lib-cpt)
script-kl-bench := kl_bench
script-kl-bench-tokenizer := train_spm
script-kl-bench-init := init_embeddings
script-kl-bench-pack := pack
script-kl-bench-cpt := cpt
script-init-bench := init_bench
script-init-bench-init := init_embeddings
script-init-bench-cpt := cpt
script-vocab-sweep-tokenizer := train_spm
script-vocab-sweep := vocab_sweep
reads-kl-bench := configs/eval/builtin/minimal_pairs.yaml data/builtin/demo/minimal_pairs.jsonl
reads-kl-bench-tokenizer := $(reads-tokenizer)
reads-vocab-sweep := $(reads-tokenizer)
reads-vocab-sweep-tokenizer := $(reads-tokenizer)
CONF-init-bench-init := $(call conf,init)
CONF-init-bench-cpt := $(call conf,cpt)
CONF-vocab-sweep-tokenizer := $(call conf,tokenizer)
facts-init-bench := $(BASE) $(TARGET) $(INIT_METHODS)
facts-init-bench-init := $(BASE)
facts-init-bench-cpt := $(STEPS)
facts-vocab-sweep-tokenizer := $(BASE) $(TARGET)
facts-vocab-sweep := $(BASE) $(SWEEP)
$(foreach stage,tokenizer init pack cpt,$(eval CONF-kl-bench-$(stage) := $(call conf,$(stage))))
facts-kl-bench := $(BASE) $(TARGET) $(KL_RUNS) $(GENERAL)
facts-kl-bench-tokenizer := $(BASE) $(TARGET) $(foreach mode,extend replace,$(mode) $(KL_VOCABULARY-$(mode)))
facts-kl-bench-init := $(BASE)
facts-kl-bench-cpt := $(BASE) $(STEPS) $(KL_FLAGS) $(foreach run,$(KL_RUNS),$(KL_FLAGS-$(run)))

$(call manifests,$(SWEEP:%=$(C)/vocab-sweep/%)): $(C)/vocab-sweep/%/manifest.json: $(K)/vocab-sweep-tokenizer $(D)/filter/manifest.json $(MODELS)/$(BASE)/manifest.json | $(READY)
	$(call run,train_spm,tokenizer) --language=$(TARGET) --vocab_size=$* --documents=$(D)/filter --base=$(MODELS)/$(BASE) --out=$(@D)

$(D)/vocab-sweep/manifest.json: $(K)/vocab-sweep $(call manifests,$(SWEEP:%=$(C)/vocab-sweep/%)) | $(READY)
	$(call run,vocab_sweep,vocab-sweep) --tokenizers=$(call list,$(SWEEP:%=$(C)/vocab-sweep/%)) --base=$(MODELS)/$(BASE) --out=$(@D)

$(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/init)): $(C)/init-bench/%/init/manifest.json: $(K)/init-bench-init $(C)/tokenizer/manifest.json $(MODELS)/$(BASE)/manifest.json $(D)/filter/manifest.json | $(READY)
	$(call run,init_embeddings,init) --method=$(*:-norms=) --match_norms=$(if $(filter %-norms,$*),true,false) --base=$(MODELS)/$(BASE) --tokenizer=$(C)/tokenizer --documents=$(D)/filter --out=$(@D)

# Without the KL term, whose reference would be another one for each method.
$(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/cpt)): $(C)/init-bench/%/cpt/manifest.json: $(K)/init-bench-cpt $(C)/init-bench/%/init/manifest.json $(D)/pack/manifest.json | $(READY)
	$(call train,cpt) --reference=none --max_steps=$(STEPS) --model=$(C)/init-bench/$*/init --pack=$(D)/pack --out=$(@D)

$(D)/init-bench/manifest.json: $(K)/init-bench $(call manifests,$(INIT_METHODS:%=$(C)/init-bench/%/cpt)) | $(READY)
	$(call run,init_bench,init-bench) --language=$(TARGET) --runs=$(call list,$(INIT_METHODS:%=$(C)/init-bench/%)) --base=$(MODELS)/$(BASE) --held_out=$(D)/pack/held_out/documents --out=$(@D)

kl-mode = $(firstword $(subst -, ,$(1)))
kl-modes := $(sort $(foreach run,$(KL_RUNS),$(call kl-mode,$(run))))
$(call manifests,$(kl-modes:%=$(C)/kl-bench/%/tokenizer)): $(C)/kl-bench/%/tokenizer/manifest.json: $(K)/kl-bench-tokenizer $(D)/filter/manifest.json $(MODELS)/$(BASE)/manifest.json | $(READY)
	$(call run,train_spm,tokenizer) --language=$(TARGET) --mode=$* $(addprefix --vocab_size=,$(KL_VOCABULARY-$*)) --documents=$(D)/filter --base=$(MODELS)/$(BASE) --out=$(@D)

$(call manifests,$(kl-modes:%=$(C)/kl-bench/%/init)): $(C)/kl-bench/%/init/manifest.json: $(K)/kl-bench-init $(C)/kl-bench/%/tokenizer/manifest.json $(MODELS)/$(BASE)/manifest.json $(D)/filter/manifest.json | $(READY)
	$(call run,init_embeddings,init) --base=$(MODELS)/$(BASE) --tokenizer=$(C)/kl-bench/$*/tokenizer --documents=$(D)/filter --out=$(@D)

$(call manifests,$(kl-modes:%=$(D)/kl-bench/%/pack)): $(D)/kl-bench/%/pack/manifest.json: $(K)/kl-bench-pack $(D)/filter/manifest.json $(C)/kl-bench/%/tokenizer/manifest.json | $(READY)
	$(call run,pack,pack) --documents=$(D)/filter --tokenizer=$(C)/kl-bench/$*/tokenizer --out=$(@D)

# By steps, not epochs: an epoch is another number of tokens in each mode.
$(call manifests,$(KL_RUNS:%=$(C)/kl-bench/%)): $(C)/kl-bench/%/manifest.json: $(K)/kl-bench-cpt $(C)/kl-bench/$$(call kl-mode,$$*)/init/manifest.json $(D)/kl-bench/$$(call kl-mode,$$*)/pack/manifest.json $(MODELS)/$(BASE)/manifest.json | $(READY)
	$(call train,cpt) --reference=$(word 2,$(subst -, ,$*)) --max_steps=$(STEPS) $(or $(KL_FLAGS-$*),$(KL_FLAGS)) --model=$(C)/kl-bench/$(call kl-mode,$*)/init --base=$(MODELS)/$(BASE) --pack=$(D)/kl-bench/$(call kl-mode,$*)/pack --out=$(@D)

$(D)/kl-bench/scores/manifest.json: $(K)/kl-bench $(call manifests,$(KL_RUNS:%=$(C)/kl-bench/%) $(RAW)/$(GENERAL)) | $(READY)
	$(call run,kl_bench,kl-bench) --language=$(TARGET) --runs=$(call list,$(KL_RUNS:%=$(C)/kl-bench/%)) --base=$(MODELS)/$(BASE) --held_out=$(D)/kl-bench/$(firstword $(kl-modes))/pack/held_out/documents --general=$(RAW)/$(GENERAL)/documents --tasks=configs/eval/builtin/minimal_pairs.yaml --out=$(@D)

##@ Comparisons
.PHONY: ablations bench-cpt bench-sft bench-dedup bench-filter bench-tokenizer init-bench kl-bench mihash-bench vocab-sweep bench-eval
bench-tokenizer: $(D)/filter/manifest.json $(call manifests,$(addprefix $(MODELS)/,$(BASE) $(TOKENIZERS))) ## tokens, time and memory of new tokenizers, beside peers
	$(PY) scripts/bench_tokenizer.py --language=$(TARGET) --documents=$(D)/filter --base=$(MODELS)/$(BASE) $(if $(TOKENIZERS),--compare=$(call list,$(TOKENIZERS:%=$(MODELS)/%))) $(if $(strip $(TEXT)),--text=$(strip $(TEXT)))
bench-dedup: $(call manifests,$(SOURCES:%=$(RAW)/%)) ## time, memory and recall of deduplication, beside peers in an environment of theirs
	@$(MAKE) -s PROFILE=test VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python scripts/bench_dedup.py --language=$(TARGET) --documents=$(RAW) $(if $(strip $(TEXT)),--text=$(strip $(TEXT)))
bench-filter: $(D)/filter/manifest.json $(D)/dedup/manifest.json ## documents/s of the trained filter, beside the transformers pipeline
	$(PY) scripts/bench_filter.py --model=$(D)/filter/model --documents=$(D)/dedup/documents
bench-cpt: $(C)/init/manifest.json $(D)/filter/manifest.json ## tokens/s of cpt beside a plain Trainer; time and memory of the chunked head
	$(PY) scripts/bench_cpt.py --language=$(TARGET) --model=$(C)/init --documents=$(D)/filter/documents
bench-sft: $(MODELS)/$(BASE)/manifest.json $(call manifests,$(INSTRUCT:%=$(RAW)/%)) ## tokens/s of sft beside TRL, in an environment of its own
	@$(MAKE) -s PROFILE=test VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python scripts/bench_sft.py --model=$(MODELS)/$(BASE) --instructions=$(call list,$(INSTRUCT:%=$(RAW)/%))
bench-eval: $(MODELS)/$(BASE)/manifest.json ## requests/s of eval's scoring beside the harness's own model, on the harness's own tasks where it has them
	$(PY) scripts/bench_eval.py --model=$(MODELS)/$(BASE) --tasks=$(or $(strip $(TASKS)),$(call list,$(wildcard configs/eval/builtin/*.yaml))) $(if $(strip $(ITEMS)),--data='$(strip $(ITEMS))')
mihash-bench: $(call manifests,$(MIHASH_CORPUS:%=$(RAW)/%) $(MODELS)/e5-small) ## MIHash beside MinHash, random hyperplanes and cosines
	$(PY) scripts/mihash_bench.py --corpus=$(call list,$(MIHASH_CORPUS:%=$(RAW)/%)) --encoder=$(MODELS)/e5-small $(if $(strip $(VERSIONS)),--versions=$(strip $(VERSIONS))) $(if $(strip $(HEADLINES)),--headlines=$(strip $(HEADLINES)))
init-bench: $(D)/init-bench/manifest.json ## ways to initialise embeddings, before and after a short training
# Each variant is a make of its own, which finds out what it can share; a grid is `make ablate-<its file's name>`.
ablate-%: $(CONF)/ablations/%.yaml | $(READY)
	$(PY) scripts/ablate.py --language=$(TARGET) --grid=$< --profile=$(PROFILE) --out=$(D)/ablations/$*
settings-%:
	@echo $(call conf,$*)
ablations: $(patsubst $(CONF)/ablations/%.yaml,ablate-%,$(wildcard $(CONF)/ablations/*.yaml)) ## all grids of the profile
ablate-vocab: ## vocabularies: sizes and modes (the paper's Table 7), trained for equally many tokens and scored
ablate-filter: ## with the corpus filter, with its rules only, without (Table 8)
ablate-kl: ## references of the KL term (Table 9)
ablate-sft: ## variants of the instructions and of tuning on them (Table 10)
kl-bench: $(D)/kl-bench/scores/manifest.json ## references of the KL term in both modes of the vocabulary: what was learned and what was forgotten
vocab-sweep: $(D)/vocab-sweep/manifest.json ## vocabularies of the sizes in SWEEP: tokens saved, parameters spent

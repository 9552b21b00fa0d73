# The demo's model and text, trained for an hour instead of minutes; what the demo's defaults were chosen by (`make kl-bench PROFILE=smollm2`).
include configs/demo/profile.mk
$(foreach stage,dedup annotate filter tokenizer init pack merge reward instruct sft eval report estimate,$(eval CONF-$(stage) := configs/demo/$(stage).yaml))
# The demo's vocabulary; one of its own beside it, for which there is no more text than this.
KL_VOCABULARY-extend := 98304
KL_VOCABULARY-replace := 32000
KL_RUNS := extend-none extend-init extend-first_piece extend-chunk extend-first_piece-replay replace-none replace-init replace-first_piece replace-chunk
# Every row, at the paper's weight; the run with one more word asks about English rows only.
KL_FLAGS := --kl_on=all
KL_FLAGS-extend-first_piece-replay := --kl_on=replay

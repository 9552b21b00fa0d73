# The demo's model and text, trained for hours instead of minutes: what the demo's defaults were chosen by (`make kl-bench PROFILE=smollm2`).
include configs/demo/profile.mk
$(foreach stage,dedup annotate filter tokenizer init merge sft eval,$(eval CONF-$(stage) := configs/demo/$(stage).yaml))
# 12,032 merges of Russian on top of the base's 49,152 tokens; a vocabulary of its own of the demo's size.
KL_VOCABULARY-extend := 61184
KL_VOCABULARY-replace := 16000
KL_RUNS := extend-none extend-init extend-first_piece extend-chunk extend-first_piece-replay replace-none replace-init replace-first_piece replace-chunk
# English rows only: there the base is what to stay with, in Russian it is what to get away from. So at the paper's weight.
KL_FLAGS-extend-first_piece-replay := --kl_on=replay --kl_weight=1

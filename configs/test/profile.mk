# The test suite: committed text, a random two-layer model; a minute or two on two CPU cores, no network.
BASE := random-llama
ENCODER := random-bert
SOURCES := builtin-ru builtin-ru-spoilt builtin-en
INSTRUCT := builtin-instruct
# What the reward model learns from, and the encoder that it starts as.
PREFERENCES := builtin-preferences
REWARD_ENCODER := random-bert
TOKENIZERS :=
# For `make vocab-sweep`; the text hardly bears more pieces than 1024.
SWEEP := 768 1024

# The test suite: committed text, a random two-layer model; a minute or two on two CPU cores, no network.
BASE := random-llama
ENCODER := random-bert
SOURCES := builtin-ru builtin-ru-spoilt builtin-en
INSTRUCT := builtin-instruct
TOKENIZERS :=
# For `make vocab-sweep`; the text hardly bears more pieces than 1024.
SWEEP := 768 1024

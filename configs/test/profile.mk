# The test suite: committed text, a random two-layer model; a minute or two on two CPU cores, no network.
BASE := random-llama
ENCODER := random-bert
SOURCES := builtin-ru builtin-ru-spoilt builtin-en
INSTRUCT := builtin-instruct
TOKENIZERS :=

# What every big profile reads (configs/sources/): Table 2's kinds of text, Table 4's instructions, Figure 1's tokenizers, and
# English Wikipedia, on which forgetting is measured.
SOURCES := ru-wikipedia ru-news habr ru-science ru-web en-wikipedia
INSTRUCT := saiga veles ru-flan nectar
# The paper's reward model is a multilingual-e5.
PREFERENCES := nectar-preferences
REWARD_ENCODER := e5-large
ENCODER := rubert-tiny2
TOKENIZERS := tokenizer-llama2 tokenizer-llama3 tokenizer-gemma3 tokenizer-gpt4o tokenizer-qwen3
# For `make vocab-sweep`: the sizes of Table 7.
SWEEP := 33000 40000 60000 80000
# The paper's filter learnt from documents that a language model had annotated; `ANNOTATE=` (nothing) takes weak labels instead.
ANNOTATE ?= yes

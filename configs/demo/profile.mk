# The embedded default: a real English model and real text from package registries; two CPU cores, no accelerator.
BASE := smollm2-135m
ENCODER := e5-small
INSTRUCT := builtin-instruct
# What the reward model learns from, and the encoder that it starts as.
PREFERENCES := builtin-preferences
REWARD_ENCODER := e5-small
# Russian to learn; English to remember by.
SOURCES := wiktionary-ru word-senses-ru manpages-ru manpages-ru-dev libreoffice-help-ru fortunes-ru developers-reference-ru \
  aptitude-doc-ru debian-faq-ru wikipedia-en manpages-en manpages-dev-en libreoffice-help-en fortunes-en developers-reference-en aptitude-doc-en debian-faq-en
# For `make vocab-sweep`: 4,096 merges to half as many again as in tokenizer.yaml; each takes half a minute.
SWEEP := 53248 61440 77824 98304 122880
# For the fertility report (the paper's Figure 1).
TOKENIZERS := tokenizer-mistral tokenizer-llama2 tokenizer-llama3 tokenizer-gemma3 tokenizer-gpt4o tokenizer-qwen3

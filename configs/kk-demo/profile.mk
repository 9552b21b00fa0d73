# The demo in Kazakh: what docs/NEW_LANGUAGE.md makes, step by step.
TARGET := kk
include configs/demo/profile.mk
# What installs by name; a profile for use would have a hub's corpora here. The demo's English that is nearest to it, and Wikipedia.
SOURCES := libreoffice-l10n-kk libreoffice-help-en manpages-en wikipedia-en
# Eight dialogues: the form of an answer at most. There are no preferences in Kazakh, so no reward model.
INSTRUCT := builtin-instruct-kk
PREFERENCES :=
PROMPTS := data/builtin/languages/kk.prompts.jsonl
SWEEP := 51200 53248
TOKENIZERS := tokenizer-llama3 tokenizer-gpt4o
$(foreach stage,dedup annotate init pack merge reward sft,$(eval CONF-$(stage) := configs/demo/$(stage).yaml))
CONF-instruct := configs/test/languages/instruct.yaml
